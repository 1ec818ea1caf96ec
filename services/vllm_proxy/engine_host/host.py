"""The engine host itself: its state, its requests, its adapters, and what it tells the router."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.common.engine_routes import HOST_ROUTES
from vllm_proxy.common.errors import (
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    MethodNotAllowed,
    NoCapacity,
    NotFound,
    RouteNotFound,
    ServiceError,
)
from vllm_proxy.common.ids import new_incarnation
from vllm_proxy.common.response_ids import ResponseIds
from vllm_proxy.engine_host.config import HostConfig
from vllm_proxy.engine_host.engines.base import Engine, EngineLoad, StoringEngine
from vllm_proxy.engine_host.in_flight import STOPPING, InFlight
from vllm_proxy.engine_host.lora.registry import AdapterRegistry
from vllm_proxy.engine_host.metrics import HostMetrics
from vllm_proxy.engine_host.request_record import RequestRecord
from vllm_proxy.engine_host.settlement import End
from vllm_proxy.engine_host.stream import RequestStream
from vllm_proxy.engine_host.stream_trace import StreamTracer

log = logging.getLogger(__name__)

_RUNNING = (router_pb2.HOST_STATE_SERVING, router_pb2.HOST_STATE_DRAINING)

#: How long a cancelled request may take to leave the engine.
ABORT_GRACE_S = 1.0


class EngineHost:
    """One engine, its LoRA registry and every request in it."""

    def __init__(
        self,
        config: HostConfig,
        engine: Engine,
        registry: AdapterRegistry,
        in_flight: InFlight,
        metrics: HostMetrics,
        on_change: Callable[[], None],
        tracer: StreamTracer | None = None,
    ) -> None:
        """`on_change` is called when the router should hear of something soon."""
        self.name = config.name
        self.incarnation = new_incarnation(config.name)
        self.engine = engine
        self.in_flight = in_flight
        #: Where EngineService can be reached.
        self.address = config.address
        self._drain_timeout_s = config.limits.drain_timeout_s
        self._registry = registry
        self.metrics = metrics
        self._on_change = on_change
        self._tracer = tracer
        if isinstance(engine, StoringEngine):
            engine.use_response_ids(ResponseIds(config.name))
        self._state: router_pb2.HostState = router_pb2.HOST_STATE_STARTING
        self._detail = "starting"
        self._stopping = False
        self._was_draining = False
        self._engine_returns = 0

    # State.

    @property
    def state_name(self) -> str:
        """STARTING, SERVING, DRAINING or DOWN."""
        return router_pb2.HostState.Name(self._state).removeprefix("HOST_STATE_")

    def serve(self) -> None:
        """Lets requests in. Without effect once it stops."""
        if not self._stopping:
            self._change(router_pb2.HOST_STATE_SERVING, "")
            self.in_flight.open()

    def refuse_new(self, detail: str = "draining") -> None:
        """Lets nothing new in; running requests go on."""
        self._change(router_pb2.HOST_STATE_DRAINING, detail)
        self.in_flight.close()

    async def drain(self, timeout_s: float) -> int:
        """Takes nothing new and waits for what runs, at most so long (0: the configured time). Returns how many
        requests still run."""
        self.refuse_new()
        return await self.in_flight.wait_empty(timeout_s or self._drain_timeout_s)

    async def shut_down(self) -> None:
        """Drains for good; what still runs after the drain time is aborted."""
        self._stopping = True
        if await self.drain(0):
            self.in_flight.stop_all(auth_pb2.OUTCOME_CANCELLED, NoCapacity(STOPPING, retry_after_s=1))
            await self.in_flight.wait_empty(ABORT_GRACE_S)

    async def engine_died(self, cause: str) -> None:
        """Fails everything that runs and refuses the rest."""
        log.error("engine died", extra={"detail": cause, "in_flight": len(self.in_flight)})
        self._stopping = True
        self._change(router_pb2.HOST_STATE_DOWN, cause)
        self.in_flight.close(EngineFailed)
        self.in_flight.stop_all(auth_pb2.OUTCOME_FAILED, EngineFailed())
        await self.in_flight.wait_empty(ABORT_GRACE_S)

    async def engine_away(self, cause: str) -> None:
        """Fails everything that runs and refuses the rest until `engine_back`: the engine may come back."""
        log.error("engine away", extra={"detail": cause, "in_flight": len(self.in_flight)})
        self._was_draining = self._state == router_pb2.HOST_STATE_DRAINING
        self._change(router_pb2.HOST_STATE_STARTING, cause)
        self.in_flight.close(EngineFailed)
        self.in_flight.stop_all(auth_pb2.OUTCOME_FAILED, EngineFailed())
        await self.in_flight.wait_empty(ABORT_GRACE_S)

    def engine_back(self) -> None:
        """Lets requests in again, unless the host had been drained before its engine went away."""
        self._engine_returns += 1
        if self._was_draining:
            self.refuse_new()
        else:
            self.serve()

    def _change(self, state: router_pb2.HostState, detail: str) -> None:
        changed = state != self._state
        self._state, self._detail = state, detail
        if changed:
            log.info("state", extra={"state": self.state_name, "detail": detail})
        self._on_change()

    # Requests.

    def begin(self, stream: RequestStream) -> None:
        """Starts a request in the engine. Raises NotFound, MethodNotAllowed, NoCapacity, EngineUnavailable."""
        envelope = stream.envelope
        if self._tracer is not None:
            self._tracer.began(stream)
        route = HOST_ROUTES.find(envelope.method, envelope.path)
        if route is None:
            raise MethodNotAllowed() if HOST_ROUTES.methods(envelope.path) else RouteNotFound()
        stream.route = route.name
        if route.of_response and not isinstance(self.engine, StoringEngine):
            raise NotFound("This engine keeps no responses.")
        self.in_flight.add(stream)
        stream.start(self.engine.app)

    def ended(self, stream: RequestStream, edge_id: str) -> End:
        """Writes the request's line in the log and its numbers; returns what is to be settled."""
        self.in_flight.remove(stream)
        envelope, meter, model = stream.envelope, stream.meter, stream.envelope.model
        record = RequestRecord(
            request_id=envelope.request_id,
            engine_request_id=stream.engine_request_id,
            key_id=envelope.key_id,
            model=model,
            route=stream.route,
            status=stream.status,
            outcome=stream.outcome,
            reason=stream.error.reason if stream.error else "",
            meter=meter,
            ttft_s=stream.ttft_s,
            duration_s=stream.duration_s,
            edge=edge_id,
        )
        record.write(self.metrics)
        if self._tracer is not None:
            self._tracer.ended(stream)
        return End(
            envelope.lease_id,
            envelope.attempt,
            stream.outcome,
            meter.prompt_tokens,
            meter.cached_tokens,
            meter.completion_tokens,
            model,
            self.name,
            self._base_model(model) if meter.prompt_tokens else "",
            stream.trace.context.traceparent if stream.trace is not None else "",
        )

    def _base_model(self, model: str) -> str:
        """What stands behind a name that was answered."""
        names = self.engine.base_models()
        return self._registry.base_of(model) or (model if model in names else next(iter(names), ""))

    # Adapters.

    async def load_adapter(self, spec: router_pb2.AdapterSpec, origin: router_pb2.AdapterOrigin) -> router_pb2.Model:
        """Raises InvalidAdapter, AdapterExists, PermissionDenied."""
        adapter = await self._adapters().load(spec.name, spec.path, spec.base, origin=origin, replace=spec.replace)
        return await self.model(adapter.name)

    async def unload_adapter(self, name: str, *, native: bool = False) -> None:
        """Waits for the adapter's running requests. `native`: not asked for by the router, which then forgets its
        declaration. Raises AdapterNotFound, PermissionDenied."""
        await self._adapters().unload(name, native=native)

    async def pin_adapter(self, name: str) -> None:
        self._adapters()
        await self.engine.pin_adapter(name)

    def _adapters(self) -> AdapterRegistry:
        if not self.engine.supports_lora:
            raise InvalidRequest("This engine takes no LoRA adapters.")
        if self._state not in _RUNNING:
            raise EngineUnavailable("The engine is not running.")
        return self._registry

    # The router.

    async def execute(self, command: router_pb2.Command) -> None:
        """Carries out one of the router's commands. Raises the ServiceError that it fails with."""
        match command.WhichOneof("action"):
            case "load":
                await self.load_adapter(command.load, router_pb2.ADAPTER_ORIGIN_DECLARED)
            case "unload":
                await self.unload_adapter(command.unload)
            case "drain" if self._stopping or self._state == router_pb2.HOST_STATE_STARTING:
                pass
            case "drain" if command.drain:
                self.refuse_new("drained by the router")
            case "drain":
                self.serve()
            case _:
                raise InvalidRequest("An unknown command.")

    def take_withdrawn(self) -> list[str]:
        return self._registry.take_withdrawn()

    async def model(self, name: str) -> router_pb2.Model:
        """One row of `models`. Raises ServiceError if it went away meanwhile."""
        for model in await self.models():
            if model.name == name:
                return model
        raise ServiceError(f"The adapter {name} was unloaded meanwhile.")

    async def models(self) -> list[router_pb2.Model]:
        """Base models first, then adapters. Empty while the engine does not run."""
        if self._state not in _RUNNING:
            return []
        adapters = {adapter.name: adapter for adapter in self._registry.adapters()}
        rows = []
        for card in await self.engine.model_cards():
            row = router_pb2.Model(name=card.name, base=card.base, card_json=card.card_json)
            if adapter := adapters.get(card.name):
                row.digest, row.origin, row.path = adapter.digest, adapter.origin, str(adapter.path)
            rows.append(row)
        return rows

    def load(self) -> EngineLoad:
        """The engine's load; nothing while it does not run."""
        return self.engine.load() if self._state in _RUNNING else EngineLoad()

    async def snapshot(self) -> router_pb2.Host:
        """The whole state, as it is reported."""
        models = await self.models()
        engine = self.load()
        return router_pb2.Host(
            name=self.name,
            incarnation=self.incarnation,
            address=self.address,
            engine=self.engine.kind,
            state=self._state,
            models=models,
            load=router_pb2.HostLoad(
                running=engine.running,
                waiting=engine.waiting,
                kv_usage=engine.kv_usage,
                in_flight=len(self.in_flight),
            ),
            engine_version=self.engine.version if self._state in _RUNNING else "",
            last_seen_ms=int(time.time() * 1000),
            detail=self._detail,
            engine_returns=self._engine_returns,
        )

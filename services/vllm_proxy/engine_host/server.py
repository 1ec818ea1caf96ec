"""Composition root of the engine host: builds, wires, starts, watches, stops."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from contextlib import AsyncExitStack
from typing import Any

from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.api.engine.v1 import engine_pb2_grpc
from vllm_proxy.common import maintenance
from vllm_proxy.common.lifecycle import StopSignal, cancel_all
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.metrics import serve_metrics
from vllm_proxy.common.reload import Commit, Outcome, Reloader
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings
from vllm_proxy.common.tracing.start import open_tracer
from vllm_proxy.engine_host.config import HostConfig, host_config
from vllm_proxy.engine_host.engines.base import Engine, EngineDied, ReturningEngine
from vllm_proxy.engine_host.engines.build import build_engine
from vllm_proxy.engine_host.host import EngineHost
from vllm_proxy.engine_host.in_flight import InFlight
from vllm_proxy.engine_host.lora.registry import AdapterPolicy, AdapterRegistry
from vllm_proxy.engine_host.metrics import HostMetrics
from vllm_proxy.engine_host.registration import Registration
from vllm_proxy.engine_host.servicer import SERVICE_NAME, EngineServicer
from vllm_proxy.engine_host.settlement import Settler
from vllm_proxy.engine_host.stream_trace import StreamTracer

log = logging.getLogger(__name__)

#: How long a stop waits for edges to acknowledge the last ends, and then for the auth service.
FLUSH_S = 2.0
#: The same when the engine died: the supervisor's restart is worth more, and the edges know what they saw.
FLUSH_DEAD_S = 0.3
#: How long the last report to the router may take to leave.
REPORT_S = 0.3
RPC_GRACE_S = 0.5


class HostService:
    """One engine host, built but not started."""

    def __init__(self, loaded: LoadedSettings, config: HostConfig, engine: Engine | None = None) -> None:
        """`engine` stands in for the configured one. Raises ConfigError."""
        settings = loaded.settings.for_host(config.name)
        self._settings = settings
        self._config = config
        self.engine = engine or build_engine(config.engine, settings, self._resolve)
        self.metrics = HostMetrics()
        self._policy = _adapter_policy(settings, config)
        self.registry = AdapterRegistry(self.engine, self._policy, self._changed, self.metrics.adapter_operation)
        self.in_flight = InFlight(config.limits.max_in_flight)
        if isinstance(self.engine, ReturningEngine):
            self.engine.join(self.registry)
        self.tracer = open_tracer(
            settings.tracing, f"engine-{config.name}", "vllm_proxy_engine_host_", self.metrics.registry
        )
        spans = StreamTracer(self.tracer, config.name, config.engine) if self.tracer is not None else None
        self.host = EngineHost(config, self.engine, self.registry, self.in_flight, self.metrics, self._changed, spans)
        self.settler = Settler(
            config.auth_address, config.grpc, self.host.incarnation, limit=config.limits.unacked_limit
        )
        self.registration = Registration(
            config.router_address, config.grpc, self.host.snapshot, self.host.execute, self.host.take_withdrawn
        )
        self.servicer = EngineServicer(self.host, self.settler, config.limits.unacked_limit)
        self.rpc = RpcServer(config.address, config.grpc, (SERVICE_NAME, maintenance.SERVICE_NAME))
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self.servicer, self.rpc.server)
        self.reloader = Reloader(f"engine-{config.name}", loaded, self._prepare)
        section = settings.section(config.engine)
        output = [section.log_file] if section is not None and section.launch_mode != "attached" else []
        folder = LogFolder(settings.logs.dir, [f"engine-{config.name}"], output)
        maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(
            maintenance.MaintenanceServicer(self.reloader, folder, self.metrics.registry), self.rpc.server
        )
        self.metrics.gauge("in_flight_requests", "Requests that the host holds.", lambda: len(self.in_flight))
        self.metrics.gauge(
            "running_completion_tokens",
            "Completion tokens of requests that run; they are in tokens_total once these end.",
            self.in_flight.completion_tokens,
        )
        self.metrics.gauge("sessions", "Edge workers that are connected.", lambda: len(self.servicer.sessions))
        self.metrics.gauge("unsettled_requests", "Ends that the host must settle itself.", lambda: len(self.settler))
        self.metrics.gauge("adapters", "Adapters that are loaded.", lambda: len(self.registry.adapters()))
        self.metrics.watch_engine(self.host.load)

    async def run(self, stop: StopSignal) -> int:
        """Serves until `stop` (0) or until the engine dies (1)."""
        async with AsyncExitStack() as stack:
            if self.tracer is not None:
                stack.push_async_callback(self.tracer.close)
            stack.push_async_callback(self.engine.stop)
            tasks: set[asyncio.Task[Any]] = set()
            stack.push_async_callback(cancel_all, tasks)
            stack.push_async_callback(self.registry.close)
            stack.push_async_callback(self.reloader.close)
            self.host.address = await self.rpc.listen()
            stack.push_async_callback(self.rpc.stop, RPC_GRACE_S)
            serve_metrics(self._config.metrics_port, self.metrics.registry)
            tasks.add(asyncio.create_task(self.settler.run(), name="settler"))
            tasks.add(asyncio.create_task(self.reloader.run(stop.hangup), name="reload"))
            registering = asyncio.create_task(self.registration.run(), name="registration")
            tasks.add(registering)
            try:
                cause = await self._until_stopped_or_dead(stop, tasks)
            except EngineDied as e:
                cause = str(e)
            await self.rpc.set_serving(False)
            if cause is None:
                cause = await self._drain()
            if cause is None:
                flush_s, status = FLUSH_S, 0
            else:
                await self.host.engine_died(cause)
                flush_s, status = FLUSH_DEAD_S, 1
            self.registration.stop()
            await asyncio.wait((registering,), timeout=REPORT_S)
            await self.servicer.close_sessions(flush_s)
            if unsettled := await self.settler.flush(flush_s):
                log.warning("left unsettled", extra={"requests": unsettled})
            return status

    async def _until_stopped_or_dead(self, stop: StopSignal, background: set[asyncio.Task[Any]]) -> str | None:
        """Starts the engine and serves. Returns None when a stop is asked for, else what died. Raises what the
        engine's start raises."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        starting = asyncio.create_task(self._start_engine(), name="engine start")
        mine: set[asyncio.Task[Any]] = {stopping, starting}
        try:
            await asyncio.wait((stopping, starting), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return None
            starting.result()
            dying = asyncio.create_task(self._watch_engine(), name="engine watch")
            mine = {stopping, dying}
            if self._serves_native_port:
                background.add(asyncio.create_task(self._native_http(stop), name="native http"))
            self.host.serve()
            await self.rpc.set_serving(True)
            done, _ = await asyncio.wait(mine | background, return_when=asyncio.FIRST_COMPLETED)
            if stop.requested:
                return None
            if dying in done:
                return dying.result()
            ended = done.pop()
            fault = None if ended.cancelled() else ended.exception()
            log.error("a part of the host ended", exc_info=fault, extra={"part": ended.get_name()})
            return f"the host's {ended.get_name()} ended" + (f": {fault}" if isinstance(fault, ConfigError) else "")
        finally:
            await cancel_all(mine)

    async def _watch_engine(self) -> str:
        """Returns, with the cause, when the engine has died for good. One that may come back is waited for."""
        while True:
            cause = await self.engine.wait_dead()
            if not isinstance(self.engine, ReturningEngine):
                return cause
            await self.rpc.set_serving(False)
            await self.host.engine_away(cause)
            self.registry.engine_is_new()
            try:
                await self.engine.revive()
            except EngineDied as e:
                return str(e)
            if self.engine.supports_lora:
                await self.registry.preload()
            self.host.engine_back()
            await self.rpc.set_serving(True)

    async def _drain(self) -> str | None:
        """Waits for running requests. Returns what died meanwhile, or None."""
        if not len(self.in_flight):
            await self.host.shut_down()
            return None
        draining = asyncio.create_task(self.host.shut_down(), name="drain")
        dying = asyncio.create_task(self.engine.wait_dead(), name="engine watch")
        try:
            await asyncio.wait((draining, dying), return_when=asyncio.FIRST_COMPLETED)
            return None if draining.done() else dying.result()
        finally:
            await cancel_all({draining, dying})

    async def _start_engine(self) -> None:
        """Raises EngineDied, or ConfigError for what no restart can cure."""
        try:
            await self.engine.start()
        except (EngineDied, ConfigError):
            raise
        except Exception as e:
            log.exception("engine start failed")
            raise EngineDied("the engine did not start; the host's log says why") from e
        if self.engine.supports_lora:
            await self.registry.preload()

    async def _native_http(self, stop: StopSignal) -> None:
        from vllm_proxy.engine_host import native_http, native_lora

        settings = self._settings
        # Without what the adapter adds for the gateway, such as the engine's own key.
        app = getattr(self.engine, "native_app", self.engine.app)
        keys = getattr(self.engine, "native_api_keys", ())
        host, port = settings.native_address(self._config.engine)
        lora_routes = native_lora.SGLANG_ROUTES if self._config.engine == "sglang" else native_lora.VLLM_ROUTES
        await native_http.serve(app, self.registry, host, port, stop, keys, lora_routes)

    @property
    def _serves_native_port(self) -> bool:
        """Whether the engine's own port is the host's to open: it has no server of its own."""
        section = self._settings.section(self._config.engine)
        return section is not None and section.launch_mode == "python_api"

    def _prepare(self, loaded: LoadedSettings) -> Commit:
        name = self._config.name
        spec = loaded.settings.hosts(loaded.root).get(name)
        policy = None
        if spec is not None and spec.engine == self._config.engine:  # else only a restart could tell
            changed = _adapter_policy(loaded.settings.for_host(name), host_config(loaded, name))
            # The engine was started with the rest.
            policy = dataclasses.replace(
                self._policy,
                allowed_roots=changed.allowed_roots,
                preload=changed.preload,
                load_timeout_s=changed.load_timeout_s,
            )

        async def commit(outcome: Outcome) -> None:
            if policy is not None:
                failures = await self.registry.use_policy(policy)
                outcome.problems += [f"{self._config.engine}.lora.preload: {failure}" for failure in failures]

        return commit

    async def _resolve(self, name: str) -> bool:
        return await self.registry.resolve(name)

    def _changed(self) -> None:
        self.registration.poke()


def _adapter_policy(settings: Settings, config: HostConfig) -> AdapterPolicy:
    section = settings.section(config.engine)
    lora = section.lora if section is not None else settings.vllm.lora
    resolver = lora.runtime_resolver
    return AdapterPolicy(
        allowed_roots=tuple(lora.allowed_roots),
        cache_dir=resolver.cache_dir if "lora_filesystem_resolver" in resolver.plugins else None,
        allow_runtime_updates=resolver.allow_runtime_updates,
        preload=tuple(lora.preload) if section is not None else (),
        load_timeout_s=config.limits.adapter_load_timeout_s,
    )


async def serve(loaded: LoadedSettings, stop: StopSignal, *, name: str) -> int:
    return await HostService(loaded, host_config(loaded, name)).run(stop)

"""A simulated engine for load tests: the timing of a real one, no model.

Never the default, and it says what it is in every answer's text and `system_fingerprint`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import uvicorn

from vllm_proxy.common.errors import InvalidRequest, ModelNotFound
from vllm_proxy.common.settings import ConfigError, Sim
from vllm_proxy.engine_host.engines import sim_text
from vllm_proxy.engine_host.engines.base import (
    AdapterLimits,
    AsgiApp,
    EngineDied,
    EngineLoad,
    GeneratedText,
    GenerateParameters,
    ModelCard,
    ResolveAdapter,
    UsageMeter,
    current_meter,
)
from vllm_proxy.engine_host.engines.sim_app import DEFAULT_MAX_TOKENS, SimApp
from vllm_proxy.engine_host.engines.sim_batch import Batch
from vllm_proxy.engine_host.engines.sim_batch import Sequence as BatchSequence
from vllm_proxy.engine_host.engines.sim_journal import SimJournal

log = logging.getLogger(__name__)

MAX_LORA_RANK = 512


class SimEngine:
    """`resolve` is asked for names that it does not know, as vLLM asks its resolvers."""

    kind = "sim"
    version = sim_text.FINGERPRINT
    supports_lora = True

    def __init__(self, settings: Sim, resolve: ResolveAdapter | None = None) -> None:
        self._settings = settings
        self._resolve = resolve
        self._adapters = dict.fromkeys(settings.adapters)
        self._batch = Batch(settings)
        journal = SimJournal(settings.journal_dir) if settings.journal_dir is not None else None
        self._sim_app = SimApp(self._batch, self._knows, self._cards, settings.max_model_len, journal)
        self.app: AsgiApp = self._sim_app
        #: Where its own HTTP server listens, once started.
        self.http_port: int | None = None
        self._clock: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._clock = asyncio.create_task(self._batch.run(), name="sim clock")
        if self._settings.http_port is not None:
            await self._serve_http(self._settings.http_port)

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._serving
            self._server = None
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.wait((self._clock,))

    async def wait_dead(self) -> str:
        assert self._clock is not None, "started"
        await asyncio.wait((self._clock,))
        if not self._clock.cancelled() and (fault := self._clock.exception()) is not None:
            log.error("the simulator failed", exc_info=fault)
        return "the simulator's clock stopped"

    def base_models(self) -> Sequence[str]:
        return (self._settings.model,)

    async def model_cards(self) -> Sequence[ModelCard]:
        return self._cards()

    def _cards(self) -> Sequence[ModelCard]:
        base, length = self._settings.model, self._settings.max_model_len
        rows = [ModelCard(base, sim_text.model_card(base, "", length))]
        rows += [ModelCard(name, sim_text.model_card(name, base, length), base) for name in self._adapters]
        return rows

    def load(self) -> EngineLoad:
        return self._batch.load()

    async def generate(self, parameters: GenerateParameters) -> AsyncIterator[GeneratedText]:
        if not await self._knows(parameters.model):
            raise ModelNotFound(f"The model {parameters.model} does not exist.")
        prompt = parameters.prompt
        prompt_tokens = len(prompt.encode()) // 4 + 1 if isinstance(prompt, str) else len(prompt)
        max_tokens = parameters.max_tokens if parameters.max_tokens is not None else DEFAULT_MAX_TOKENS
        if max_tokens < 1 or prompt_tokens + max_tokens > self._settings.max_model_len:
            raise InvalidRequest(f"max_tokens must be at least 1 and fit into {self._settings.max_model_len} tokens.")
        if self._clock is None or self._clock.done():
            raise EngineDied("the simulator's clock stopped")
        sequence = _TypedSequence(parameters.model, prompt_tokens, max_tokens, current_meter.get() or UsageMeter())
        self._batch.add(sequence)
        told = 0
        try:
            while told < max_tokens:
                await sequence.more.wait()
                sequence.more.clear()
                ready = sequence.produced
                seed = parameters.seed or 0
                text = "".join(sim_text.plain_token(parameters.model, seed, i) for i in range(told, ready))
                yield GeneratedText(text, range(told, ready), "length" if ready == max_tokens else "")
                told = ready
        finally:
            self._batch.abort(sequence)

    def adapter_limits(self) -> AdapterLimits:
        return AdapterLimits(max_rank=MAX_LORA_RANK)

    async def load_adapter(self, name: str, path: Path) -> None:
        self._adapters[name] = None

    async def remove_adapter(self, name: str) -> None:
        self._adapters.pop(name, None)
        await self._batch.wait_model_idle(name)

    async def pin_adapter(self, name: str) -> None:
        """Nothing is ever evicted here."""

    async def _knows(self, name: str) -> bool:
        if name == self._settings.model or name in self._adapters:
            return True
        return self._resolve is not None and await self._resolve(name) and name in self._adapters

    async def _serve_http(self, port: int) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as e:
            listener.close()
            raise ConfigError(f"sim.http_port: {port} cannot be had: {e.strerror}") from None
        self.http_port = listener.getsockname()[1]
        config = uvicorn.Config(self.app, lifespan="off", log_config=None, access_log=False, server_header=False)
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]), name="sim http")
        log.info("simulator's HTTP face", extra={"port": self.http_port})


class _Server(uvicorn.Server):
    """Signals are the host's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _TypedSequence(BatchSequence):
    __slots__ = ("more",)

    def __init__(self, model: str, prompt_tokens: int, max_tokens: int, meter: UsageMeter) -> None:
        super().__init__(model, prompt_tokens, max_tokens, meter)
        self.more = asyncio.Event()

    def deliver(self, index: int, last: bool) -> None:
        self.more.set()

"""An engine in another process, spoken to over its own OpenAI HTTP server: one that the host runs by its start command
(cli), or one that somebody else runs (attached). It may go and come back while the host stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from vllm_proxy.common.errors import InvalidRequest, ModelNotFound, ServiceError
from vllm_proxy.common.lifecycle import cancel_all
from vllm_proxy.common.settings import ConfigError, EngineKind, EngineSection, Settings
from vllm_proxy.engine_host.engines.base import (
    AdapterBook,
    AdapterLimits,
    AsgiApp,
    EngineDied,
    EngineLoad,
    GeneratedText,
    GenerateParameters,
    ModelCard,
    ResolveAdapter,
)
from vllm_proxy.engine_host.engines.cli_command import CliCommand, read_command
from vllm_proxy.engine_host.engines.engine_output import EngineOutput
from vllm_proxy.engine_host.engines.engine_process import RunningProcess
from vllm_proxy.engine_host.engines.engine_watch import EngineWatch
from vllm_proxy.engine_host.engines.http_adapters import HttpAdapters
from vllm_proxy.engine_host.engines.http_dialects import DIALECTS, HttpDialect
from vllm_proxy.engine_host.engines.http_exchange import HttpApp
from vllm_proxy.engine_host.engines.http_generate import generate
from vllm_proxy.engine_host.engines.http_pool import HttpPool
from vllm_proxy.engine_host.engines.model_folder import linear_layers
from vllm_proxy.engine_host.engines.sglang_command import adapter_of

log = logging.getLogger(__name__)

#: An engine that served for so long had recovered from its last death.
_RECOVERED_AFTER_S = 60.0
#: How long a process that broke its connections may take to end.
_END_MAY_FOLLOW_S = 0.5
#: How often the log says that an attached engine is still waited for.
_WAITING_LINE_S = 60.0


class HttpEngine:
    """base.Engine and base.ReturningEngine. Raises ConfigError for a start command that cannot be used."""

    def __init__(self, kind: EngineKind, settings: Settings, resolve: ResolveAdapter) -> None:
        """`settings` are those of its host."""
        self.kind: str = kind
        self._kind: EngineKind = kind
        self._dialect: HttpDialect = DIALECTS[kind]
        section = settings.section(kind)
        assert section is not None
        self._section: EngineSection = section
        self._settings = settings
        self._resolve = resolve
        self._command = self._read_command() if section.launch_mode == "cli" else None
        self._output = EngineOutput(section.log_file, settings.logs.max_bytes, settings.logs.backups)
        self._pool = HttpPool(self._url(), self._api_key(), settings.engine_http)
        self._watch = EngineWatch(self._pool, self._dialect, settings.engine_http, self._models_seen)
        links = (settings.run_dir / "adapters").absolute() if self._command is not None else None
        self._adapters = HttpAdapters(
            self._pool, self._dialect, self._watch, links, settings.engine_host.adapter_drain_timeout_s
        )
        self._http_app = HttpApp(
            self._pool, self._dialect, self._use, self._watch.poke, settings.engine_http.priority_order
        )
        self.app: AsgiApp = self._http_app
        self._process: RunningProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self._deaths = 0
        self._ready_at = 0.0
        self._book: AdapterBook | None = None
        self._limits = AdapterLimits(max_rank=section.lora.max_lora_rank)
        self.version = ""
        self.supports_lora = section.lora.enabled

    def join(self, book: AdapterBook) -> None:
        self._book = book

    # Life.

    async def start(self) -> None:
        self._pool.open()
        if self._command is not None:
            self._section.lora.runtime_resolver.cache_dir.mkdir(parents=True, exist_ok=True)
            for warning in self._command.warnings:
                log.warning("start command", extra={"detail": warning})
            self._process = RunningProcess(
                self._dialect.name,
                self._command,
                self._dialect.environment(self._section),
                self._output,
                self._section.pid_file,
                self._settings.engine_process,
                self._watch.check,
            )
            await self._process.start()
            await self._begin()
        else:
            await self._meet()

    async def stop(self) -> None:
        if self._watching is not None:
            await cancel_all({self._watching})
            self._watching = None
        await self._adapters.close()
        if self._process is not None:
            await self._process.stop()
        await self._pool.close()

    async def wait_dead(self) -> str:
        """Returns why the engine is gone; it may come back: `revive`."""
        assert self._watching is not None, "started"
        waits: set[asyncio.Task[Any]] = {self._watching}
        if self._process is not None:
            waits.add(asyncio.create_task(self._process.wait_ended()))
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if done == {self._watching} and self._process is not None:
                # Connections break a moment before the process has ended; its end says more.
                ended, _ = await asyncio.wait(waits - done, timeout=_END_MAY_FOLLOW_S)
                done = ended or done
        finally:
            await cancel_all(waits - {self._watching})
        for task in done:
            if task is not self._watching:
                return str(task.result())
        error = self._watching.exception() if not self._watching.cancelled() else None
        if error is not None and not isinstance(error, EngineDied):
            log.error("the watch of the engine failed", exc_info=error)
        return f"{self._dialect.name} is gone: {error}"

    async def revive(self) -> None:
        """Waits until the engine is back: starts it again (cli), or looks for it (attached). Raises EngineDied when
        it is given up."""
        if self._watching is not None:
            await cancel_all({self._watching})
        self._watch.forget()
        self._adapters.engine_is_new()
        if self._process is None:
            await self._meet()
        else:
            await self._restart(self._process)

    async def _begin(self) -> None:
        """The engine is healthy: finds out what it is, and watches it."""
        await self._watch.look()
        self._limits = await self._find_limits()
        version = await self._watch.version()
        if version != self.version and not version.startswith(self._dialect.tested_version):
            log.warning(
                f"untested {self._dialect.name}",
                extra={"version": version or "unknown", "tested": self._dialect.tested_version.rstrip(".")},
            )
        self.version = version
        self._ready_at = time.monotonic()
        self._watching = asyncio.create_task(self._watch.run(), name="engine watch")
        log.info(
            "engine ready",
            extra={"engine": self.kind, "version": version, "url": self._pool.url, "models": self.base_models()},
        )

    async def _meet(self) -> None:
        """Waits until somebody else's engine is there."""
        said_at = float("-inf")
        while True:
            try:
                await self._watch.check()
                await self._begin()
                return
            except EngineDied as e:
                if time.monotonic() - said_at > _WAITING_LINE_S:
                    said_at = time.monotonic()
                    log.info("waiting for the engine", extra={"detail": str(e)})
            await asyncio.sleep(self._settings.engine_http.poll_s)

    async def _restart(self, process: RunningProcess) -> None:
        settings = self._settings.engine_process
        if time.monotonic() - self._ready_at > _RECOVERED_AFTER_S:
            self._deaths = 0
        pause_s = settings.restart_min_s
        while True:
            self._deaths += 1
            if self._deaths > settings.restart_limit:
                raise EngineDied(
                    f"{self._dialect.name} died {self._deaths} times in a row: {await process.cause()}; given up"
                )
            await process.stop()
            log.warning("engine restart", extra={"engine": self.kind, "in_s": pause_s, "deaths": self._deaths})
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, settings.restart_max_s)
            try:
                await process.start()
                await self._begin()
                return
            except (EngineDied, ConfigError) as e:
                log.error("engine start failed", extra={"detail": str(e)})

    # What it is.

    def _read_command(self) -> CliCommand:
        section, kind = self._section, self.kind
        text = section.command()
        if not text:
            raise ConfigError(f"{kind}.start_cmd: empty, and {section.start_cmd_file} has no command")
        host, port = self._settings.native_address(self._kind)
        return read_command(text, self._dialect, host, port, section, self._settings.tracing)

    def _url(self) -> str:
        if self._section.url is not None and self._command is None:
            return self._section.url
        if self._command is not None:
            host, port = self._command.host, self._command.port
        else:
            host, port = self._settings.native_address(self._kind)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def _api_key(self) -> str | None:
        if self._command is not None and self._command.api_key:
            return self._command.api_key
        name = self._section.api_key_variable
        return self._section.extra_env.get(name) or os.environ.get(name) or None

    async def _find_limits(self) -> AdapterLimits:
        """From the start command, and from the model's folder where it can be read."""
        rank = self._section.lora.max_lora_rank
        if self._command is not None:
            rank = min(rank, self._command.max_lora_rank or self._dialect.default_max_rank or rank)
        root = next((card.root for card in self._watch.cards if not card.base), "")
        if self._dialect.model_info_path:
            root = await self._watch.tell(self._dialect.model_info_path, "model_path")
        modules, shapes = await asyncio.to_thread(linear_layers, Path(root)) if root else (frozenset(), {})
        return AdapterLimits(max_rank=rank, target_modules=modules, shapes=shapes)

    # What it serves.

    def base_models(self) -> Sequence[str]:
        return [card.name for card in self._watch.cards if not card.base]

    async def model_cards(self) -> Sequence[ModelCard]:
        return self._watch.cards

    def load(self) -> EngineLoad:
        return self._watch.load

    def generate(self, parameters: GenerateParameters) -> AsyncGenerator[GeneratedText, None]:
        return generate(self.app, self._dialect, parameters)

    def _models_seen(self, cards: Sequence[ModelCard]) -> None:
        if self._book is not None:
            self._book.observe([card for card in cards if card.base])

    @contextlib.asynccontextmanager
    async def _use(self, model: str, cancel: Any) -> Any:
        """Asks the resolver for a name that the engine does not have, as vLLM asks its resolvers."""
        names_adapters = bool(self._dialect.adapter_field)
        name = adapter_of(model, self.base_models()[0]) or "" if names_adapters and model else model
        if name and all(card.name != name for card in self._watch.cards):
            found = False
            if self.supports_lora:
                try:
                    found = await self._resolve(name)
                except ServiceError as e:
                    raise InvalidRequest(e.message) from None
            # Where `model` names adapters, the engine says itself that there is none.
            if not found and (names_adapters or (self._book is not None and self._book.withholds(name))):
                raise ModelNotFound(f"The model `{name}` does not exist.")
        async with self._adapters.use(name, cancel):
            yield name if names_adapters else ""

    # LoRA.

    def adapter_limits(self) -> AdapterLimits:
        return self._limits

    async def load_adapter(self, name: str, path: Path) -> None:
        await self._adapters.load(name, path)

    async def remove_adapter(self, name: str) -> None:
        await self._adapters.remove(name)

    async def pin_adapter(self, name: str) -> None:
        raise InvalidRequest("Adapters of an engine in another process cannot be pinned.")

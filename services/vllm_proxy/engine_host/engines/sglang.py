"""SGLang in this process: its front end, its own OpenAI application, its adapters and its tokens.

Only the engine's scheduler and detokenizer are processes of their own. Written against and tested with SGLang 0.5.23.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from typing import Any

from vllm_proxy.common.errors import InvalidRequest, ModelNotFound
from vllm_proxy.common.settings import ConfigError, Settings
from vllm_proxy.engine_host.engines.base import (
    AdapterLimits,
    AsgiApp,
    EngineDied,
    EngineLoad,
    GeneratedText,
    GenerateParameters,
    ModelCard,
    Receive,
    ResolveAdapter,
    Scope,
    Send,
)
from vllm_proxy.engine_host.engines.engine_output import EngineOutput
from vllm_proxy.engine_host.engines.engine_owner import reap_leftovers, reap_own
from vllm_proxy.engine_host.engines.engine_tracing import with_tracing
from vllm_proxy.engine_host.engines.sglang_app import build_app, ending_requests, model_cards
from vllm_proxy.engine_host.engines.sglang_command import adapter_of, api_keys, read_command
from vllm_proxy.engine_host.engines.sglang_lora import SglangAdapters
from vllm_proxy.engine_host.engines.sglang_process import remove_files, set_environment
from vllm_proxy.engine_host.engines.sglang_shapes import adapter_limits
from vllm_proxy.engine_host.engines.sglang_start import EngineStart
from vllm_proxy.engine_host.engines.sglang_usage import Metering
from vllm_proxy.engine_host.engines.start_command import StartCommand

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 10.0
_WATCH_EVERY_S = 0.25
_ROTATE_EVERY_S = 30.0


class SglangEngine:
    """base.Engine over `sglang.Engine`. Raises ConfigError for a start command that cannot be used.

    `app` adds the key of a start command's `--api-key` to requests without one; `native_app`, for the engine's own
    port, is SGLang's application as it is.
    """

    kind = "sglang"

    def __init__(self, settings: Settings, resolve: ResolveAdapter) -> None:
        self._settings = settings
        self._resolve = resolve
        self._output = EngineOutput(settings.sglang.log_file, settings.logs.max_bytes, settings.logs.backups)
        self._starting: EngineStart | None = None
        self._engine: Any = None
        self._manager: Any = None
        self._metering: Metering | None = None
        self._adapters: SglangAdapters | None = None
        self._limits = AdapterLimits(max_rank=0)
        self._lifespan = AsyncExitStack()
        self._outputs: asyncio.Task[None] | None = None
        #: Set by SIGQUIT: SGLang's processes send it when they fail.
        self._failed = asyncio.Event()
        self._log_start_bytes = 0
        self.version = ""
        #: What the configuration says until the engine has started.
        self.supports_lora = settings.sglang.lora.enabled
        self.app: AsgiApp = _not_started
        self.native_app: AsgiApp = _not_started
        self.native_api_keys: Sequence[str] = ()

    # Life.

    async def start(self) -> None:
        sglang = self._settings.sglang
        if sglang.launch_mode != "python_api":
            raise ConfigError(f"sglang.launch_mode: this adapter runs python_api, not {sglang.launch_mode}")
        text = sglang.command()
        if not text:
            raise ConfigError(f"sglang.start_cmd: empty, and {sglang.start_cmd_file} has no command")
        command = with_tracing(read_command(text), self._settings.tracing, self.kind, sglang.extra_env)
        for pid in await asyncio.to_thread(reap_leftovers):
            log.warning("killed an engine process whose host is gone", extra={"pid": pid})
        set_environment(sglang)
        os.environ.update(command.environment)
        self._log_start_bytes = self._output.size_bytes()
        self._output.redirect()
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, self._failed.set)
        progress = asyncio.create_task(self._tell_progress(), name="sglang start progress")
        try:
            await self._start(command)
        except (ConfigError, EngineDied):
            raise
        except Exception as e:
            log.debug("engine start failed", exc_info=True)
            cause = self._output.cause(self._log_start_bytes) or f"{type(e).__name__}: {e}".splitlines()[0][:500]
            raise EngineDied(f"SGLang did not start: {cause} (see {self._output.path})") from e
        finally:
            progress.cancel()
        log.info("engine ready", extra={"engine": self.kind, "version": self.version, "models": self.base_models()})

    async def _start(self, command: StartCommand) -> None:
        self._starting = EngineStart(command, self._settings.sglang.lora)
        self._engine = engine = await self._starting.run()
        self.version = self._starting.version
        self._manager = manager = engine.tokenizer_manager
        # SGLang's own start of this loop would take over SIGTERM and kill this process when it fails.
        manager.event_loop = asyncio.get_running_loop()
        self._outputs = asyncio.create_task(manager.handle_loop(), name="sglang outputs")
        self._adapters = SglangAdapters(
            manager, self._resolve, drain_timeout_s=self._settings.engine_host.adapter_drain_timeout_s
        )
        self._metering = Metering(manager, self._adapters)
        self._adapters.abort = self._metering.abort
        await self._read_limits()
        application = ending_requests(await build_app(engine, self._adapters, self._lifespan), self._metering)
        self.native_app = application
        self.native_api_keys = api_keys(engine.server_args)
        self.app = _with_key(application, self.native_api_keys[0]) if self.native_api_keys else application
        if manager.is_generation:
            parameters = GenerateParameters(self.base_models()[0], "Hello", "", max_tokens=1)
            async for _ in self.generate(parameters):
                pass
        from sglang.srt.managers.tokenizer_manager import ServerStatus

        manager.server_status = ServerStatus.Up
        await manager.freeze_gc()

    async def _read_limits(self) -> None:
        from sglang.srt.runtime_context import get_lora

        lora = get_lora()
        self.supports_lora = bool(lora.enable_lora)
        if self.supports_lora:
            section = self._settings.sglang.lora
            rank = lora.max_lora_rank or section.max_lora_rank
            self._limits = await asyncio.to_thread(
                adapter_limits,
                self._manager.model_path,
                lora,
                min(rank, section.max_lora_rank) if section.enabled else rank,
            )

    async def _tell_progress(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            log.info(
                "engine starting",
                extra={
                    "elapsed_s": round(time.monotonic() - started),
                    "phase": self._starting.phase if self._starting is not None else "",
                    "engine_says": await asyncio.to_thread(self._output.last_line, self._log_start_bytes),
                },
            )

    async def stop(self) -> None:
        for part in (self._adapters, self._metering):
            if part is not None:
                await part.close()
        self._adapters = self._metering = None
        await self._lifespan.aclose()
        if self._outputs is not None:
            self._outputs.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._outputs
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(self._manager._subprocess_watchdog.stop)
            engine.send_to_rpc.close(linger=0)
        elif self._starting is not None:
            await self._starting.abandon()
        await asyncio.to_thread(reap_own)
        if engine is not None:
            await asyncio.to_thread(remove_files, engine.port_args)
        if self._starting is not None:
            self._starting.end()
        self._output.release()

    async def wait_dead(self) -> str:
        rotate_at = time.monotonic() + _ROTATE_EVERY_S
        processes = self._manager._subprocess_watchdog._processes
        while not self._failed.is_set() and all(process.is_alive() for process in processes):
            if self._outputs is not None and self._outputs.done():
                log.error("SGLang's outputs cannot be read", exc_info=self._outputs.exception())
                return "SGLang's outputs cannot be read; the host's log says why"
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_EVERY_S):
                    await self._failed.wait()
            if time.monotonic() > rotate_at:
                await asyncio.to_thread(self._output.rotate)
                rotate_at = time.monotonic() + _ROTATE_EVERY_S
        if self._metering is not None:
            self._metering.fail_all("The engine died.")
        cause = await asyncio.to_thread(self._output.cause, self._log_start_bytes)
        return f"SGLang's engine died: {cause or 'no error in its log; was it killed (out of memory)?'}"

    # What it serves.

    def base_models(self) -> Sequence[str]:
        return [self._manager.served_model_name] if self._manager is not None else []

    async def model_cards(self) -> Sequence[ModelCard]:
        return model_cards(self._manager, self._adapters) if self._adapters is not None else []

    def load(self) -> EngineLoad:
        if self._engine is None or self._manager is None:
            return EngineLoad()
        # The scheduler's figures are as old as its last step; what the front end holds is exact.
        unfinished = len(self._manager.rid_to_state)
        loads = self._manager.load_snapshot_reader.read_all() if unfinished else ()
        if not loads:
            return EngineLoad(running=unfinished)
        running = max(min(sum(load.num_running_reqs for load in loads), unfinished), 0)
        usage = sum(load.token_usage for load in loads) / len(loads)
        return EngineLoad(running, unfinished - running, min(usage, 1.0))

    async def generate(self, parameters: GenerateParameters) -> AsyncGenerator[GeneratedText, None]:
        from fastapi import HTTPException
        from sglang.srt.managers.io_struct import GenerateReqInput

        sampling = {
            "max_new_tokens": parameters.max_tokens,
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            "sampling_seed": parameters.seed,
            "stop": list(parameters.stop) or None,
        }
        defaults = self._manager.model_config.get_default_sampling_params()
        given = {name: value for name, value in sampling.items() if value is not None}
        is_text = isinstance(parameters.prompt, str)
        request = GenerateReqInput(
            text=parameters.prompt if is_text else None,
            input_ids=None if is_text else list(parameters.prompt),
            # Without a limit of its own SGLang stops after 128 tokens.
            sampling_params={**defaults, "max_new_tokens": None, **given},
            lora_path=adapter_of(parameters.model, self._manager.served_model_name),
            stream=True,
        )
        said = told = 0
        try:
            async with aclosing(self._manager.generate_request(request)) as outputs:
                async for output in outputs:
                    finish = output["meta_info"]["finish_reason"] or {}
                    if finish.get("type") == "abort" and (status := finish.get("status_code")):
                        raise (InvalidRequest if status < 500 else EngineDied)(finish.get("message"))
                    text, ids = output["text"], list(output["output_ids"])
                    if not self._manager.incremental_streaming_output:
                        text, said = text[said:], len(text)
                        ids, told = ids[told:], len(ids)
                    yield GeneratedText(text, ids, finish.get("type") or "")
        except HTTPException as e:
            raise (ModelNotFound if e.status_code == 404 else InvalidRequest)(e.detail) from None
        except ValueError as e:
            raise InvalidRequest(str(e)) from None

    # LoRA.

    def adapter_limits(self) -> AdapterLimits:
        return self._limits

    async def load_adapter(self, name: str, path: Path) -> None:
        await self._lora().load(name, path)

    async def remove_adapter(self, name: str) -> None:
        await self._lora().remove(name)

    async def pin_adapter(self, name: str) -> None:
        raise InvalidRequest("SGLang pins an adapter only while it loads it; adapters stay in memory anyway.")

    def _lora(self) -> SglangAdapters:
        if self._adapters is None or not self.supports_lora:
            raise InvalidRequest("This engine takes no adapters.")
        return self._adapters


async def _not_started(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the engine is not started")


def _with_key(application: AsgiApp, key: str) -> AsgiApp:
    header = (b"authorization", b"Bearer " + key.encode())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name == b"authorization" for name, _ in scope.get("headers", ())):
            scope = {**scope, "headers": [*scope.get("headers", ()), header]}
        await application(scope, receive, send)

    return app

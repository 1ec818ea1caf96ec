"""vLLM in this process: the engine, its own OpenAI application, its adapters and its tokens.

Only the engine's cores and workers are processes of their own. Written against and tested with vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm_proxy.common.errors import InvalidRequest, ModelNotFound
from vllm_proxy.common.response_ids import ResponseIds
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
from vllm_proxy.engine_host.engines.start_command import StartCommand
from vllm_proxy.engine_host.engines.vllm_command import read_command
from vllm_proxy.engine_host.engines.vllm_lora import VllmAdapters, take_over
from vllm_proxy.engine_host.engines.vllm_process import set_environment
from vllm_proxy.engine_host.engines.vllm_responses import OwnedResponses
from vllm_proxy.engine_host.engines.vllm_start import EngineStart
from vllm_proxy.engine_host.engines.vllm_usage import meter_engine

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 10.0
_WATCH_EVERY_S = 0.25
_ROTATE_EVERY_S = 30.0
_SHUTDOWN_TIMEOUT_S = 10.0


class VllmEngine:
    """base.Engine over vLLM's AsyncLLM. Raises ConfigError for a start command that cannot be used.

    `app` adds the key of a start command's `--api-key` to requests without one; `native_app`, for the engine's own
    port, is vLLM's application as it is.
    """

    kind = "vllm"

    def __init__(self, settings: Settings, resolve: ResolveAdapter) -> None:
        self._settings = settings
        self._resolve = resolve
        self._output = EngineOutput(settings.vllm.log_file, settings.logs.max_bytes, settings.logs.backups)
        self._starting: EngineStart | None = None
        self._args = Namespace()
        self._engine: Any = None
        self._models: Any = None
        self._adapters: VllmAdapters | None = None
        self._response_ids: ResponseIds | None = None
        self._limits = AdapterLimits(max_rank=0)
        self._scheduler_stats: Any = None
        self._lifespan = AsyncExitStack()
        self._log_start_bytes = 0
        self.version = ""
        #: What the configuration says until the engine has started.
        self.supports_lora = settings.vllm.lora.enabled
        self.app: AsgiApp = _not_started
        self.native_app: AsgiApp = _not_started

    def use_response_ids(self, ids: ResponseIds) -> None:
        self._response_ids = ids

    # Life.

    async def start(self) -> None:
        vllm = self._settings.vllm
        if vllm.launch_mode != "python_api":
            raise ConfigError(f"vllm.launch_mode: this adapter runs python_api, not {vllm.launch_mode}")
        text = vllm.command()
        if not text:
            raise ConfigError(f"vllm.start_cmd: empty, and {vllm.start_cmd_file} has no command")
        command = with_tracing(read_command(text), self._settings.tracing, self.kind, vllm.extra_env)
        for pid in await asyncio.to_thread(reap_leftovers):
            log.warning("killed an engine process whose host is gone", extra={"pid": pid})
        set_environment(vllm)
        for name, value in command.environment.items():
            os.environ[name] = value
        self._log_start_bytes = self._output.size_bytes()
        self._output.redirect()
        progress = asyncio.create_task(self._tell_progress(), name="vllm start progress")
        try:
            await self._start(command)
        except (ConfigError, EngineDied):
            raise
        except Exception as e:
            log.debug("engine start failed", exc_info=True)
            cause = self._output.cause(self._log_start_bytes) or f"{type(e).__name__}: {e}".splitlines()[0][:500]
            raise EngineDied(f"vLLM did not start: {cause} (see {self._output.path})") from e
        finally:
            progress.cancel()
        log.info("engine ready", extra={"engine": self.kind, "version": self.version, "models": self.base_models()})

    async def _start(self, command: StartCommand) -> None:
        self._starting = EngineStart(command, self._settings.vllm.lora)
        started = await self._starting.run()
        self._engine, self._args, self.version = started.engine, started.arguments, started.version
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        await self._engine.reset_mm_cache()
        tasks = await self._engine.get_supported_tasks()
        # Importing vLLM's SageMaker routes rearranges the root logger.
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        application = build_app(self._args, tasks, self._engine.model_config)
        root.handlers[:] = handlers
        root.setLevel(level)
        # vLLM asks its HTTP server to exit when the engine is dead; here wait_dead() does.
        application.state.server = SimpleNamespace(should_exit=False)
        await init_app_state(self._engine, application.state, self._args, tasks)
        self._models = application.state.openai_serving_models
        responses = getattr(application.state, "openai_serving_responses", None)
        if responses is not None and self._response_ids is not None:
            limits = self._settings.engine_host
            OwnedResponses(
                responses,
                self._response_ids,
                limits.stored_responses,
                limits.stored_response_ttl_s,
                time.monotonic,
            )
        # What uvicorn would do for vLLM: periodic statistics, freezing the heap.
        await self._lifespan.enter_async_context(application.router.lifespan_context(application))
        await self._wire()
        self.native_app = application
        self.app = _with_key(application, self._args.api_key) if self._args.api_key else application

    async def _wire(self) -> None:
        """Puts the host's own parts into the engine: adapters, counting, load."""
        lora_config = self._engine.vllm_config.lora_config
        self._adapters = VllmAdapters(
            self._engine,
            self._models,
            memory_slots=lora_config.max_cpu_loras if lora_config else 0,
            drain_timeout_s=self._settings.engine_host.adapter_drain_timeout_s,
        )
        meter_engine(self._engine, self._adapters)
        self._listen_to_scheduler()
        take_over(self._models, self._resolve)
        self.supports_lora = lora_config is not None
        if lora_config is not None:
            facts = (await self._engine.collective_rpc("vllm_proxy_lora_facts"))[0]
            if facts["rows_skipped"] is False:
                raise EngineDied("vLLM's LoRA operators would answer base requests with adapters' weights")
            section = self._settings.vllm.lora
            self._limits = AdapterLimits(
                max_rank=min(lora_config.max_lora_rank, section.max_lora_rank)
                if section.enabled
                else lora_config.max_lora_rank,
                target_modules=frozenset(facts["modules"]),
                shapes={name: (size[0], size[1]) for name, size in facts["shapes"].items()},
            )

    def _listen_to_scheduler(self) -> None:
        processor = self._engine.output_processor
        original = processor.update_scheduler_stats

        def update_scheduler_stats(stats: Any) -> None:
            if stats is not None:
                self._scheduler_stats = stats
            original(stats)

        processor.update_scheduler_stats = update_scheduler_stats

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
        if self._adapters is not None:
            await self._adapters.close()
            self._adapters = None
        await self._lifespan.aclose()
        engine, self._engine = self._engine, None
        if engine is not None:
            if engine.output_handler is not None:
                engine.output_handler.cancel()  # it would report the end of the cores as a fault
            await asyncio.to_thread(engine.shutdown, timeout=_SHUTDOWN_TIMEOUT_S)
        elif self._starting is not None:
            await self._starting.abandon()
        await asyncio.to_thread(reap_own)
        if self._starting is not None:
            self._starting.end()
        self._output.release()

    async def wait_dead(self) -> str:
        rotate_at = time.monotonic() + _ROTATE_EVERY_S
        while not self._engine.errored:
            await asyncio.sleep(_WATCH_EVERY_S)
            if time.monotonic() > rotate_at:
                await asyncio.to_thread(self._output.rotate)
                rotate_at = time.monotonic() + _ROTATE_EVERY_S
        cause = await asyncio.to_thread(self._output.cause, self._log_start_bytes)
        return f"vLLM's engine died: {cause or 'no error in its log; was it killed (out of memory)?'}"

    # What it serves.

    @property
    def native_api_keys(self) -> Sequence[str]:
        """What the start command's `--api-key` says."""
        return self._args.api_key or ()

    def base_models(self) -> Sequence[str]:
        return [base.name for base in self._models.base_model_paths] if self._models is not None else []

    async def model_cards(self) -> Sequence[ModelCard]:
        served = await self._models.show_available_models()
        return [
            ModelCard(card.id, card.model_dump_json().encode(), base=card.parent or "")
            for card in sorted(served.data, key=lambda card: card.parent is not None)
        ]

    def load(self) -> EngineLoad:
        if self._engine is None:
            return EngineLoad()
        # The scheduler's figures are as old as its last step; what the front end holds is exact.
        unfinished = self._engine.output_processor.get_num_unfinished_requests()
        stats = self._scheduler_stats
        if stats is None or not unfinished:
            return EngineLoad(running=unfinished)
        running = max(min(stats.num_running_reqs, unfinished), 0)
        return EngineLoad(running, unfinished - running, stats.kv_cache_usage)

    async def generate(self, parameters: GenerateParameters) -> AsyncGenerator[GeneratedText, None]:
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError, VLLMNotFoundError
        from vllm.sampling_params import RequestOutputKind

        given: dict[str, Any] = {
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            "seed": parameters.seed,
        }
        defaults = self._engine.model_config.get_diff_sampling_param()
        values = {k: v for k, v in defaults.items() if k != "max_tokens"}
        values.update((k, v) for k, v in given.items() if v is not None)
        prompt = parameters.prompt
        try:
            outputs = self._engine.generate(
                prompt if isinstance(prompt, str) else TokensPrompt(prompt_token_ids=list(prompt)),
                SamplingParams(
                    **values,
                    max_tokens=parameters.max_tokens,
                    stop=list(parameters.stop) or None,
                    output_kind=RequestOutputKind.DELTA,
                ),
                parameters.request_id,
                lora_request=await self._find_adapter(parameters.model),
            )
            try:
                async for output in outputs:
                    for sequence in output.outputs:
                        yield GeneratedText(sequence.text, list(sequence.token_ids), sequence.finish_reason or "")
            finally:
                await outputs.aclose()
        except VLLMNotFoundError as e:
            raise ModelNotFound(str(e)) from None
        except (VLLMClientError, ValueError) as e:
            raise InvalidRequest(str(e)) from None

    async def _find_adapter(self, model: str) -> Any:
        """The serving layer's LoRARequest for a name; None for a base model. Raises ModelNotFound."""
        if self._models.is_base_model(model):
            return None
        if model not in self._models.lora_requests and not await self._resolve(model):
            raise ModelNotFound(f"The model `{model}` does not exist.")
        request = self._models.lora_requests.get(model)
        if request is None:
            raise ModelNotFound(f"The model `{model}` does not exist.")
        return request

    # LoRA.

    def adapter_limits(self) -> AdapterLimits:
        return self._limits

    async def load_adapter(self, name: str, path: Path) -> None:
        await self._lora().load(name, path)

    async def remove_adapter(self, name: str) -> None:
        await self._lora().remove(name)

    async def pin_adapter(self, name: str) -> None:
        await self._lora().pin(name)

    def _lora(self) -> VllmAdapters:
        if self._adapters is None or not self.supports_lora:
            raise InvalidRequest("This engine takes no adapters.")
        return self._adapters


async def _not_started(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the engine is not started")


def _with_key(application: AsgiApp, keys: Sequence[str]) -> AsgiApp:
    header = (b"authorization", b"Bearer " + keys[0].encode())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name == b"authorization" for name, _ in scope.get("headers", ())):
            scope = {**scope, "headers": [*scope.get("headers", ()), header]}
        await application(scope, receive, send)

    return app

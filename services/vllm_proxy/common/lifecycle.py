"""How a service begins and ends.

Start: config -> logging -> build -> listen (NOT_SERVING) -> ready -> SERVING. Stop on SIGTERM or SIGINT:
NOT_SERVING -> drain within a deadline -> abort what is left -> exit. A second signal exits at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from vllm_proxy.common.logging import setup_logging
from vllm_proxy.common.settings import ConfigError, LoadedSettings, enter_root, load_settings

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("config/config.yaml")
FORCED_EXIT = 130
#: Python's own (700, 10, 10) walk the objects of every running request again and again, for hardly any garbage: a
#: request leaves no cycles behind.
GC_THRESHOLDS = (50_000, 50, 50)


class StopSignal:
    """Set by the first SIGTERM or SIGINT. The second ends the process. SIGHUP sets `hangup`, which whoever reads the
    configuration anew clears."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.hangup = asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)
        loop.add_signal_handler(signal.SIGHUP, self.hangup.set)

    def _received(self, number: signal.Signals) -> None:
        if self._event.is_set():
            log.warning("forced stop", extra={"signal": number.name})
            os._exit(FORCED_EXIT)
        log.info("stopping", extra={"signal": number.name})
        self._event.set()

    def request(self) -> None:
        """Asks for a stop from inside the process."""
        self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()


Main = Callable[[LoadedSettings, StopSignal], Awaitable[int]]


def argument_parser(service: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m vllm_proxy.{service}")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="configuration file (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="wins over the file: a dotted key and a value in YAML; may stand more than once",
    )
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    return parser


def load_or_exit(args: argparse.Namespace) -> LoadedSettings:
    """The settings of `--config`. Exits with 2 and one line per fault; with 0 after `--check-config`."""
    try:
        loaded = load_settings(args.config, args.set)
    except ConfigError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    if args.check_config:
        for warning in loaded.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{loaded.path}: good")
        sys.exit(0)
    enter_root(loaded)
    return loaded


def run_service(service: str, loaded: LoadedSettings, main: Main) -> int:
    """Runs a service until it ends; returns its exit status. A ConfigError at start is one line and status 2."""
    # Until there is a loop to take it: it must not end a process that it means to have reloaded.
    signal.signal(signal.SIGHUP, lambda number, frame: None)
    setup_logging(service, loaded.settings.log_level_of(service))
    for warning in loaded.warnings:
        log.warning("configuration", extra={"detail": warning})

    async def supervised() -> int:
        stop = StopSignal()
        stop.install()
        return await main(loaded, stop)

    # What was imported stays for good, so the collector need not look at it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return uvloop.run(supervised())
    except ConfigError as e:
        log.error("cannot start", extra={"detail": str(e)})
        return 2


def spawn(tasks: set[asyncio.Task[Any]], coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """Starts a task that `tasks` keeps alive; an exception that nobody awaits is logged."""
    task = asyncio.create_task(coroutine, name=name)
    tasks.add(task)

    def done(ended: asyncio.Task[Any]) -> None:
        tasks.discard(ended)
        if not ended.cancelled() and (error := ended.exception()) is not None:
            log.error("task failed", exc_info=error, extra={"task": name})

    task.add_done_callback(done)
    return task


async def cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits until they have ended."""
    pending = list(tasks)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)

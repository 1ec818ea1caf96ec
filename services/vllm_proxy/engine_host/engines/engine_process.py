"""An engine that the host runs by its start command: starting, adopting, watching, ending it and all its processes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from vllm_proxy.common import pid_record
from vllm_proxy.common.pid_record import PidRecord
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE, ConfigError, EngineProcess
from vllm_proxy.engine_host.engines.base import EngineDied
from vllm_proxy.engine_host.engines.cli_command import CliCommand
from vllm_proxy.engine_host.engines.engine_output import EngineOutput
from vllm_proxy.engine_host.engines.start_diagnosis import diagnose

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 10.0
_WATCH_EVERY_S = 0.2
_ROTATE_EVERY_S = 30.0
#: The host's own business.
_NOT_INHERITED = (INTERNAL_TOKEN_VARIABLE, "PROMETHEUS_MULTIPROC_DIR")


class RunningProcess:
    """The engine's process group. `name` is for people; `is_healthy` raises EngineDied while the engine is not."""

    def __init__(
        self,
        name: str,
        command: CliCommand,
        environment: Mapping[str, str],
        output: EngineOutput,
        pid_file: Path,
        settings: EngineProcess,
        is_healthy: Callable[[], Awaitable[None]],
    ) -> None:
        """`environment` is added to the host's own."""
        self._name = name
        self._command = command
        self._environment = {
            **{key: value for key, value in os.environ.items() if key not in _NOT_INHERITED},
            **environment,
            **command.environment,
        }
        self._digest = _digest(command, environment)
        self._output = output
        self._pid_file = pid_file
        self._settings = settings
        self._is_healthy = is_healthy
        self._record: PidRecord | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0

    async def start(self) -> bool:
        """Starts it and waits until it is healthy; adopts one of an earlier host instead if that was started by the
        same command and is healthy. Returns whether it adopted one. Raises EngineDied, ConfigError."""
        if await self._adopt():
            return True
        await asyncio.to_thread(self._spawn)
        progress = asyncio.create_task(self._tell_progress(), name="engine start progress")
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                while not await self._answers():
                    if not self.is_running:
                        raise EngineDied(f"{self._name} did not start: {await self.cause()}")
                    await asyncio.sleep(_WATCH_EVERY_S)
        except TimeoutError:
            raise EngineDied(
                f"{self._name} is not healthy after {self._settings.start_timeout_s:g} s (see {self._output.path})"
            ) from None
        finally:
            progress.cancel()
        return False

    @property
    def is_running(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._record is not None and self._record.is_alive

    async def wait_ended(self) -> str:
        """Returns why, once it has ended. Rotates its log meanwhile."""
        rotate_at = time.monotonic() + _ROTATE_EVERY_S
        while self.is_running:
            await asyncio.sleep(_WATCH_EVERY_S)
            if time.monotonic() > rotate_at:
                await asyncio.to_thread(self._output.rotate)
                rotate_at = time.monotonic() + _ROTATE_EVERY_S
        return f"{self._name} died: {await self.cause()}"

    async def cause(self) -> str:
        status = self._child.poll() if self._child is not None else None
        lines = await asyncio.to_thread(self._output.lines, self._log_start_bytes)
        return f"{diagnose(status, lines)} (see {self._output.path})"

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL, to the whole group. Safe to call twice."""
        record, self._record = self._record, None
        if record is not None:
            await asyncio.to_thread(record.end, self._settings.stop_timeout_s)
            self._pid_file.unlink(missing_ok=True)
        if self._child is not None:
            await asyncio.to_thread(self._child.wait)

    async def _adopt(self) -> bool:
        record = pid_record.read(self._pid_file)
        if record is None:
            return False
        if record.is_alive and record.command_digest == self._digest and await self._answers():
            self._record = record
            self._log_start_bytes = self._output.size_bytes()
            log.info("engine adopted", extra={"engine": self._name, "pid": record.pid})
            return True
        if left := await asyncio.to_thread(record.group):
            why = "it does not answer" if record.command_digest == self._digest else "its command was another"
            log.warning("ending an engine of an earlier host", extra={"pids": left, "detail": why})
            await asyncio.to_thread(record.end, self._settings.stop_timeout_s)
        return False

    def _spawn(self) -> None:
        self._require_free_port()
        path = self._output.path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._output.rotate()
        self._log_start_bytes = self._output.size_bytes()
        with path.open("ab") as file:
            try:
                self._child = subprocess.Popen(
                    self._command.words,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            except OSError as e:
                raise ConfigError(f"start_cmd: {self._command.words[0]}: {e.strerror}") from None
        self._record = pid_record.record_of(self._child.pid, self._digest)
        if self._record is not None:
            self._record.write(self._pid_file)
        log.info("engine started", extra={"engine": self._name, "pid": self._child.pid, "log": str(path)})

    def _require_free_port(self) -> None:
        host, port = self._command.host, self._command.port
        try:
            with socket.create_connection((host, port), timeout=1.0):
                pass
        except OSError:
            return
        raise EngineDied(
            f"{self._name} cannot start: port {port} is in use by another program (who: ss -ltnp 'sport = :{port}')"
        )

    async def _answers(self) -> bool:
        try:
            await self._is_healthy()
        except EngineDied:
            return False
        return True

    async def _tell_progress(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_EVERY_S)
            log.info(
                "engine starting",
                extra={
                    "elapsed_s": round(time.monotonic() - started),
                    "engine_says": await asyncio.to_thread(self._output.last_line, self._log_start_bytes),
                },
            )


def _digest(command: CliCommand, environment: Mapping[str, str]) -> str:
    """Tells what is started from anything else that could be."""
    parts = [*command.words, *sorted(f"{k}={v}" for k, v in {**environment, **command.environment}.items())]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()

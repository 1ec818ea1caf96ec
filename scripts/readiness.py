"""Waits until what was started answers, saying what it waits for; tells a start that cannot succeed and why."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scripts.supervisor_client import Supervisor, SupervisorGone
from scripts.supervisor_config import Program, engine_section

from vllm_proxy.common.engine_faults import likely_cause
from vllm_proxy.common.rpc.channel import open_blocking_channel
from vllm_proxy.common.settings import Grpc, LoadedSettings

POLL_S = 0.25
CALL_TIMEOUT_S = 2.0
#: Without a terminal, a line is printed when the awaited service changes, and so often.
LINE_INTERVAL_S = 10.0
TAIL_BYTES = 64 * 1024

#: An engine that dies while it starts will do so again; other services may wait for each other.
ENGINE_DEATHS = 1
SERVICE_DEATHS = 2


class LogMarks:
    """How long logs are before a start: what they say after is about it."""

    def __init__(self, loaded: LoadedSettings, programs: Sequence[Program]) -> None:
        self._root = loaded.root
        self._sizes = {path: _size(loaded.root / path) for program in programs for path in logs_of(loaded, program)}

    def new_text(self, path: Path) -> str:
        """The end of what was added since. A log that was rotated meanwhile is new as a whole."""
        size = _size(self._root / path)
        mark = self._sizes.get(path, 0)
        begin = mark if mark <= size else 0
        try:
            with (self._root / path).open("rb") as file:
                file.seek(max(begin, size - TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""


class StartFailed(Exception):
    """A service cannot start. The message names it, its last error, the likely cause and its log."""


class Stopped(Exception):
    """Somebody stopped the services meanwhile."""


def wait_ready(
    loaded: LoadedSettings,
    supervisor: Supervisor,
    wanted: Sequence[Program],
    marks: LogMarks,
    timeout_s: float | None = None,
    answers: Callable[[Program], bool] | None = None,
) -> None:
    """Returns when all of `wanted` answer, as `answers` finds out. Raises StartFailed, Stopped or TimeoutError."""
    started_at = time.monotonic()
    progress = _Progress()
    deaths = _Deaths(supervisor)
    waiting = list(wanted)
    serves_models = any(program.engine for program in wanted)
    grpc_settings = loaded.settings.grpc
    answers = answers or (lambda program: is_ready(program, grpc_settings, serves_models))
    try:
        while True:
            waiting = [program for program in waiting if not answers(program)]
            if not waiting:
                return
            if not supervisor.is_running():
                raise Stopped
            if (failed := deaths.fatal(waiting)) is not None:
                raise StartFailed(explain(loaded, failed, marks))
            first = waiting[0]
            log = awaited_log(loaded, first, marks)
            elapsed_s = time.monotonic() - started_at
            progress.show(first.name, f"{elapsed_s:4.0f} s  waiting for {first.name}{log}")
            if timeout_s is not None and elapsed_s > timeout_s:
                raise TimeoutError(f"{first.name} does not answer after {timeout_s:.0f} s{log}")
            time.sleep(POLL_S)
    finally:
        progress.clear()


def is_ready(program: Program, grpc_settings: Grpc, serves_models: bool = True) -> bool:
    """Whether a service answers that it serves; an edge without engines serves when it answers at all."""
    if program.name == "edge":
        status = _http_status(f"{program.address}/health")
        return status == 200 or (status is not None and not serves_models)
    if program.name == "nginx":
        return _accepts(program.address)
    with open_blocking_channel(program.address, grpc_settings) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=False
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def explain(loaded: LoadedSettings, program: Program, marks: LogMarks) -> str:
    """Why a service does not start, from its log and its engine's output."""
    logs = logs_of(loaded, program)
    text = "\n".join(map(marks.new_text, logs))
    cause = likely_cause(text)
    return "\n".join(
        [
            f"{program.name} cannot start.",
            *(f"  | {line}" for line in list(dict.fromkeys(_errors(marks.new_text(logs[-1]))))[-3:]),
            *([f"  likely cause: {cause}"] if cause else []),
            f"  log: {', '.join(map(str, logs))}",
        ]
    )


def awaited_log(loaded: LoadedSettings, program: Program, marks: LogMarks) -> str:
    """Where to look meanwhile and, for an engine, the newest line there."""
    path = logs_of(loaded, program)[0]
    lines = [line for line in re.split(r"[\r\n]+", marks.new_text(path)) if line.strip()]
    newest = f": {lines[-1].rpartition('] ')[2].strip()[:70]}" if lines and program.engine else ""
    return f" ({path}{newest})"


def logs_of(loaded: LoadedSettings, program: Program) -> list[Path]:
    """Relative to the root: its engine's own output, if there is one, and its log."""
    settings = loaded.settings
    section = engine_section(settings, program)
    output = [section.log_file] if section is not None and section.launch_mode != "attached" else []
    return [*output, settings.logs.dir / (program.error_log or program.log_names[0])]


class _Deaths:
    """Counts how often each process was started anew."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._pids: dict[str, set[int]] = {}

    def fatal(self, waiting: Sequence[Program]) -> Program | None:
        """A program that will not come up by itself any more."""
        by_name = {program.name: program for program in waiting}
        try:
            processes = self._supervisor.processes()
        except SupervisorGone:
            raise Stopped from None
        for process in processes:
            program = by_name.get(process.service)
            if program is None:
                continue
            if process.state in ("FATAL", "STOPPED"):
                return program
            pids = self._pids.setdefault(process.name, set())
            if process.pid:
                pids.add(process.pid)
            if len(pids) > (ENGINE_DEATHS if program.engine else SERVICE_DEATHS):
                return program
        return None


class _Progress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._topic = ""
        self._shown_at = 0.0

    def show(self, topic: str, text: str) -> None:
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif topic != self._topic or now - self._shown_at >= LINE_INTERVAL_S:
            self._topic, self._shown_at = topic, now
            print(text, flush=True)

    def clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)


def _errors(text: str) -> list[str]:
    """What a service's JSON log says went wrong, and lines that are not JSON (a crash before the log began)."""
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            if line.strip():
                found.append(line.strip()[:200])
            continue
        if isinstance(entry, dict) and entry.get("level") in ("ERROR", "CRITICAL"):
            shown = {k: v for k, v in entry.items() if k not in ("time", "level", "service", "logger", "event")}
            trace = str(shown.pop("traceback", "")).strip().splitlines()
            details = [*(f"{k}={v}" for k, v in shown.items()), *trace[-1:]]
            found.append(f"{entry.get('event')}: {', '.join(details)}"[:300])
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CALL_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _http_status(url: str) -> int | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=CALL_TIMEOUT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return None

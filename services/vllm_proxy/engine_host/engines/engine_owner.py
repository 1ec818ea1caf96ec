"""No engine process outlives its host: the mark that an engine's processes carry, and killing those that are left.

Standard library only: it is also imported inside the engines' own processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from vllm_proxy.common.pid_record import process_stat

#: Set by the host for its engine's processes: "pid:start time" of the host. Leftovers are found by it.
OWNER_VARIABLE = "VLLM_PROXY_ENGINE_OWNER"


def own_mark() -> str:
    """This process as OWNER_VARIABLE names it; a process id alone may be used again."""
    return f"{os.getpid()}:{_start_time(os.getpid())}"


def reap_leftovers() -> list[int]:
    """Kills engine processes whose host is dead; returns their ids. Blocks for up to five seconds."""
    return _kill(lambda mark: not _alive(mark))


def reap_own() -> list[int]:
    """Kills what is left of this process's engine."""
    own = own_mark()
    return _kill(lambda mark: mark == own)


def _kill(wanted: Callable[[str], bool]) -> list[int]:
    found = [pid for pid, mark in _marked() if wanted(mark)]
    for pid in found:
        _signal(pid)
    deadline = time.monotonic() + 5
    while any(_running(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _marked() -> list[tuple[int, str]]:
    """Every process that carries OWNER_VARIABLE, this one excepted."""
    prefix = OWNER_VARIABLE.encode() + b"="
    marked = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # another user's, or gone
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(prefix):
                marked.append((int(entry.name), variable.removeprefix(prefix).decode(errors="replace")))
    return marked


def _alive(mark: str) -> bool:
    pid, _, started = mark.partition(":")
    return pid.isdigit() and _start_time(int(pid)) == started


def _running(pid: int) -> bool:
    state = process_stat(pid)
    return state is not None and state[0] != "Z"


def _start_time(pid: int) -> str | None:
    fields = process_stat(pid)
    return fields[19] if fields else None

"""Processes by what /proc says: who started whom, and whether a pid is still the process that was meant."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
#: A pid file is written by its process as it starts; one that names a process of another time names a stranger.
PID_FILE_TOLERANCE_S = 10.0
#: What stands in the command line of everything that this project starts.
OWN_COMMANDS = ("vllm_proxy.", "supervisor.supervisord")


@dataclass(frozen=True, slots=True)
class Process:
    """`start_ticks` tells it from a later process of the same pid."""

    pid: int
    start_ticks: int


def read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def find(pid: int) -> Process | None:
    """The live process of this pid; none if it has ended, even if nobody waited for it yet."""
    fields = _stat(pid)
    if fields is None or (fields[0] in "ZX" and not _has_other_threads(pid)):
        return None
    return Process(pid, int(fields[19]))


def is_alive(process: Process) -> bool:
    return find(process.pid) == process


def owner(pid_file: Path) -> Process | None:
    """The process that wrote a pid file, if it lives and is one of this project's."""
    pid = read_pid(pid_file)
    process = find(pid) if pid else None
    if process is None:
        return None
    try:
        command = (PROC / str(process.pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        apart_s = abs(pid_file.stat().st_mtime - started_at(process))
    except OSError:
        return None
    is_own = any(mark in command for mark in OWN_COMMANDS)
    return process if is_own and apart_s < PID_FILE_TOLERANCE_S else None


def with_descendants(roots: Iterable[Process]) -> set[Process]:
    """The processes and all that they started, directly or not."""
    children: dict[int, list[Process]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(Process(int(entry.name), int(fields[19])))
    found: set[Process] = set()
    waiting = [process for process in roots if is_alive(process)]
    while waiting:
        process = waiting.pop()
        if process not in found:
            found.add(process)
            waiting += children.get(process.pid, ())
    return found


def terminate(processes: Iterable[Process], patience_s: float) -> None:
    """SIGTERM, and SIGKILL for those that still live after `patience_s`."""
    living = [process for process in processes if is_alive(process)]
    _signal(living, signal.SIGTERM)
    if not wait_ended(living, patience_s):
        kill(living)


def kill(processes: Iterable[Process]) -> None:
    living = [process for process in processes if is_alive(process)]
    _signal(living, signal.SIGKILL)
    wait_ended(living, 5.0)


def wait_ended(processes: Iterable[Process], timeout_s: float) -> bool:
    """True if all have ended in time."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while left := [process for process in left if is_alive(process)]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; a command's name may hold spaces and brackets."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _has_other_threads(pid: int) -> bool:
    """Threads that outlive the first one for a moment still hold the process's sockets."""
    try:
        return len(list((PROC / str(pid) / "task").iterdir())) > 1
    except OSError:
        return False


def started_at(process: Process) -> float:
    uptime_s = float((PROC / "uptime").read_text().split()[0])
    return time.time() - uptime_s + process.start_ticks / os.sysconf("SC_CLK_TCK")

"""The pid file of an engine that is run by its start command, and whether the process it names is still that one.

Three lines: the process id, which is also that of its group; the kernel's start time of the process; the SHA-256 of
what was started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class PidRecord:
    pid: int
    start_ticks: int
    command_digest: str = ""

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(path.name + ".new")
        scratch.write_text(f"{self.pid}\n{self.start_ticks}\n{self.command_digest}\n")
        scratch.replace(path)

    @property
    def is_alive(self) -> bool:
        """Whether the process lives and is no later one of the same id."""
        fields = process_stat(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.start_ticks

    def group(self) -> list[int]:
        """The processes of its group, itself included. Empty also if the id is that of a stranger by now."""
        leader = process_stat(self.pid)
        if leader is not None and int(leader[19]) != self.start_ticks:
            return []
        members = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := process_stat(int(entry.name))) is not None:
                later = int(fields[19]) >= self.start_ticks
                if int(fields[2]) == self.pid and later and fields[0] not in "ZX":
                    members.append(int(entry.name))
        return members

    def end(self, patience_s: float) -> None:
        """SIGTERM to the group, SIGKILL after `patience_s`. Blocks until nothing of it is left."""
        self._signal(signal.SIGTERM)
        if not self._wait_ended(patience_s):
            self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._wait_ended(5.0)

    def _signal(self, number: signal.Signals) -> None:
        if self.group():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _wait_ended(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.group():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def record_of(pid: int, command_digest: str) -> PidRecord | None:
    """None if there is no such process."""
    fields = process_stat(pid)
    return PidRecord(pid, int(fields[19]), command_digest) if fields is not None else None


def read(path: Path) -> PidRecord | None:
    """None if the file is not there or not one of these."""
    try:
        pid, ticks, digest = path.read_text().split()
        return PidRecord(int(pid), int(ticks), digest)
    except (OSError, ValueError):
        return None


def process_stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; a command's name may hold spaces and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None

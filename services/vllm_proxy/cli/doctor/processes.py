"""Processes by what /proc says: whose they are, and who listens where."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_LISTENS = "0A"
_OWN = ("vllm_proxy", "supervisord", "nginx")


class Process(NamedTuple):
    pid: int
    command: str

    def is_ours(self, root: Path, *more_marks: str) -> bool:
        """Whether it is one of the services of the installation in `root`, or what they started."""
        try:
            in_root = (_PROC / str(self.pid) / "cwd").samefile(root)
        except OSError:
            return False
        return in_root and any(mark in self.command for mark in (*_OWN, *more_marks))

    def __str__(self) -> str:
        return f"{self.command[:80] or '?'} (pid {self.pid})"


def process(pid: int) -> Process | None:
    """None if it has ended."""
    try:
        state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, IndexError):
        return None
    return Process(pid, command) if state not in "ZX" else None


def listeners(port: int) -> dict[int, str]:
    """The sockets that listen on a TCP port: inode -> address."""
    found: dict[int, str] = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            lines = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, hex_port = fields[1].partition(":")
            if fields[3] == _LISTENS and int(hex_port, 16) == port:
                words = struct.unpack(
                    f"<{len(address) // 8}I",
                    b"".join(struct.pack(">I", int(address[i : i + 8], 16)) for i in range(0, len(address), 8)),
                )
                found[int(fields[9])] = socket.inet_ntop(family, struct.pack(f">{len(words)}I", *words))
    return found


def holders(inodes: Iterable[int]) -> Iterator[Process]:
    """The processes that hold these sockets, as far as this user may know."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for entry in _PROC.glob("[0-9]*"):
        try:
            # A process may have thousands: names only, no Path for each.
            held = any(os.readlink(entry / "fd" / name) in wanted for name in os.listdir(entry / "fd"))  # noqa: PTH115, PTH208
        except OSError:
            continue
        if held and (found := process(int(entry.name))) is not None:
            yield found

"""Follows log files by name, across their rotation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from vllm_proxy.cli.log_lines import Line, LineReader

POLL_S = 0.25


class FollowedLog:
    """One file. It may not be there yet, be moved away and begun anew, or be cut off."""

    def __init__(self, path: Path, from_bytes: int = 0) -> None:
        self._path = path
        self._partial = b""
        self._file: BinaryIO | None = None
        self._open(from_bytes)

    def new_lines(self) -> list[bytes]:
        """The lines that were completed since the last call."""
        read = self._file.read() if self._file is not None else b""
        # What was moved away is read to its end first.
        if not read and self._began_anew():
            self.close()
            self._open(0)
            read = self._file.read() if self._file is not None else b""
        *lines, self._partial = (self._partial + read).split(b"\n")
        return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, from_bytes: int) -> None:
        try:
            self._file = self._path.open("rb")
        except OSError:
            return
        self._file.seek(from_bytes)

    def _began_anew(self) -> bool:
        try:
            there = self._path.stat()
        except OSError:
            return False
        if self._file is None:
            return True
        held = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino) or there.st_size < self._file.tell()


class FollowedLogs:
    """Several, merged. `ends`: up to which byte each has been read; what is not named begins at its end."""

    def __init__(self, logs: Mapping[str, Path], ends: Mapping[str, int] | None = None) -> None:
        self._logs = {
            label: (LineReader(label), FollowedLog(path, (ends or {}).get(label, end_of(path))))
            for label, path in logs.items()
        }

    def new_lines(self) -> list[Line]:
        """What was written since the last call, in the order of its time."""
        lines = [reader.read(raw) for reader, log in self._logs.values() for raw in log.new_lines()]
        return sorted(lines, key=lambda line: line.at)

    def close(self) -> None:
        for _, log in self._logs.values():
            log.close()


def end_of(path: Path) -> int:
    """The size in bytes up to the last whole line; 0 if it is not there."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            while position > 0:
                step = min(4096, position)
                file.seek(position - step)
                if (newline := file.read(step).rfind(b"\n")) >= 0:
                    return position - step + newline + 1
                position -= step
    except OSError:
        pass
    return 0

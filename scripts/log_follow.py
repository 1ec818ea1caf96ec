"""Follows log files by name, across their rotation, each line with the service's name before it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

POLL_S = 0.25


class FollowedLog:
    """One file. It may not be there yet, be moved away and begun anew, or be cut off."""

    def __init__(self, path: Path, from_bytes: int = 0) -> None:
        self._path = path
        self._partial = b""
        self._file: BinaryIO | None = None
        self._open(from_bytes)

    def new_lines(self) -> list[str]:
        """The lines that were completed since the last call."""
        read = self._file.read() if self._file is not None else b""
        # What was moved away is read to its end first.
        if not read and self._began_anew():
            self.close()
            self._open(0)
            read = self._file.read() if self._file is not None else b""
        *lines, self._partial = (self._partial + read).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

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


def follow(logs: Mapping[str, Path], until: Callable[[], bool], last_lines: int = 0) -> None:
    """Prints what is appended to the logs until `until()`; first the last lines of each, if asked for."""
    width = max(map(len, logs), default=0)
    single = len(logs) == 1
    followed = {name: FollowedLog(path, _offset_of_last(path, last_lines)) for name, path in logs.items()}
    while True:
        ended = until()
        for name, log in followed.items():
            for line in log.new_lines():
                print(line if single else f"{name:<{width}} | {line}", flush=True)
        if ended:
            break
        time.sleep(POLL_S)
    for log in followed.values():
        log.close()


def _offset_of_last(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    try:
        with path.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            if lines <= 0:
                return end
            text = b""
            while position > 0 and text.count(b"\n") <= lines:
                step = min(64 * 1024, position)
                position -= step
                file.seek(position)
                text = file.read(step) + text
    except OSError:
        return 0
    kept = text.split(b"\n")[-lines - 1 :]
    return end - len(b"\n".join(kept))

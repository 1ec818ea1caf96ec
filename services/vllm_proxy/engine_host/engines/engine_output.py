"""What an engine prints: into a file of its own, rotated, and read for the cause of a death."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

#: How much of the end of a log is looked through for a cause.
_TAIL_BYTES = 256 * 1024
#: Errors that only say that another one was there before.
_CONSEQUENCES = (
    "RuntimeError: Engine core initialization failed",
    "RuntimeError: Initialization failed. Please see the error messages above",
)


def _without_vllm_fields(record: logging.LogRecord) -> bool:
    """vLLM's record factory adds this field to every record of the process; ours are no business of it."""
    vars(record).pop("vllm_process_name", None)
    return True


class EngineOutput:
    """Sends what an engine and its children print to a file; this process's JSON log stays where it was.

    Children inherit file descriptors 1 and 2, so these are what is turned round; log handlers that write to standard
    error get a private copy of the old one.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._stream: TextIO | None = None

    def redirect(self) -> None:
        if self._stream is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rotate()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        self._stream = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(self._stream)
                handler.addFilter(_without_vllm_fields)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        logging.logProcesses = logging.logMultiprocessing = True  # vLLM's own format names the process

    def release(self) -> None:
        """Gives Python's standard error back to the host. The descriptors stay: native libraries print at exit."""
        if self._stream is not None:
            sys.stderr.flush()
            sys.stderr = self._stream

    def rotate(self) -> None:
        """Copies the file away and empties it if it is too large: several processes append to it. Blocks."""
        try:
            if not self._max_bytes or self.path.stat().st_size < self._max_bytes:
                return
        except FileNotFoundError:
            return
        for number in range(self._backups - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        if self._backups:
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
        os.truncate(self.path, 0)

    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def cause(self, since_bytes: int = 0) -> str:
        """The likeliest cause of a death: the last line that names an error, without its prefix. May be empty."""
        for line in reversed(self.lines(since_bytes)):
            text = line.rpartition("] ")[2].strip() if "ERROR" in line else line.strip()
            head = text.partition(":")[0].rpartition(".")[2]
            named = head.isidentifier() and (head.endswith(("Error", "Exception")) or head == "Killed")
            if named and not text.startswith(_CONSEQUENCES):
                return text[:500]
        return ""

    def last_line(self, since_bytes: int = 0) -> str:
        lines = self.lines(since_bytes)
        return lines[-1].rpartition("] ")[2].strip()[:200] if lines else ""

    def lines(self, since_bytes: int) -> list[str]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - _TAIL_BYTES, min(since_bytes, size)))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()]

"""What a simulated engine produced, request by request, in files that survive kill -9 of the host.

`<pid>.jsonl` has a line when a request begins and one when it ends. `<pid>.counts`, a shared mapping, has the tokens of
each so far: it is brought up to date within the step that produced them, before any of them can leave the process.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

import orjson

#: Prompt and completion tokens of one request.
COUNTS = struct.Struct("<QQ")
#: Requests of one host's life that are counted; the file is sparse.
_MAX_REQUESTS = 1_000_000


class SimJournal:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / str(os.getpid())
        self._lines = os.open(f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(f"{name}.counts", "w+b") as file:  # noqa: PTH123 - the name has no suffix to replace
            file.truncate(COUNTS.size * _MAX_REQUESTS)
            self._counts = mmap.mmap(file.fileno(), 0)
        self._begun = 0

    def begin(self, label: str, model: str) -> int:
        """Returns the request's number. `label` is what the client calls it."""
        number, self._begun = self._begun, self._begun + 1
        self._write({"number": number, "begun_ns": time.time_ns(), "label": label, "model": model})
        return number

    def count(self, number: int, prompt_tokens: int, completion_tokens: int) -> None:
        COUNTS.pack_into(self._counts, number * COUNTS.size, prompt_tokens, completion_tokens)

    def end(self, number: int) -> None:
        self._write({"number": number, "ended_ns": time.time_ns()})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._lines, orjson.dumps(line) + b"\n")

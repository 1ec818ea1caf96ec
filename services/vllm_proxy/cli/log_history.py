"""What was logged up to now: a log with its rotated files, also compressed ones; several logs in the order of time."""

from __future__ import annotations

import gzip
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from pathlib import Path
from typing import IO, cast

from vllm_proxy.cli.log_lines import Line, LineReader

#: Beside `auth.log`: `auth.log.1`, `auth.log.2.gz`, `auth.log-20261126.gz`.
_ROTATED = re.compile(r"[.-]([\d-]+)(\.gz)?")


def rotated(path: Path) -> list[Path]:
    """The files of a log, the oldest first, itself last."""
    found = []
    if path.parent.is_dir():
        for entry in path.parent.iterdir():
            match = _ROTATED.fullmatch(entry.name.removeprefix(path.name)) if entry.name.startswith(path.name) else None
            if match is not None and entry.is_file():
                number = int(match[1].replace("-", "") or 0)
                found.append((entry.stat().st_mtime_ns, -number, entry))
    return [entry for _, _, entry in sorted(found)] + [path]


def all_lines(logs: Mapping[str, Path], ends: Mapping[str, int], since: float) -> Iterator[Line]:
    """Everything after `since` (Unix seconds) in the order of time. `ends`: where a log itself ends, in bytes."""
    return merge(*(_lines(label, path, ends[label], since) for label, path in logs.items()), key=lambda line: line.at)


def last_lines(logs: Mapping[str, Path], ends: Mapping[str, int], count: int) -> list[Line]:
    """The last `count` of all, in the order of time, without reading what lies before."""
    lines = merge(*(_last(label, path, ends[label], count) for label, path in logs.items()), key=lambda line: line.at)
    return list(deque(lines, maxlen=count))


def lines_with(logs: Mapping[str, Path], ends: Mapping[str, int], since: float, words: Iterable[str]) -> Iterator[Line]:
    """As all_lines, but only lines that hold one of the words anywhere: far cheaper."""
    needles = [word.encode() for word in words]
    found = (_lines(label, path, ends[label], since, needles) for label, path in logs.items())
    return merge(*found, key=lambda line: line.at)


def _lines(label: str, path: Path, end: int, since: float, needles: list[bytes] | None = None) -> Iterator[Line]:
    reader = LineReader(label)
    latest = 0.0
    for file in rotated(path):
        for raw in _raw(file, end if file == path else None, since):
            if needles is not None and not any(needle in raw for needle in needles):
                continue
            line = reader.read(raw)
            # Lines of one file stay in their order, whatever the clock did.
            latest = line.at = max(latest, line.at)
            if line.at >= since:
                yield line


def _last(label: str, path: Path, end: int, count: int) -> list[Line]:
    raw: list[bytes] = []
    for file in reversed(rotated(path)):
        if len(raw) >= count:
            break
        missing = count - len(raw)
        if file == path and end > 0:
            raw = _tail(file, end, missing)
        elif file != path:
            raw = [*deque(_raw(file, None, 0), maxlen=missing), *raw]
    reader = LineReader(label)
    return [reader.read(line) for line in raw]


def _raw(path: Path, end: int | None, since: float) -> Iterator[bytes]:
    try:
        if path.stat().st_mtime < since:
            return
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            left = end
            for line in file:
                if left is not None:
                    left -= len(line)
                    if left < 0:
                        return
                yield line.rstrip(b"\n")
    except (OSError, EOFError):  # rotated away meanwhile, or a file that is still being compressed
        return


def _tail(path: Path, end: int, count: int) -> list[bytes]:
    try:
        with path.open("rb") as file:
            position, text = end, b""
            while position > 0 and text.count(b"\n") <= count:
                step = min(64 * 1024, position)
                position -= step
                file.seek(position, os.SEEK_SET)
                text = file.read(step) + text
    except OSError:
        return []
    return text.split(b"\n")[:-1][-count:]

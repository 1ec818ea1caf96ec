"""The log files of one service: which there are, which are in use, and removing old ones."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb

SECONDS_PER_DAY = 86_400
#: What the supervisor, this project and logrotate (with or without dateext) put behind the name of a rotated file.
_ROTATED = re.compile(r"(\.\d+|-\d{8}(-\d+)?)(\.(gz|bz2|xz|zst))?")


class _Found(NamedTuple):
    path: Path
    stat: os.stat_result
    is_live: bool

    @property
    def identity(self) -> tuple[int, int]:
        return self.stat.st_dev, self.stat.st_ino


class LogFolder:
    """The files `<stem>.log` and their rotated siblings (`<stem>.log.1`, `<stem>.log.2.gz`) in one folder, and `others`
    with theirs, wherever they lie.

    Only regular files directly in these folders count; links are never followed and never removed. All methods block.
    """

    def __init__(self, folder: Path, stems: Iterable[str], others: Iterable[Path] = ()) -> None:
        self._folder = folder
        self._live: dict[Path, set[str]] = {folder: {f"{stem}.log" for stem in stems}}
        for path in others:
            self._live.setdefault(path.parent, set()).add(path.name)

    def files(self) -> list[pb.LogFile]:
        found = list(self._found())
        rotated = [file for file in found if not file.is_live]
        in_use = _open_files() if rotated else set()
        return [self._shown(file, file.is_live or file.identity in in_use) for file in found]

    def clean(self, older_than_days: int, dry_run: bool) -> pb.CleanLogsResponse:
        """Removes rotated files whose last change is at least so many days ago, but none that a process has open."""
        limit = time.time() - older_than_days * SECONDS_PER_DAY
        answer = pb.CleanLogsResponse()
        old = [file for file in self._found() if not file.is_live and file.stat.st_mtime <= limit]
        in_use = _open_files() if old else set()
        for file in old:
            if file.identity in in_use:
                answer.kept.append(self._shown(file, True))
                continue
            shown = self._shown(file, False)
            try:
                if not dry_run and not _remove(file):
                    continue
            except OSError as e:
                answer.problems.append(f"{shown.name}: {e.strerror}")
                continue
            answer.removed.append(shown)
            answer.freed_bytes += shown.size_bytes
        return answer

    def _found(self) -> Iterator[_Found]:
        for folder, live in self._live.items():
            if not folder.is_dir():
                continue
            for path in sorted(folder.iterdir()):
                is_live = path.name in live
                if not (is_live or any(_is_rotated(path.name, name) for name in live)):
                    continue
                try:
                    found = path.lstat()
                except FileNotFoundError:  # rotated meanwhile
                    continue
                if stat.S_ISREG(found.st_mode):
                    yield _Found(path, found, is_live)

    def _shown(self, file: _Found, in_use: bool) -> pb.LogFile:
        name = file.path.name if file.path.parent == self._folder else str(file.path)
        return pb.LogFile(name=name, size_bytes=file.stat.st_size, modified_at_s=int(file.stat.st_mtime), in_use=in_use)


def _is_rotated(name: str, live: str) -> bool:
    return name.startswith(live) and _ROTATED.fullmatch(name, len(live)) is not None


def _remove(file: _Found) -> bool:
    """False if another file has its name by now: a rotation came between."""
    try:
        now = file.path.lstat()
        if (now.st_ino, now.st_mtime_ns) != (file.stat.st_ino, file.stat.st_mtime_ns):
            return False
        file.path.unlink()
    except FileNotFoundError:
        return False
    return True


def _open_files() -> set[tuple[int, int]]:
    """Device and inode of every file that a process has open, as far as this one may know."""
    found: set[tuple[int, int]] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            handles = os.listdir(process / "fd")  # noqa: PTH208 - names, of which there may be thousands
        except OSError:  # it ended, or is somebody else's
            continue
        for handle in handles:
            with contextlib.suppress(OSError):  # closed meanwhile
                held = os.stat(process / "fd" / handle)  # noqa: PTH116
                found.add((held.st_dev, held.st_ino))
    return found

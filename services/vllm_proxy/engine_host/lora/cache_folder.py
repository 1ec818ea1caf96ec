"""The folder in which an adapter that is put there is found at its first request.

It looks in the folder seldom: a name that was not there is not looked for again for a moment, and one that was unloaded
stays away until its folder changes.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from vllm_proxy.common.errors import InvalidAdapter
from vllm_proxy.engine_host.lora.checks import CONFIG_FILE, check_name

#: How long an unknown name is not looked for again, and how many such names are remembered.
_MISS_TTL_S = 1.0
_MISSES = 1024


class CacheFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        #: name -> until when it is taken for absent.
        self._misses: dict[str, float] = {}
        #: name -> the folder's state when its adapter was unloaded.
        self._withheld: dict[str, tuple[int, ...]] = {}

    async def find(self, name: str) -> Path | None:
        """The folder of an adapter that may be loaded now."""
        if self._misses.get(name, 0.0) > time.monotonic():
            return None
        try:
            check_name(name)
        except InvalidAdapter:
            return None
        path = self.path / name
        state = await asyncio.to_thread(_state, path)
        if state is None or self._withheld.get(name) == state:
            self._remember_miss(name)
            return None
        self._withheld.pop(name, None)
        return path

    def holds(self, path: Path) -> bool:
        """Whether a resolved path is that of an adapter in it. Blocks."""
        return path.parent == self.path.resolve()

    async def withhold(self, name: str) -> None:
        """Its adapter was unloaded: what lies there now is not found again."""
        state = await asyncio.to_thread(_state, self.path / name)
        if state is not None:
            self._withheld[name] = state

    def withholds(self, name: str) -> bool:
        return name in self._withheld

    def forget(self, name: str) -> None:
        """Its adapter was loaded, from wherever: nothing of it is withheld or missed."""
        self._misses.pop(name, None)
        self._withheld.pop(name, None)

    def _remember_miss(self, name: str) -> None:
        self._misses.pop(name, None)
        self._misses[name] = time.monotonic() + _MISS_TTL_S
        while len(self._misses) > _MISSES:
            del self._misses[next(iter(self._misses))]


def _state(folder: Path) -> tuple[int, ...] | None:
    """Changes when an adapter is put into a folder anew; None if there is none. Blocks."""
    try:
        stats = (folder.stat(), (folder / CONFIG_FILE).stat())
    except OSError:
        return None
    return tuple(n for s in stats for n in (s.st_ino, s.st_mtime_ns))

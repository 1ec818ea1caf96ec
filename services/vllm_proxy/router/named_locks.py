"""One lock per name, kept only while somebody uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping


class NamedLocks(Mapping[str, int]):
    """Maps each name in use to how many hold it or wait for it."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    async def acquire(self, name: str) -> None:
        """In the order of the calls. A cancelled call holds nothing."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._users[name] = self._users.get(name, 0) + 1
        try:
            await lock.acquire()
        except BaseException:
            self._leave(name)
            raise

    def release(self, name: str) -> None:
        self._locks[name].release()
        self._leave(name)

    def _leave(self, name: str) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name], self._locks[name]

    def __getitem__(self, name: str) -> int:
        return self._users[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def __len__(self) -> int:
        return len(self._users)

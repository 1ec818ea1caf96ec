"""What is being done to adapters: one thing at a time to each name, and the same thing once for all who ask for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vllm_proxy.common.lifecycle import cancel_all

T = TypeVar("T")


class Operations(Generic[T]):
    """Each runs in a task of its own: a caller may be cancelled, what it began goes on."""

    def __init__(self) -> None:
        #: name -> what was asked for last.
        self._of_name: dict[str, _Operation[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()

    def __contains__(self, name: str) -> bool:
        """Whether something is being done to it."""
        return name in self._of_name

    def running(self, name: str, purpose: Hashable) -> asyncio.Task[T] | None:
        """The task that does just this already."""
        running = self._of_name.get(name)
        return running.task if running is not None and running.purpose == purpose else None

    def start(self, name: str, purpose: Hashable, action: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Begins `action` when what is being done to the name has ended, however it ended."""
        before = self._of_name.get(name)

        async def run() -> T:
            if before is not None:
                await asyncio.wait([before.task])
            return await action()

        operation = _Operation(purpose, asyncio.create_task(run(), name=f"adapter {name}"))
        self._of_name[name] = operation
        self._tasks.add(operation.task)
        operation.task.add_done_callback(functools.partial(self._ended, name, operation))
        return operation.task

    async def close(self) -> None:
        """Cancels what is still going on."""
        await cancel_all(self._tasks)

    def _ended(self, name: str, operation: _Operation[T], task: asyncio.Task[T]) -> None:
        if self._of_name.get(name) is operation:
            del self._of_name[name]
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; nobody else needs to


@dataclass(frozen=True, slots=True)
class _Operation(Generic[T]):
    purpose: Hashable
    task: asyncio.Task[T]

"""Runs a coroutine until it first has to wait, without a task.

Most ASGI calls never wait: a `send` into an open transport returns at once. Stepping it costs a function call
where a task would cost a trip through the event loop. What does wait is finished by an awaiter, later.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Suspended(Generic[T]):
    """The rest of a coroutine that has yielded `waiting_for` (a future, or None for a bare yield). Await it once."""

    __slots__ = ("_coroutine", "_waiting_for")

    def __init__(self, coroutine: Coroutine[Any, Any, T], waiting_for: Any) -> None:
        self._coroutine = coroutine
        self._waiting_for = waiting_for

    @property
    def ready(self) -> bool:
        """Whether what it waits for has come, so that awaiting it would go on at once."""
        return self._waiting_for is not None and bool(self._waiting_for.done())

    @property
    def waiting_for(self) -> Any:
        """The future that it waits for, or None."""
        return self._waiting_for

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        # The future still says that it wants to be waited for, so the awaiting task can take it over.
        try:
            yield self._waiting_for
        except BaseException as e:
            try:
                waiting_for = self._coroutine.throw(e)
            except StopIteration as stop:
                result: T = stop.value
                return result
            yield waiting_for
        return (yield from self._coroutine.__await__())


class Finished(Generic[T]):
    """What a coroutine returned that never had to wait."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


def step(coroutine: Coroutine[Any, Any, T]) -> Finished[T] | Suspended[T]:
    """Runs `coroutine` until it waits or ends; its exceptions come out here."""
    try:
        waiting_for = coroutine.send(None)
    except StopIteration as stop:
        return Finished(stop.value)
    return Suspended(coroutine, waiting_for)

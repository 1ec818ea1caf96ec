"""Waiting for a condition with a deadline, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
POLL_S = 0.02


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = 10.0) -> T:
    """The first true value of `condition`; blocks. Raises AssertionError, naming `what`, at the deadline."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline_s:g} s; last seen: {value!r}")
        time.sleep(POLL_S)
    return value


async def eventually(condition: Callable[[], Any], what: str, deadline_s: float = 10.0) -> Any:
    """`wait_until` for a running event loop; `condition` may be a coroutine function."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline_s:g} s; last seen: {value!r}")
        await asyncio.sleep(POLL_S)

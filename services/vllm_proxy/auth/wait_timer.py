"""Serves the wait queue when time has come."""

from __future__ import annotations

import asyncio

from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.wait_queue import WaitQueue


class WaitTimer:
    """Make it on the event loop; it runs until `close`."""

    def __init__(self, queue: WaitQueue, clock: Clock) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue = queue
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        queue.on_due = self._arm
        self._arm()

    def close(self) -> None:
        self._queue.on_due = lambda: None
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if (due_ns := self._queue.due_ns) is not None:
            delay_s = max(0, due_ns - self._clock.now_ns()) / NS_PER_SECOND
            self._handle = self._loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._handle = None
        # A timer may ring a little early; serving then does nothing but arm it again.
        self._queue.serve()

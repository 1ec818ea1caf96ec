"""The time, so that tests can stand in for it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Never runs backwards."""

    def unix_ms(self) -> int: ...


class SystemClock:
    now_ns = staticmethod(time.monotonic_ns)

    @staticmethod
    def unix_ms() -> int:
        return time.time_ns() // 1_000_000

"""The calendar that quotas follow: days and months in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from vllm_proxy.auth.limits import QuotaPeriod

_MS_PER_DAY = 86_400_000


class Calendar:
    """The day and the month that hold the time it was last told, in Unix milliseconds. Never goes back."""

    __slots__ = ("day_end_ms", "day_start_ms", "month_end_ms", "month_start_ms", "now_ms")

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._turn(now_ms)

    def advance(self, now_ms: int) -> None:
        self.now_ms = now_ms
        if now_ms >= self.day_end_ms:
            self._turn(now_ms)

    def _turn(self, now_ms: int) -> None:
        self.day_start_ms = now_ms - now_ms % _MS_PER_DAY
        self.day_end_ms = self.day_start_ms + _MS_PER_DAY
        first = datetime.fromtimestamp(self.day_start_ms / 1000, UTC).replace(day=1)
        self.month_start_ms = _unix_ms(first)
        self.month_end_ms = _unix_ms((first + timedelta(days=32)).replace(day=1))

    def left_ms(self, period: QuotaPeriod) -> int | None:
        """Until the period is over; None: it never is."""
        if period is None:
            return None
        return max(1, (self.day_end_ms if period == "day" else self.month_end_ms) - self.now_ms)


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000

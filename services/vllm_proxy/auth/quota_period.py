"""The calendar that quotas follow: days and months in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from vllm_proxy.auth.limits import QuotaPeriod


def period_start_ms(period: QuotaPeriod, unix_ms: int) -> int:
    """When the period that holds this time began; 0 for a total."""
    if period is None:
        return 0
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return _unix_ms(moment if period == "day" else moment.replace(day=1))


def period_end_ms(period: QuotaPeriod, unix_ms: int) -> int | None:
    """When the next one begins; None: never."""
    if period is None:
        return None
    start = datetime.fromtimestamp(period_start_ms(period, unix_ms) / 1000, UTC)
    if period == "day":
        return _unix_ms(start + timedelta(days=1))
    return _unix_ms((start + timedelta(days=32)).replace(day=1))


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000

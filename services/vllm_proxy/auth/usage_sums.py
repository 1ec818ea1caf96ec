"""Usage summed by groups in Python, for a store that holds its hours' sums but cannot group them itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vllm_proxy.auth.keys import KEY_ID_BYTES
from vllm_proxy.auth.store import UsageColumn, UsageQuery, UsageRow

MS_PER_HOUR = 3_600_000
_HOURS_PER_DAY = 24
Group = tuple[int | str | bytes, ...]


class HourRow(NamedTuple):
    """What one key used of one model in one hour (in hours since 1970, UTC)."""

    hour: int
    account: bytes
    user: str
    model: str
    base_model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_tokens: int
    requests: int


def sum_usage(rows: Iterable[HourRow], query: UsageQuery) -> list[UsageRow]:
    """The answer to `query` over all rows, in any order and number for the same hour."""
    first, end = query.from_ms // MS_PER_HOUR, -(-query.until_ms // MS_PER_HOUR)
    sums: dict[Group, list[int]] = {} if query.group_by else {(): [0] * 5}
    for row in rows:
        if not first <= row.hour < end or not _passes(row, query):
            continue
        group = tuple(_value(row, column) for column in query.group_by)
        counts = sums.setdefault(group, [0] * 5)
        for position, count in enumerate(row[5:]):
            counts[position] += count
    after = query.after
    found = sorted(group for group in sums if after is None or group > after)
    return [usage_row(query.group_by, group, sums[group]) for group in found[: query.max_rows]]


def usage_row(group_by: tuple[UsageColumn, ...], group: Group, counts: Iterable[int]) -> UsageRow:
    """One group and its prompt, cached, completion and charged tokens and requests."""
    values = dict(zip(group_by, group, strict=True))
    hour = values.get("hour", 0) or int(values.get("day", 0)) * _HOURS_PER_DAY
    return UsageRow(
        int(hour) * MS_PER_HOUR,
        values.get("key", b""),  # type: ignore[arg-type]  # by the column's own type
        str(values.get("user", "")),
        str(values.get("model", "")),
        str(values.get("base_model", "")),
        str(values.get("adapter", "")),
        *counts,
    )


def group_of(group_by: tuple[UsageColumn, ...], row: UsageRow) -> Group:
    """What `UsageQuery.after` says of a row."""
    hour = row.start_ms // MS_PER_HOUR
    values: dict[UsageColumn, int | str | bytes] = {
        "hour": hour,
        "day": hour // _HOURS_PER_DAY,
        "key": row.account,
        "user": row.user,
        "model": row.model,
        "base_model": row.base_model,
        "adapter": row.adapter,
    }
    return tuple(values[column] for column in group_by)


def _passes(row: HourRow, query: UsageQuery) -> bool:
    return (
        (query.account_prefix is None or row.account.startswith(query.account_prefix))
        and query.user in (None, row.user)
        and query.model in (None, row.model)
    )


def _value(row: HourRow, column: UsageColumn) -> int | str | bytes:
    match column:
        case "hour":
            return row.hour
        case "day":
            return row.hour // _HOURS_PER_DAY
        case "key":
            return row.account[:KEY_ID_BYTES]
        case "user":
            return row.user
        case "model":
            return row.model
        case "base_model":
            return row.base_model or row.model
        case "adapter":
            return "" if row.base_model in ("", row.model) else row.model

"""Reads back what redis_batch.py wrote: the state at a start, and sums of usage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_proxy.auth.redis_batch import MS_PER_HOUR, Keys, unpack
from vllm_proxy.auth.redis_url import Client
from vllm_proxy.auth.store import (
    Balance,
    KeyStored,
    LeaseOpened,
    LeaseReported,
    LedgerEntry,
    PeriodUsage,
    RatioLearned,
    StoredState,
    UsageQuery,
    UsageRow,
)

#: Fields that are read at a time.
_PAGE = 5000
_HOURS_PER_DAY = 24


async def read_state(
    client: Client, keys: Keys, recent_since_ms: int, day_since_ms: int, month_since_ms: int
) -> StoredState:
    """Everything that a start needs, once nobody else can write."""
    state = StoredState()
    state.balances = {who: Balance(*unpack(sums)) for who, sums in await _all(client, keys["balances"])}
    state.user_balances = {who.decode(): Balance(*unpack(sums)) for who, sums in await _all(client, keys["users"])}
    state.leases = [LeaseOpened(*unpack(opened)) for _, opened in await _all(client, keys["leases"])]
    state.leases.sort(key=lambda lease: lease.opened_at_ms)
    state.reports = [LeaseReported(*unpack(report)) for _, report in await _all(client, keys["reports"])]
    state.recent = await _recent(client, keys["ledger"], recent_since_ms)
    periods: dict[bytes, list[int]] = {}
    for place, name in enumerate((f"day:{day_since_ms}", f"month:{month_since_ms}")):
        for who, sums in await _all(client, keys[name]):
            periods.setdefault(who, [0, 0])[place] = unpack(sums)[0]
    state.periods = [PeriodUsage(*unpack(who), *tokens) for who, tokens in periods.items()]
    revoked = {digest for digest, _ in await _all(client, keys["revoked"])}
    made = dict(await _all(client, keys["made"]))
    state.keys = [
        KeyStored(digest, data.decode(), *unpack(made[digest]))
        for digest, data in sorted(await _all(client, keys["keys"]))
        if digest not in revoked
    ]
    state.ratios = [RatioLearned(*unpack(ratio)) for _, ratio in await _all(client, keys["ratios"])]
    return state


async def _all(client: Client, key: str) -> list[tuple[bytes, bytes]]:
    return [item async for item in client.hscan_iter(key, count=_PAGE)]


async def _recent(client: Any, key: str, since_ms: int) -> list[LedgerEntry]:
    found: list[LedgerEntry] = []
    begin: Any = "-"
    while entries := await client.xrange(key, begin, "+", count=_PAGE // 10):
        for _, fields in entries:
            rows = (LedgerEntry(*row) for row in unpack(fields[b"b"]))
            found += [row for row in rows if row.settled_at_ms >= since_ms]
        begin = b"(" + entries[-1][0]
    return found


async def read_usage(client: Client, keys: Keys, query: UsageQuery) -> list[UsageRow]:
    wanted = range(query.from_ms // MS_PER_HOUR, -(-query.until_ms // MS_PER_HOUR))
    hours = sorted(hour for field, _ in await _all(client, keys["hours"]) if (hour := int(field)) in wanted)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for hour in hours:
        for field, sums in await _all(client, keys[f"hours:{hour}"]):
            account, user, model, base_model = unpack(field)
            if (
                query.account not in (None, account)
                or query.user not in (None, user)
                or query.model not in (None, model)
            ):
                continue
            group = tuple(_columns(query, hour, account, user, model, base_model))
            held = groups.setdefault(group, [0] * 5)
            for place, number in enumerate(unpack(sums)):
                held[place] += number
    rows = [UsageRow(*group, *sums) for group, sums in groups.items()]
    return sorted(rows)[: query.max_rows]


def _columns(query: UsageQuery, hour: int, account: bytes, user: str, model: str, base_model: str) -> Iterator[Any]:
    if "hour" in query.group_by:
        yield hour * MS_PER_HOUR
    else:
        yield (hour - hour % _HOURS_PER_DAY) * MS_PER_HOUR if "day" in query.group_by else 0
    yield account if "key" in query.group_by else b""
    yield user if "user" in query.group_by else ""
    yield model if "model" in query.group_by else ""
    yield base_model if "base_model" in query.group_by else ""

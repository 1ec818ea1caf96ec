"""Reads back what redis_batch.py wrote: the state at a start, and what people and tools ask."""

from __future__ import annotations

import json
import re
from typing import Any

from vllm_proxy.auth.redis_batch import Keys, unpack
from vllm_proxy.auth.redis_url import Client
from vllm_proxy.auth.store import (
    AuditEntry,
    AuditQuery,
    Balance,
    KeyQuery,
    KeyStored,
    LeaseOpened,
    LeaseReported,
    LedgerEntry,
    NumberedAuditEntry,
    PeriodUsage,
    RatioLearned,
    StoredKey,
    StoredState,
    UsageQuery,
    UsageRow,
)
from vllm_proxy.auth.usage_sums import MS_PER_HOUR, HourRow, sum_usage

#: Fields that are read at a time.
_PAGE = 5000
#: A stream's ids are a time and a number within it; a batch has at most half as many entries.
_ENTRIES_PER_MS = 4096


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
    state.keys = [
        KeyStored(key.digest, key.data_json, key.created_at_ms, key.created_by)
        for key in await read_keys(client, keys)
        if key.revoked_at_ms is None
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
    rows = [
        HourRow(hour, *unpack(who), *unpack(sums))
        for field, _ in await _all(client, keys["hours"])
        if (hour := int(field)) in wanted
        for who, sums in await _all(client, keys[f"hours:{hour}"])
    ]
    return sum_usage(rows, query)


async def read_keys(client: Client, keys: Keys) -> list[StoredKey]:
    """Those that the API made, revoked ones too, as `stored_keys` orders them."""
    revoked = {digest: int(at_ms) for digest, at_ms in await _all(client, keys["revoked"])}
    made = dict(await _all(client, keys["made"]))
    found = [
        StoredKey(digest, data.decode(), at_ms, by, revoked.get(digest))
        for digest, data in await _all(client, keys["keys"])
        for at_ms, by in (unpack(made[digest]),)
    ]
    return sorted(found, key=lambda key: (key.created_at_ms, key.digest))


async def read_key(client: Any, keys: Keys, digest_prefix: bytes) -> StoredKey | None:
    """The server looks through all keys, and sends the one that is asked for only."""
    pattern = re.sub(rb"([*?\\[\]\\])", rb"\\\1", digest_prefix) + b"*"
    async for digest, data in client.hscan_iter(keys["keys"], match=pattern, count=_PAGE):
        at_ms, by = unpack(await client.hget(keys["made"], digest))
        revoked = await client.hget(keys["revoked"], digest)
        return StoredKey(digest, data.decode(), at_ms, by, None if revoked is None else int(revoked))
    return None


def page_of_keys(found: list[StoredKey], query: KeyQuery) -> list[StoredKey]:
    page = [
        key
        for key in found
        if (query.with_revoked or key.revoked_at_ms is None)
        and (query.user is None or json.loads(key.data_json).get("user") == query.user)
        and (query.after is None or (key.created_at_ms, key.digest[: len(query.after[1])]) > query.after)
    ]
    return page[: query.max_rows]


async def read_audit(client: Any, keys: Keys, query: AuditQuery) -> list[NumberedAuditEntry]:
    """Through the stream from its end, page by page, until there are enough."""
    found: list[NumberedAuditEntry] = []
    end = "+"
    if query.before is not None:
        at_ms, sequence = divmod(query.before, _ENTRIES_PER_MS)
        end = f"({at_ms}-{sequence}"
    while len(found) < query.max_rows and (entries := await client.xrevrange(keys["audit"], end, "-", count=_PAGE)):
        for entry_id, fields in entries:
            entry = AuditEntry(*unpack(fields[b"b"]))
            if _is_asked_for(entry, query):
                at_ms, sequence = map(int, entry_id.split(b"-"))
                found.append(NumberedAuditEntry(at_ms * _ENTRIES_PER_MS + sequence, entry))
        end = "(" + entries[-1][0].decode()
    return found[: query.max_rows]


def _is_asked_for(entry: AuditEntry, query: AuditQuery) -> bool:
    action = query.action
    return (
        query.from_ms <= entry.at_ms
        and (query.until_ms is None or entry.at_ms < query.until_ms)
        and query.actor in ("", entry.actor_user, entry.actor_key_id)
        and (entry.action.startswith(action) if action.endswith(".") else action in ("", entry.action))
        and query.target in ("", entry.target)
    )

"""What people and tools ask of the store's SQLite file: usage, keys, the audit log. Reads only."""

from __future__ import annotations

import sqlite3
from typing import Any

from vllm_proxy.auth.keys import KEY_ID_BYTES
from vllm_proxy.auth.sqlite_records import AUDIT
from vllm_proxy.auth.store import (
    AuditEntry,
    AuditQuery,
    KeyQuery,
    NumberedAuditEntry,
    StoredKey,
    UsageColumn,
    UsageQuery,
    UsageRow,
)
from vllm_proxy.auth.usage_sums import MS_PER_HOUR, usage_row

_DIGEST_BYTES = 32

_GROUPS: dict[UsageColumn, str] = {
    "hour": "hour",
    "day": "hour / 24",
    "key": f"substr(account, 1, {KEY_ID_BYTES})",
    "user": "user",
    "model": "model",
    "base_model": "iif(base_model = '', model, base_model)",
    "adapter": "iif(base_model IN ('', model), '', model)",
}
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "charged_tokens", "requests")
_SUMS = ", ".join(f"coalesce(sum({count}), 0)" for count in _COUNTS)
_KEY = "digest, data, created_at_ms, created_by, revoked_at_ms"


def usage(db: sqlite3.Connection, query: UsageQuery) -> list[UsageRow]:
    """From the hours' sums, and from the rows of the ledger that are not in them yet."""
    bounds: list[Any] = [query.from_ms // MS_PER_HOUR, -(-query.until_ms // MS_PER_HOUR)]
    hours, rows = "hour >= ? AND hour < ?", "settled_at_ms >= ? * 3600000 AND settled_at_ms < ? * 3600000"
    filters = ""
    values: list[Any] = []
    if query.account_prefix is not None:
        # `+`: by the index over accounts, however few hours are asked for.
        hours = "+hour >= ? AND +hour < ?"
        filters += " AND account >= ? AND account <= ?"
        values += [query.account_prefix, _last_with(query.account_prefix)]
    if query.user is not None:
        filters += " AND user = ?"
        values.append(query.user)
    model_filter, model_values = (" WHERE model = ?", [query.model]) if query.model is not None else ("", [])
    groups = [_GROUPS[column] for column in query.group_by]
    having, after = "", list(query.after or ())
    if after:
        having = f"HAVING ({', '.join(groups)}) > ({', '.join('?' * len(after))})"
    found = db.execute(
        f"""
        SELECT {", ".join([*groups, _SUMS])} FROM (
            SELECT hour, account, user, model, base_model, {", ".join(_COUNTS)} FROM usage_hours
            WHERE {hours}{filters}
            UNION ALL
            SELECT settled_at_ms / 3600000, account, user, iif(prompt_tokens OR completion_tokens, model, '') AS model,
                base_model, {", ".join(_COUNTS)} FROM ledger
            WHERE id > (SELECT through_id FROM folded) AND {rows}{filters}
        ){model_filter}
        {"GROUP BY " + ", ".join(groups) if groups else ""} {having}
        {"ORDER BY " + ", ".join(groups) if groups else ""} LIMIT ?
        """,
        [*bounds, *values, *bounds, *values, *model_values, *after, query.max_rows],
    )
    width = len(groups)
    return [usage_row(query.group_by, row[:width], row[width:]) for row in found]


def stored_key(db: sqlite3.Connection, digest_prefix: bytes) -> StoredKey | None:
    row = db.execute(
        f"SELECT {_KEY} FROM keys WHERE digest >= ? AND digest <= ?", (digest_prefix, _last_with(digest_prefix))
    ).fetchone()
    return StoredKey(*row) if row is not None else None


def stored_keys(db: sqlite3.Connection, query: KeyQuery) -> list[StoredKey]:
    where: list[str] = []
    values: list[Any] = []
    if query.user is not None:
        where.append("data ->> 'user' = ?")
        values.append(query.user)
    if query.after is not None:
        created_at_ms, digest_prefix = query.after
        where.append("(created_at_ms, digest) > (?, ?)")
        values += [created_at_ms, _last_with(digest_prefix)]
    if not query.with_revoked:
        where.append("revoked_at_ms IS NULL")
    rows = db.execute(
        f"SELECT {_KEY} FROM keys {'WHERE ' + ' AND '.join(where) if where else ''} "
        "ORDER BY created_at_ms, digest LIMIT ?",
        [*values, query.max_rows],
    )
    return [StoredKey(*row) for row in rows]


def audit(db: sqlite3.Connection, query: AuditQuery) -> list[NumberedAuditEntry]:
    # `+`: by number, since a page then ends the search.
    where: list[str] = ["+at_ms >= ?"]
    values: list[Any] = [query.from_ms]
    if query.until_ms is not None:
        where.append("+at_ms < ?")
        values.append(query.until_ms)
    if query.before is not None:
        where.append("id < ?")
        values.append(query.before)
    if query.actor:
        where.append("(actor_user = ? OR actor_key_id = ?)")
        values += [query.actor, query.actor]
    if query.action.endswith("."):
        where.append("substr(action, 1, length(?)) = ?")
        values += [query.action, query.action]
    elif query.action:
        where.append("action = ?")
        values.append(query.action)
    if query.target:
        where.append("target = ?")
        values.append(query.target)
    rows = db.execute(
        f"SELECT id, {AUDIT} FROM audit WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",
        [*values, query.max_rows],
    )
    return [NumberedAuditEntry(number, AuditEntry(*entry)) for number, *entry in rows]


def _last_with(prefix: bytes) -> bytes:
    """The highest hash that begins so."""
    return prefix + b"\xff" * (_DIGEST_BYTES - len(prefix))

"""Records <-> rows of the store's SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from vllm_proxy.auth.sqlite_file import transaction
from vllm_proxy.auth.store import (
    AuditEntry,
    AuditForgotten,
    Balance,
    KeyRevoked,
    KeyStored,
    LeaseOpened,
    LeaseReported,
    LedgerEntry,
    PeriodUsage,
    RatioLearned,
    Record,
    StoredState,
)

#: Ledger rows that a start looks through for the recent ones.
_MAX_RECENT = 100_000
_MS_PER_HOUR = 3_600_000

_LEASE = "lease_id, account, owner_id, request_id, model, reserved_tokens, opened_at_ms, user"
_REPORT = (
    "report_attempt, report_outcome, report_prompt, report_cached, report_completion, report_model, report_host, "
    "report_base_model"
)
_ENTRY = (
    "lease_id, account, user, request_id, model, host, attempt, source, outcome, prompt_tokens, cached_tokens, "
    "completion_tokens, requests, closes, settled_at_ms, charged_tokens, base_model, opened_at_ms"
)
AUDIT = "at_ms, actor_key_id, actor_user, action, target, outcome, detail, source_address, request_id"
_BALANCE = "prompt_tokens, cached_tokens, completion_tokens, requests, charged_tokens, last_used_ms"


def _values(count: int) -> str:
    return ",".join("?" * count)


#: By kind, in the order of a lease's life: SQLite runs each over many rows at once.
_STATEMENTS: dict[type, str] = {
    LeaseOpened: f"INSERT INTO leases ({_LEASE}) VALUES ({_values(8)})",
    LeaseReported: f"UPDATE leases SET ({_REPORT}) = (?2,?3,?4,?5,?6,?7,?8,?9) WHERE lease_id = ?1",
    LedgerEntry: f"INSERT INTO ledger ({_ENTRY}) VALUES ({_values(18)})",
    AuditEntry: f"INSERT INTO audit ({AUDIT}) VALUES ({_values(9)})",
    AuditForgotten: "DELETE FROM audit WHERE at_ms < ?",
    RatioLearned: f"INSERT OR REPLACE INTO prompt_ratios (model, script, tokens, size_bytes) VALUES ({_values(4)})",
}
_CLOSE = "DELETE FROM leases WHERE lease_id = ?"
_STORE_KEY = (
    "INSERT INTO keys (digest, data, created_at_ms, created_by, revoked_at_ms) VALUES (?,?,?,?,NULL) "
    "ON CONFLICT (digest) DO UPDATE SET data = excluded.data, revoked_at_ms = NULL"
)
_REVOKE_KEY = "UPDATE keys SET revoked_at_ms = ?2 WHERE digest = ?1"


def write_records(db: sqlite3.Connection, groups: Iterable[Iterable[Record]]) -> int:
    """Writes all of them in one transaction and returns how many there were."""
    by_kind: dict[type, list[Record]] = {}
    keys: list[KeyStored | KeyRevoked] = []
    count = 0
    for records in groups:
        for record in records:
            count += 1
            kind = type(record)
            if kind is KeyStored or kind is KeyRevoked:
                keys.append(record)  # type: ignore[arg-type]  # mypy does not narrow by `kind`
            elif kind in by_kind:
                by_kind[kind].append(record)
            else:
                by_kind[kind] = [record]
    if not count:
        return 0
    with transaction(db):
        for kind, statement in _STATEMENTS.items():
            if kind in by_kind:
                db.executemany(statement, by_kind[kind])
        settled = by_kind.get(LedgerEntry)
        if settled:
            db.executemany(_CLOSE, [(entry.lease_id,) for entry in settled if entry.closes])  # type: ignore[union-attr]
        for key in keys:
            db.execute(_STORE_KEY if isinstance(key, KeyStored) else _REVOKE_KEY, key)
    return count


def read_state(db: sqlite3.Connection, recent_since_ms: int, day_since_ms: int, month_since_ms: int) -> StoredState:
    """What a start needs. The ledger must be folded."""
    state = StoredState()
    for account, *sums in db.execute(f"SELECT account, {_BALANCE} FROM balances"):
        state.balances[account] = Balance(*sums)
    for user, *sums in db.execute(f"SELECT user, {_BALANCE} FROM user_balances"):
        state.user_balances[user] = Balance(*sums)
    state.periods = [
        PeriodUsage(*row)
        for row in db.execute(
            "SELECT account, user, sum(iif(hour >= ?1, charged_tokens, 0)), sum(iif(hour >= ?2, charged_tokens, 0)) "
            "FROM usage_hours WHERE hour >= min(?1, ?2) GROUP BY account, user",
            (day_since_ms // _MS_PER_HOUR, month_since_ms // _MS_PER_HOUR),
        )
    ]
    for row in db.execute(f"SELECT {_LEASE}, {_REPORT} FROM leases ORDER BY opened_at_ms"):
        state.leases.append(LeaseOpened(*row[:8]))
        if row[8] is not None:
            state.reports.append(LeaseReported(row[0], *row[8:]))
    for row in db.execute(f"SELECT {_ENTRY} FROM ledger ORDER BY id DESC LIMIT ?", (_MAX_RECENT,)):
        entry = LedgerEntry(*row)
        if entry.settled_at_ms < recent_since_ms:
            break
        state.recent.append(entry)
    state.recent.reverse()
    stored = db.execute("SELECT digest, data, created_at_ms, created_by FROM keys WHERE revoked_at_ms IS NULL")
    state.keys = [KeyStored(*row) for row in stored]
    state.ratios = [
        RatioLearned(*row) for row in db.execute("SELECT model, script, tokens, size_bytes FROM prompt_ratios")
    ]
    return state

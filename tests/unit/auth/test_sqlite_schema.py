"""Files that older versions wrote are brought up to date with everything that they hold."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.unit.auth.test_sqlite_store import ALICE, BOB, Opened, reloaded

from vllm_proxy.auth.sqlite_file import SCHEMA_VERSION
from vllm_proxy.auth.store import Balance, LeaseOpened, LeaseReported, LedgerEntry, PeriodUsage

#: As version 1 made it.
VERSION_1 = """
CREATE TABLE leases (
    lease_id TEXT PRIMARY KEY, account BLOB NOT NULL, owner_id TEXT NOT NULL, request_id TEXT NOT NULL,
    model TEXT NOT NULL, reserved_tokens INTEGER NOT NULL, opened_at_ms INTEGER NOT NULL,
    report_attempt INTEGER, report_outcome INTEGER, report_prompt INTEGER, report_cached INTEGER,
    report_completion INTEGER, report_model TEXT, report_host TEXT
) WITHOUT ROWID;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY, lease_id TEXT NOT NULL, account BLOB NOT NULL, user TEXT NOT NULL,
    request_id TEXT NOT NULL, model TEXT NOT NULL, host TEXT NOT NULL, attempt INTEGER NOT NULL,
    source INTEGER NOT NULL, outcome INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, requests INTEGER NOT NULL, closes INTEGER NOT NULL,
    settled_at_ms INTEGER NOT NULL
);
-- Sums of the ledger's rows up to `folded.through_id`.
CREATE TABLE balances (
    account BLOB PRIMARY KEY, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, requests INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE folded (one INTEGER PRIMARY KEY CHECK (one = 1), through_id INTEGER NOT NULL);
INSERT INTO folded VALUES (1, 0);
"""


def entry_1(number: int, account: bytes, user: str, prompt: int, completion: int, at_ms: int) -> tuple[object, ...]:
    return (
        *(number, f"lease-{number}", account, user, f"req-{number}", "m", "h", 1, 1, 1),
        *(prompt, 0, completion, 1, 1, at_ms),
    )


def made_by_version_1(path: Path) -> None:
    path.parent.mkdir(parents=True)
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    lease = ("open-1", ALICE, "edge-1", "req-9", "m", 100, 3_000_000)
    db.execute("INSERT INTO leases VALUES (?,?,?,?,?,?,?,NULL,NULL,NULL,NULL,NULL,NULL,NULL)", lease)
    reported = ("open-2", BOB, "edge-1", "req-8", "m", 50, 3_000_001, 2, 3, 10, 4, 50, "m", "h")
    db.execute(f"INSERT INTO leases VALUES ({','.join('?' * 14)})", reported)
    rows = [
        entry_1(1, ALICE, "alice", 10, 5, 1000),
        entry_1(2, BOB, "bob", 1, 2, 2000),
        entry_1(3, ALICE, "alice", 20, 30, 3_600_000),
    ]
    db.executemany(f"INSERT INTO ledger VALUES ({','.join('?' * 16)})", rows)
    # Two of the three rows were folded.
    db.executemany("INSERT INTO balances VALUES (?,?,?,?,?)", [(ALICE, 10, 0, 5, 1), (BOB, 1, 0, 2, 1)])
    db.execute("UPDATE folded SET through_id = 2")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()


async def test_version_1_is_migrated_with_all_that_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "state" / "auth.db"
    made_by_version_1(path)
    opened = Opened(path)
    state = opened.store.load(0, 3_600_000, 0)
    assert state.balances == {
        ALICE: Balance(30, 0, 35, 2, 65, 3_600_000),
        BOB: Balance(1, 0, 2, 1, 3, 2000),
    }
    assert state.user_balances == {"alice": state.balances[ALICE], "bob": state.balances[BOB]}
    assert sorted(state.periods) == [PeriodUsage(ALICE, "alice", 50, 65), PeriodUsage(BOB, "bob", 0, 3)]
    assert state.leases == [
        LeaseOpened("open-1", ALICE, "edge-1", "req-9", "m", 100, 3_000_000, ""),
        LeaseOpened("open-2", BOB, "edge-1", "req-8", "m", 50, 3_000_001, ""),
    ]
    assert state.reports == [LeaseReported("open-2", 2, 3, 10, 4, 50, "m", "h")]
    assert state.recent[-1] == LedgerEntry(
        "lease-3", ALICE, "alice", "req-3", "m", "h", 1, 1, 1, 20, 0, 30, 1, True, 3_600_000, 50
    )
    await opened.store.close()
    again = await reloaded(path)
    assert (again.balances, again.leases, again.reports) == (state.balances, state.leases, state.reports)


async def test_a_new_file_has_the_schema_that_a_migrated_one_has(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "auth.db", tmp_path / "new" / "auth.db"
    made_by_version_1(old)
    schemas = []
    for path in (old, new):
        await Opened(path).store.close()
        db = sqlite3.connect(path)
        schemas.append(db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall())
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        db.close()
    assert schemas[0] == schemas[1]

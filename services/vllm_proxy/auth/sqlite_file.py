"""Opens the store's SQLite file: one process at a time, checked, its schema brought up to date."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from vllm_proxy.common.settings import ConfigError

_VERSION_1 = """
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

_VERSION_2 = """
ALTER TABLE leases ADD COLUMN user TEXT NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN report_base_model TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN charged_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN base_model TEXT NOT NULL DEFAULT '';
ALTER TABLE ledger ADD COLUMN opened_at_ms INTEGER NOT NULL DEFAULT 0;
UPDATE ledger SET charged_tokens = prompt_tokens + completion_tokens;
ALTER TABLE balances ADD COLUMN charged_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE balances ADD COLUMN last_used_ms INTEGER NOT NULL DEFAULT 0;
-- More sums of the ledger's rows up to `folded.through_id`. What they have seen, the ledger may forget.
CREATE TABLE user_balances (
    user TEXT PRIMARY KEY, prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, requests INTEGER NOT NULL, charged_tokens INTEGER NOT NULL,
    last_used_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE usage_hours (
    hour INTEGER NOT NULL, account BLOB NOT NULL, user TEXT NOT NULL, model TEXT NOT NULL, base_model TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    charged_tokens INTEGER NOT NULL, requests INTEGER NOT NULL,
    PRIMARY KEY (hour, account, user, model, base_model)
) WITHOUT ROWID;
CREATE INDEX usage_by_account ON usage_hours (account, hour);
-- All of the ledger is still there: the sums begin anew, and the new ones with them.
DELETE FROM balances;
UPDATE folded SET through_id = 0;
-- Keys that the API made; `data` is JSON without the key itself.
CREATE TABLE keys (
    digest BLOB PRIMARY KEY, data TEXT NOT NULL, created_at_ms INTEGER NOT NULL, created_by TEXT NOT NULL,
    revoked_at_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX keys_by_age ON keys (created_at_ms, digest);
CREATE INDEX keys_by_user ON keys (data ->> 'user', created_at_ms, digest);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, actor_key_id TEXT NOT NULL, actor_user TEXT NOT NULL,
    action TEXT NOT NULL, target TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL,
    source_address TEXT NOT NULL, request_id TEXT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at_ms);
CREATE TABLE prompt_ratios (
    model TEXT NOT NULL, script INTEGER NOT NULL, tokens REAL NOT NULL, size_bytes REAL NOT NULL,
    PRIMARY KEY (model, script)
) WITHOUT ROWID;
"""

_MIGRATIONS = (_VERSION_1, _VERSION_2)
SCHEMA_VERSION = len(_MIGRATIONS)


def lock_file(path: Path) -> int:
    """Keeps a second service from deciding over the same balances; the kernel frees it when the process ends."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(f"auth.store: {path}: another process has it open (a second auth service?)") from None
    return handle


def is_busy(error: sqlite3.Error) -> bool:
    return bool(getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY)


def open_file(path: Path, full_sync: bool) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=32)
    except sqlite3.Error as e:
        raise ConfigError(f"auth.store: {path}: {e}") from None
    try:
        path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        _migrate(db, path)
        faults = [row[0] for row in db.execute("PRAGMA quick_check(3)")]
        if faults != ["ok"]:
            raise ConfigError(f"auth.store: {path} is damaged: {faults[0]}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as e:
        db.close()
        fault = "another process has it open" if is_busy(e) else str(e)
        raise ConfigError(f"auth.store: {path}: {fault}") from None
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise ConfigError(f"auth.store: {path} was written by a newer version (schema {version})")
    with transaction(db, "BEGIN EXCLUSIVE"):
        for migration in _MIGRATIONS[version:]:
            for statement in migration.split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    db.execute(begin)
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")

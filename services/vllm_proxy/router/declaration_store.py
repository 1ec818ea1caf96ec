"""What the router must not forget, in one SQLite file: adapter declarations and the last picture of the hosts.

Every write is committed with synchronous=FULL before it returns; there are few. One thread owns the connection.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vllm_proxy.api.router.v1 import router_pb2 as pb

T = TypeVar("T")

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE declaration (
    name TEXT NOT NULL, host TEXT NOT NULL, path TEXT NOT NULL, base TEXT NOT NULL, digest TEXT NOT NULL,
    declared_at_ms INTEGER NOT NULL, except_hosts TEXT NOT NULL, PRIMARY KEY (name, host)
) WITHOUT ROWID;
CREATE TABLE withdrawn (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE host (name TEXT PRIMARY KEY, report BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Declaration:
    """An adapter that is wanted on every host of its base model, or on one host."""

    name: str
    path: str
    base: str
    #: The only host that it is meant for. Empty: every host of the base.
    host: str
    #: Of the weights, as the hosts reported it. Empty: not told.
    digest: str
    declared_at_ms: int
    #: Hosts at whose own port it was unloaded.
    except_hosts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StoredState:
    declarations: list[Declaration]
    #: Names that must not be loaded anywhere: withdrawn, or a load that never came to its end.
    withdrawn: set[str]
    hosts: list[pb.Host]


class DeclarationStore:
    """Open it once; close it last. Methods raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "declaration-store")
        self._db: sqlite3.Connection | None = None

    async def open(self) -> StoredState:
        return await self._run(self._open)

    async def declare(self, declaration: Declaration) -> None:
        """Writes one declaration. One for all hosts takes the place of those for single hosts."""

        def write(db: sqlite3.Connection) -> None:
            d = declaration
            if not d.host:
                db.execute("DELETE FROM declaration WHERE name = ?", (d.name,))
            db.execute("DELETE FROM withdrawn WHERE name = ?", (d.name,))
            db.execute(
                "INSERT OR REPLACE INTO declaration VALUES (?, ?, ?, ?, ?, ?, ?)",
                (d.name, d.host, d.path, d.base, d.digest, d.declared_at_ms, "\n".join(sorted(d.except_hosts))),
            )

        await self._transaction(write)

    async def withdraw(self, name: str) -> None:
        """Ends every declaration of a name and notes that it must not be loaded."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM declaration WHERE name = ?", (name,))
            db.execute("INSERT OR REPLACE INTO withdrawn VALUES (?)", (name,))

        await self._transaction(write)

    async def forget(self, name: str, host: str) -> None:
        """Ends the declaration of a name for one host (empty: for all hosts), whatever is loaded."""
        await self._transaction(
            lambda db: db.execute("DELETE FROM declaration WHERE name = ? AND host = ?", (name, host))
        )

    async def save_hosts(self, reports: Iterable[pb.Host]) -> None:
        rows = [(report.name, report.SerializeToString()) for report in reports]

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM host")
            db.executemany("INSERT INTO host VALUES (?, ?)", rows)

        await self._transaction(write)

    async def close(self) -> None:
        def close() -> None:
            if self._db is not None:
                self._db.close()

        await self._run(close)
        self._thread.shutdown(wait=False)

    def _open(self) -> StoredState:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._db = db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {_SCHEMA_VERSION};COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"{self._path} was written by another version ({version})")
        return StoredState(
            declarations=[
                Declaration(
                    name, path, base, host, digest, at, frozenset(excepted.split("\n")) if excepted else frozenset()
                )
                for name, host, path, base, digest, at, excepted in db.execute("SELECT * FROM declaration")
            ],
            withdrawn={name for (name,) in db.execute("SELECT name FROM withdrawn")},
            hosts=[pb.Host.FromString(report) for (report,) in db.execute("SELECT report FROM host ORDER BY name")],
        )

    async def _transaction(self, write: Callable[[sqlite3.Connection], object]) -> None:
        def run() -> None:
            assert self._db is not None
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                write(self._db)

        await self._run(run)

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

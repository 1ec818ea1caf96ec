"""The journal in one SQLite file: WAL, one writing connection, group commit.

Whatever is appended during one turn of the event loop is one transaction. A small one is written on the loop: in WAL
mode with `synchronous=NORMAL` that is a few writes to the page cache without an fsync, and sooner done than a thread
is woken. Everything that waits for the disk runs on threads: each transaction of `synchronous=FULL`, large ones, and
checkpoints. What is appended while a thread writes is the next transaction.

A checkpoint has two parts: the WAL is copied into the file while requests go on; then, with the next transaction, the
small rest follows and the WAL begins anew (SQLite syncs its new header then, so that is done on the thread too).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vllm_proxy.auth import sqlite_queries
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.sqlite_file import is_busy, lock_file, open_file
from vllm_proxy.auth.sqlite_ledger import fold, forget
from vllm_proxy.auth.sqlite_records import read_state, write_records
from vllm_proxy.auth.store import (
    AuditQuery,
    KeyQuery,
    NumberedAuditEntry,
    Record,
    StoredKey,
    StoredState,
    UsageQuery,
    UsageRow,
)
from vllm_proxy.common.errors import NoCapacity

log = logging.getLogger(__name__)

#: Transactions of more records are written on the thread.
_MAX_INLINE_RECORDS = 512
#: How long a transaction waits for another program's (somebody who repairs something by hand).
_BUSY_TIMEOUT_MS = 30_000
#: Records after which the WAL is copied into the file (about 16 MiB).
_RECORDS_PER_CHECKPOINT = 50_000
#: Ledger rows that are added to the sums at a time while requests wait: some 20 ms with a million keys.
_ROWS_PER_FOLD = 500
#: A fold is followed by so many times its own length without one, unless more records than these wait for it: busy is
#: a loop that computes more than that part of the time. A start folds what is left, a hundred thousand rows a second.
_REST_PER_FOLD = 9
_REST_WHILE_BUSY = 49
_BUSY = 0.7
_MAX_UNFOLDED_RECORDS = 1_000_000
#: How often it is looked whether to fold while nobody writes.
_FOLD_EVERY_S = 0.1
#: Old ledger rows that are deleted at a time, after each fold.
_ROWS_PER_FORGET = 1000
_MS_PER_DAY = 86_400_000

#: Questions of people that may wait at once.
_MAX_QUESTIONS = 100

T = TypeVar("T")
_Queued = tuple[Sequence[Record], Callable[[], None]]


class SqliteStore:
    """Make it on the event loop that it is used on. Raises ConfigError if the file cannot be used."""

    def __init__(
        self, path: Path, *, full_sync: bool, metrics: AuthMetrics, ledger_retention_days: int, clock: Clock
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[Exception] = self._loop.create_future()
        self._metrics = metrics
        self._full_sync = full_sync
        self._retention_ms = ledger_retention_days * _MS_PER_DAY
        self._clock = clock
        self._queue: list[_Queued] = []
        self._flush_is_due = False
        self._in_thread = False
        self._since_checkpoint = 0
        self._copying: asyncio.Future[None] | None = None
        self._restart_wal = False
        self._fold_is_due = False
        # The last fold: when it ended, on the loop's clock and that of its CPU time, and how long it took.
        self._folded_at = self._folded_at_cpu = self._fold_took_s = 0.0
        self._folding: asyncio.TimerHandle | None = None
        self._closing = False
        self._unfolded_records = 0
        self._idle = asyncio.Event()
        self._idle.set()
        # One writes, one copies the WAL.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="auth-store")
        # What people ask waits for each other, and never for them.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="auth-store-reader")
        self._questions = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(path)
        try:
            self._db = open_file(path, full_sync)
        except BaseException:
            os.close(self._lock)
            raise
        self._path = path
        self.place = f"sqlite:{path}"

    @property
    def accepting(self) -> bool:
        return not self.failed.done()

    def load(self, recent_since_ms: int, day_since_ms: int, month_since_ms: int) -> StoredState:
        """Reads in the calling thread; for the start, before anything is appended."""
        fold(self._db, sys.maxsize)
        return read_state(self._db, recent_since_ms, day_since_ms, month_since_ms)

    def append(self, records: Sequence[Record], durable: Callable[[], None]) -> None:
        self._queue.append((records, durable))
        self._idle.clear()
        if not self._flush_is_due and not self._in_thread:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    async def close(self) -> None:
        self._closing = True
        if self._folding is not None:
            self._folding.cancel()
        if not self.failed.done():
            idle: asyncio.Future[object] = asyncio.ensure_future(self._idle.wait())
            failed: asyncio.Future[object] = asyncio.ensure_future(asyncio.shield(self.failed))
            await asyncio.wait([idle, failed], return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            failed.cancel()
        if self._copying is not None:
            await asyncio.wait([self._copying])
        await self._loop.run_in_executor(self._threads, self._db.close)
        self._threads.shutdown()
        self._reader.shutdown()
        os.close(self._lock)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._in_thread or self.failed.done():
            return
        batch, self._queue = self._queue, []
        if not batch:
            self._idle.set()
            return
        count = sum(len(records) for records, _ in batch)
        self._count_towards_checkpoint(count)
        folds = self._fold_is_due and self._may_fold_now()
        if self._full_sync or self._restart_wal or folds or count > _MAX_INLINE_RECORDS:
            self._write_in_thread(batch, folds)
            return
        try:
            self._write(batch)
        except sqlite3.Error as e:
            if is_busy(e):
                self._write_in_thread(batch)
            else:
                self._fail(e)
        else:
            self._written(batch)

    def _may_fold_now(self) -> bool:
        if self._unfolded_records > _MAX_UNFOLDED_RECORDS:
            return True
        rested_s = self._loop.time() - self._folded_at
        if rested_s < self._fold_took_s * _REST_PER_FOLD:
            return False
        if rested_s >= self._fold_took_s * _REST_WHILE_BUSY:
            return True
        return time.thread_time() - self._folded_at_cpu < rested_s * _BUSY

    def _keep_folding(self) -> None:
        """Also while nobody writes."""
        self._folding = None
        if self._fold_is_due and not self._closing and not self.failed.done():
            if not self._queue and not self._in_thread:
                self.append((), lambda: None)
            self._folding = self._loop.call_later(_FOLD_EVERY_S, self._keep_folding)

    def _write_in_thread(self, batch: list[_Queued], folds: bool = False) -> None:
        self._in_thread = True
        restart_wal, self._restart_wal = self._restart_wal, False
        job = self._threads.submit(self._write_patiently, batch, restart_wal, folds)
        job.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._thread_done, batch, folds, done))

    def _thread_done(self, batch: list[_Queued], folded: bool, job: Future[tuple[bool, float]]) -> None:
        self._in_thread = False
        error = job.exception()
        if isinstance(error, Exception):
            self._fail(error)
        else:
            if folded:
                self._fold_is_due, self._fold_took_s = job.result()
                self._folded_at, self._folded_at_cpu = self._loop.time(), time.thread_time()
                self._unfolded_records -= 2 * _ROWS_PER_FOLD
                if not self._fold_is_due:
                    self._unfolded_records = 0
            self._written(batch)
            self._flush()

    def _count_towards_checkpoint(self, records: int) -> None:
        self._since_checkpoint += records
        self._unfolded_records += records
        if self._since_checkpoint >= _RECORDS_PER_CHECKPOINT and self._copying is None:
            self._since_checkpoint = 0
            self._copying = self._loop.run_in_executor(self._threads, self._copy_wal)
            self._copying.add_done_callback(self._copied)

    def _copied(self, copying: asyncio.Future[None]) -> None:
        self._copying = None
        if (error := copying.exception()) is None:
            self._restart_wal = self._fold_is_due = True
            if self._folding is None:
                self._keep_folding()
        elif isinstance(error, Exception):
            self._fail(error)

    def _written(self, batch: list[_Queued]) -> None:
        for _, durable in batch:
            durable()
        if not self._queue and not self._in_thread:
            self._idle.set()

    def _fail(self, error: Exception) -> None:
        log.critical("the store cannot be written", exc_info=error)
        if not self.failed.done():
            self.failed.set_result(error)

    def _write(self, batch: list[_Queued]) -> None:
        started = time.perf_counter()
        count = write_records(self._db, (records for records, _ in batch))
        self._metrics.commit_seconds.observe(time.perf_counter() - started)
        self._metrics.committed_records.inc(count)

    def _write_patiently(self, batch: list[_Queued], restart_wal: bool, folds: bool) -> tuple[bool, float]:
        """Returns whether there is more to fold, and how long folding took."""
        self._db.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        try:
            self._write(batch)
        finally:
            self._db.execute("PRAGMA busy_timeout = 0")
        if restart_wal:
            # Busy if another program reads just now: the WAL then grows on until the next time.
            self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        if not folds:
            return False, 0.0
        started = time.perf_counter()
        return self._fold_and_forget(), time.perf_counter() - started

    def _fold_and_forget(self) -> bool:
        """Returns whether there is more of either."""
        more = fold(self._db, _ROWS_PER_FOLD)
        return forget(self._db, self._clock.unix_ms() - self._retention_ms, _ROWS_PER_FORGET) or more

    def _copy_wal(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        return await self._ask(lambda db: sqlite_queries.usage(db, query))

    async def stored_key(self, digest_prefix: bytes) -> StoredKey | None:
        return await self._ask(lambda db: sqlite_queries.stored_key(db, digest_prefix))

    async def stored_keys(self, query: KeyQuery) -> list[StoredKey]:
        return await self._ask(lambda db: sqlite_queries.stored_keys(db, query))

    async def audit(self, query: AuditQuery) -> list[NumberedAuditEntry]:
        return await self._ask(lambda db: sqlite_queries.audit(db, query))

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """On a connection of its own: in WAL mode it sees all that is committed and holds up nobody. Raises NoCapacity
        when too many wait already: whoever has a key may ask."""
        if self._questions >= _MAX_QUESTIONS:
            raise NoCapacity("Too many questions about keys and usage wait already.", retry_after_s=1)

        def answer() -> T:
            uri = f"{self._path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
                return question(db)

        self._questions += 1
        try:
            return await self._loop.run_in_executor(self._reader, answer)
        finally:
            self._questions -= 1

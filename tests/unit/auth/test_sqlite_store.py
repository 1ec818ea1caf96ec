# ruff: noqa: ASYNC220, ASYNC240 - nothing else runs on these tests' loop; files and a child are what they are about
from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.auth.fakes import FakeClock

from vllm_proxy.auth import sqlite_store
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.sqlite_store import SqliteStore
from vllm_proxy.auth.store import (
    AuditEntry,
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
from vllm_proxy.common.settings import ConfigError

ALICE, BOB = b"a" * 32, b"b" * 32


def opened(number: int, account: bytes = ALICE) -> LeaseOpened:
    return LeaseOpened(f"lease-{number}", account, "edge-1", f"req-{number}", "m", 100 + number, 1000 + number, "u")


def settled(number: int, account: bytes = ALICE, *, completion: int = 5, closes: bool = True) -> LedgerEntry:
    return LedgerEntry(
        f"lease-{number}", account, "u", f"req-{number}", "m", "h", 1, 1, 1, 10, 4, completion, int(closes), closes,
        2000 + number, 10 + completion,
    )  # fmt: skip


class Opened:
    """A store and what became of each append."""

    def __init__(self, path: Path, *, full_sync: bool = False) -> None:
        self.metrics = AuthMetrics(CollectorRegistry())
        self.store = SqliteStore(
            path, full_sync=full_sync, metrics=self.metrics, ledger_retention_days=90, clock=FakeClock()
        )
        self.acknowledged: list[int] = []

    def append(self, number: int, records: Sequence[Record]) -> None:
        self.store.append(records, lambda: self.acknowledged.append(number))

    async def write(self, *records: Record) -> None:
        done = asyncio.Event()
        self.store.append(records, done.set)
        await done.wait()

    @property
    def transactions(self) -> int:
        return round(
            next(
                sample.value
                for metric in self.metrics.commit_seconds.collect()
                for sample in metric.samples
                if sample.name.endswith("_count")
            )
        )


async def reloaded(path: Path, since_ms: int = 0) -> StoredState:
    opened_again = Opened(path)
    state = opened_again.store.load(since_ms, 0, 0)
    await opened_again.store.close()
    return state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "auth.db"


async def test_an_empty_store_is_made_private(path: Path) -> None:
    assert await reloaded(path) == StoredState()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_was_written_is_read_again(path: Path) -> None:
    db = Opened(path)
    await db.write(opened(1), opened(2), opened(3, BOB))
    await db.write(LeaseReported("lease-2", 1, 3, 10, 4, 50, "m", "h"), settled(1), settled(9, BOB, completion=7))
    await db.write(settled(1, completion=-2, closes=False))
    await db.store.close()
    state = await reloaded(path)
    assert state.leases == [opened(2), opened(3, BOB)]
    assert state.reports == [LeaseReported("lease-2", 1, 3, 10, 4, 50, "m", "h")]
    assert state.balances == {ALICE: Balance(20, 8, 3, 1, 23, 2001), BOB: Balance(10, 4, 7, 1, 17, 2009)}
    assert state.recent == [settled(1), settled(9, BOB, completion=7), settled(1, completion=-2, closes=False)]
    assert await reloaded(path) == state, "folding twice adds nothing"


async def test_keys_and_what_people_did_are_kept(path: Path) -> None:
    db = Opened(path)
    alice, bob = KeyStored(ALICE, '{"user": "alice"}', 1, "admin"), KeyStored(BOB, '{"user": "bob"}', 2, "admin")
    entry = AuditEntry(5, "0011", "admin", "key.create", "ab", "ok", "", "127.0.0.1", "r-1")
    changed = alice._replace(data_json='{"user": "al"}', created_at_ms=9, created_by="x")
    await db.write(alice, bob, entry)
    await db.write(KeyRevoked(BOB, 7), changed, RatioLearned("m", 1, 10.0, 40.0))
    await db.write(RatioLearned("m", 1, 20.0, 60.0))
    assert db.store._db.execute("SELECT * FROM audit").fetchall() == [(1, *entry)]
    assert db.store._db.execute("SELECT revoked_at_ms FROM keys WHERE digest = ?", (BOB,)).fetchone() == (7,)
    await db.store.close()
    state = await reloaded(path)
    assert state.keys == [changed._replace(created_at_ms=1, created_by="admin")]
    assert state.ratios == [RatioLearned("m", 1, 20.0, 60.0)]


async def test_usage_is_summed_by_the_hour_and_by_calendar_periods(path: Path) -> None:
    hour_ms = 3_600_000
    db = Opened(path)
    await db.write(
        settled(1)._replace(settled_at_ms=hour_ms, base_model="base"),
        settled(2)._replace(settled_at_ms=2 * hour_ms - 1, base_model="base", charged_tokens=11),
        settled(3, BOB)._replace(settled_at_ms=2 * hour_ms, user="v"),
        settled(4, BOB)._replace(
            user="v", model="no such model", prompt_tokens=0, completion_tokens=0, charged_tokens=0
        ),
    )
    state = db.store.load(0, 2 * hour_ms, hour_ms)
    assert sorted(state.periods) == [PeriodUsage(ALICE, "u", 0, 26), PeriodUsage(BOB, "v", 15, 15)]
    assert state.user_balances["u"] == Balance(20, 8, 10, 2, 26, 2 * hour_ms - 1)
    assert db.store._db.execute("SELECT * FROM usage_hours ORDER BY hour, account").fetchall() == [
        (0, BOB, "v", "", "", 0, 4, 0, 0, 1),
        (1, ALICE, "u", "m", "base", 20, 8, 10, 26, 2),
        (2, BOB, "v", "m", "", 10, 4, 5, 15, 1),
    ]
    await db.store.close()


async def test_old_rows_are_forgotten_and_their_sums_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_ROWS_PER_FOLD", 7)
    monkeypatch.setattr(sqlite_store, "_ROWS_PER_FORGET", 4)
    db = Opened(path)
    now_ms = FakeClock().unix_ms()
    day_ms = 86_400_000
    for number in range(20):
        await db.write(settled(number)._replace(settled_at_ms=now_ms - (100 - number) * day_ms))
    assert sum(db.store._fold_and_forget() for _ in range(10)) == 2, "in slices, and none more once all is done"
    kept = db.store._db.execute("SELECT count(*) FROM ledger").fetchone()
    assert kept == (10,), "ninety days of them"
    await db.store.close()
    assert (await reloaded(path)).balances[ALICE].requests == 20
    # However old they are, the last one stays: new rows must have higher numbers.
    db = Opened(path)
    db.store._clock.advance(1000 * 86_400)  # type: ignore[attr-defined]
    while db.store._fold_and_forget():
        pass
    await db.write(settled(99))
    assert db.store.load(0, 0, 0).balances[ALICE].requests == 21
    await db.store.close()


async def test_only_recent_rows_are_loaded(path: Path) -> None:
    db = Opened(path)
    for number in range(10):
        await db.write(settled(number))
    await db.store.close()
    assert [row.lease_id for row in (await reloaded(path, 2007)).recent] == ["lease-7", "lease-8", "lease-9"]


async def test_one_turn_of_the_loop_is_one_transaction_and_answers_keep_their_order(path: Path) -> None:
    db = Opened(path)
    before = db.transactions
    for number in range(100):
        db.append(number, [opened(number)])
    assert db.acknowledged == []
    await db.write()
    assert db.acknowledged == list(range(100))
    assert db.transactions == before + 1
    await db.store.close()


@pytest.mark.parametrize("full_sync", [False, True])
async def test_while_the_thread_writes_everything_else_becomes_one_transaction(
    path: Path, full_sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_MAX_INLINE_RECORDS", 0)
    db = Opened(path, full_sync=full_sync)
    go, write, threads = threading.Event(), db.store._write, []
    loop, writing = asyncio.get_running_loop(), asyncio.Event()

    def slow_write(batch):
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(writing.set)
        assert go.wait(10)
        write(batch)

    monkeypatch.setattr(db.store, "_write", slow_write)
    db.append(0, [opened(0)])
    await writing.wait()
    for number in range(1, 50):
        db.append(number, [opened(number)])
        await asyncio.sleep(0)
    assert db.acknowledged == [], "nothing is answered before it is durable"
    go.set()
    await db.write()
    assert db.acknowledged == list(range(50))
    assert len(threads) == 2 and threading.main_thread() not in threads
    await db.store.close()
    assert len((await reloaded(path)).leases) == 50


async def test_checkpoints_happen_on_threads_and_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_RECORDS_PER_CHECKPOINT", 20)
    monkeypatch.setattr(sqlite_store, "_ROWS_PER_FOLD", 7)
    db = Opened(path)
    threads = []
    fold, copy = db.store._fold_and_forget, db.store._copy_wal
    monkeypatch.setattr(db.store, "_fold_and_forget", lambda: threads.append(threading.current_thread()) or fold())
    monkeypatch.setattr(db.store, "_copy_wal", lambda: (threads.append(threading.current_thread()), copy()))
    wal = path.with_name("auth.db-wal")
    sizes = []
    for number in range(400):
        await db.write(opened(number), settled(number))
        sizes.append(wal.stat().st_size)
        if db.store._copying is not None and number % 2:
            await db.store._copying
    assert len(threads) >= 8 and threading.main_thread() not in threads
    assert sizes[-1] < 400 * 4096, "the WAL begins anew"
    await db.store.close()
    state = await reloaded(path)
    assert state.leases == [] and state.balances == {ALICE: Balance(4000, 1600, 2000, 400, 6000, 2399)}


async def test_the_rest_is_folded_while_nobody_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_RECORDS_PER_CHECKPOINT", 20)
    monkeypatch.setattr(sqlite_store, "_ROWS_PER_FOLD", 3)
    monkeypatch.setattr(sqlite_store, "_FOLD_EVERY_S", 0)
    db = Opened(path)
    await db.write(*(record for number in range(20) for record in (opened(number), settled(number))))
    with contextlib.closing(sqlite3.connect(path)) as reader:
        async with asyncio.timeout(20):
            while reader.execute("SELECT through_id FROM folded").fetchone() != (20,):  # noqa: ASYNC110
                await asyncio.sleep(0)
    await db.store.close()


async def test_folding_rests_longer_while_the_loop_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Opened(path).store
    store._fold_took_s, cpu_s = 1.0, 0.0
    monkeypatch.setattr(sqlite_store.time, "thread_time", lambda: cpu_s)

    def may_fold(rested_s: float) -> bool:
        store._folded_at = store._loop.time() - rested_s
        return store._may_fold_now()

    assert not may_fold(8) and may_fold(10)
    cpu_s = 9.0
    assert not may_fold(10) and may_fold(30) and may_fold(50)
    cpu_s = 45.0
    assert not may_fold(48) and may_fold(50)
    store._unfolded_records = sqlite_store._MAX_UNFOLDED_RECORDS + 1
    assert may_fold(0)
    await store.close()


async def test_commits_go_on_while_the_wal_is_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_RECORDS_PER_CHECKPOINT", 1)
    db = Opened(path)
    go, copy = threading.Event(), db.store._copy_wal
    monkeypatch.setattr(db.store, "_copy_wal", lambda: (go.wait(10), copy()))
    for number in range(20):
        await db.write(opened(number))
    assert not go.is_set() and db.store._copying is not None
    go.set()
    await db.store.close()
    assert len((await reloaded(path)).leases) == 20


async def test_another_programs_transaction_delays_but_does_not_fail(path: Path) -> None:
    db = Opened(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    db.append(1, [opened(1)])
    while not db.store._in_thread:  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0)
    assert db.acknowledged == []
    other.execute("ROLLBACK")
    other.close()
    await db.write()
    assert db.acknowledged == [1] and not db.store.failed.done()
    await db.store.close()


async def test_closing_waits_for_what_was_appended(path: Path) -> None:
    db = Opened(path)
    db.append(1, [opened(1)])
    await db.store.close()
    assert db.acknowledged == [1]
    assert (await reloaded(path)).leases == [opened(1)]


async def test_what_was_acknowledged_is_in_the_files_before_any_close(path: Path, tmp_path: Path) -> None:
    db = Opened(path)
    await db.write(opened(1), opened(2))
    await db.write(settled(1))
    crashed = tmp_path / "crashed"
    shutil.copytree(path.parent, crashed)
    state = await reloaded(crashed / path.name)
    assert state.leases == [opened(2)] and state.balances == {ALICE: Balance(10, 4, 5, 1, 15, 2001)}
    await db.store.close()


async def test_a_torn_end_of_the_wal_loses_only_what_was_not_whole(path: Path, tmp_path: Path) -> None:
    db = Opened(path)
    await db.write(settled(1))
    whole = path.with_name("auth.db-wal").stat().st_size
    await db.write(settled(2))
    crashed = tmp_path / "crashed"
    shutil.copytree(path.parent, crashed)
    with (crashed / "auth.db-wal").open("r+b") as wal:
        wal.truncate(whole + 100)
    assert [row.lease_id for row in (await reloaded(crashed / path.name)).recent] == ["lease-1"]
    await db.store.close()


_CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from vllm_proxy.auth import sqlite_store
from vllm_proxy.auth.clock import SystemClock
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.store import LeaseOpened, LedgerEntry

sqlite_store._RECORDS_PER_CHECKPOINT = 500

async def main():
    store = sqlite_store.SqliteStore(Path(sys.argv[1]), full_sync=False, metrics=AuthMetrics(CollectorRegistry()),
        ledger_retention_days=36500, clock=SystemClock())
    async def worker(name):
        for number in itertools.count():
            lease = f"{name}-{number}"
            for record in (
                LeaseOpened(lease, b"k" * 32, "o", "r", "m", 5, 0, "u"),
                LedgerEntry(lease, b"k" * 32, "u", "r", "m", "h", 1, 1, 1, 1, 0, 2, 1, True, 1, 3),
            ):
                done = asyncio.get_running_loop().create_future()
                store.append([record], lambda: done.set_result(None))
                await done
            sys.stdout.write(lease + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(worker(name) for name in range(8)))

asyncio.run(main())
"""


async def test_kill_9_loses_nothing_that_was_acknowledged(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = {child.stdout.readline().strip() for _ in range(3000)}
    child.send_signal(signal.SIGKILL)
    acknowledged |= {line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")}
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    state = await reloaded(path)
    settled_leases = {row.lease_id for row in state.recent}
    assert "" not in acknowledged and acknowledged <= settled_leases
    assert not settled_leases & {lease.lease_id for lease in state.leases}
    balance = state.balances[b"k" * 32]
    assert balance == Balance(
        len(settled_leases), 0, 2 * len(settled_leases), len(settled_leases), 3 * len(settled_leases), 1
    )
    # Each of the child's eight workers had at most one more on its way.
    assert len(settled_leases) <= len(acknowledged) + 8


async def test_a_second_service_on_the_same_file_is_refused(path: Path) -> None:
    db = Opened(path)
    with pytest.raises(ConfigError, match="another process has it open"):
        Opened(path)
    await db.store.close()


async def test_a_newer_schema_is_refused(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        Opened(path)


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(ConfigError, match=r"auth\.store"):
        Opened(path)


async def test_a_damaged_file_is_refused(path: Path) -> None:
    db = Opened(path)
    await db.write(*(opened(number) for number in range(500)))
    await db.store.close()
    content = bytearray(path.read_bytes())
    content[-4096 * 3 :] = b"\x55" * (4096 * 3)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"auth\.store"):
        Opened(path)


async def test_a_store_that_cannot_be_written_answers_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    db = Opened(path)
    await db.write(opened(1))
    (pages,) = db.store._db.execute("PRAGMA page_count").fetchone()
    db.store._db.execute(f"PRAGMA max_page_count = {pages}")
    db.append(2, [opened(number) for number in range(2, 400)])
    db.append(3, [])
    error = await db.store.failed
    assert isinstance(error, sqlite3.Error) and "full" in str(error)
    db.append(4, [opened(4)])
    await db.store.close()
    assert db.acknowledged == []
    assert "cannot be written" in caplog.text
    assert (await reloaded(path)).leases == [opened(1)]

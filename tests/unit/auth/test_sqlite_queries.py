"""What people ask of the SQLite store: usage (against sums in Python), pages of keys, pages of the audit log."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.unit.auth.fakes import Desk, FakeClock, api_key, hour_row, servicer_of

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth import sqlite_queries, sqlite_store
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.sqlite_file import open_file
from vllm_proxy.auth.sqlite_ledger import fold
from vllm_proxy.auth.sqlite_records import write_records
from vllm_proxy.auth.sqlite_store import SqliteStore
from vllm_proxy.auth.store import (
    AuditEntry,
    AuditForgotten,
    AuditQuery,
    KeyQuery,
    KeyRevoked,
    KeyStored,
    LedgerEntry,
    Record,
    UsageQuery,
    UsageRow,
    make_durable,
)
from vllm_proxy.auth.usage_sums import MS_PER_HOUR, group_of, sum_usage
from vllm_proxy.common.errors import NoCapacity

ALICE, BOB = b"a" * 32, b"b" * 32
ALL = UsageQuery(0, 1000 * MS_PER_HOUR)


def opened(path: Path) -> SqliteStore:
    metrics = AuthMetrics(CollectorRegistry())
    return SqliteStore(path, full_sync=False, metrics=metrics, ledger_retention_days=90, clock=FakeClock())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = opened(tmp_path / "auth.db")
    yield store
    await store.close()


def settled(
    hour: int, account: bytes = ALICE, user: str = "u", model: str = "m", base: str = "m", tokens: int = 1
) -> LedgerEntry:
    return LedgerEntry(
        "l", account, user, "r", model, "h", 1, 1, 1, tokens, 0, 2 * tokens, 1, True, hour * MS_PER_HOUR + 7,
        3 * tokens, base,
    )  # fmt: skip


ENTRIES = st.builds(
    settled,
    hour=st.integers(0, 72),
    account=st.sampled_from([ALICE, BOB]),
    user=st.sampled_from(["u", "v"]),
    model=st.sampled_from(["m", "pirate", "robot"]),
    base=st.sampled_from(["m", ""]),
    tokens=st.integers(0, 5),
)
COLUMNS = st.lists(
    st.sampled_from(["hour", "day", "key", "user", "model", "base_model", "adapter"]), unique=True, max_size=3
)
QUERIES = st.builds(
    UsageQuery,
    from_ms=st.integers(0, 72 * MS_PER_HOUR),
    until_ms=st.integers(0, 80 * MS_PER_HOUR),
    group_by=COLUMNS.map(tuple).filter(lambda columns: not {"hour", "day"} <= set(columns)),
    account_prefix=st.sampled_from([None, ALICE[:6], BOB]),
    user=st.sampled_from([None, "u"]),
    model=st.sampled_from([None, "pirate"]),
    after=st.none(),
    max_rows=st.sampled_from([2, 1000]),
)


def test_usage_is_what_the_ledger_says_however_far_it_is_folded(tmp_path: Path) -> None:
    db = open_file(tmp_path / "auth.db", full_sync=False)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(ENTRIES, max_size=30), QUERIES, st.integers(0, 30))
    def check(entries: list[LedgerEntry], query: UsageQuery, folded: int) -> None:
        for statement in ("DELETE FROM ledger", "DELETE FROM usage_hours", "UPDATE folded SET through_id = 0"):
            db.execute(statement)
        write_records(db, [entries])
        fold(db, folded)
        rows = [hour_row(entry) for entry in entries]
        pages: list[UsageRow] = []
        asked = query
        while True:
            page = sqlite_queries.usage(db, asked)
            assert page == sum_usage(rows, asked)
            pages += page
            if len(page) < query.max_rows:
                break
            asked = query._replace(after=group_of(query.group_by, page[-1]))
        assert pages == sum_usage(rows, query._replace(max_rows=10_000))

    check()
    db.close()


async def test_without_groups_there_is_one_sum_also_of_nothing(store: SqliteStore) -> None:
    assert await store.usage(ALL) == [UsageRow(0, b"", "", "", "", "", 0, 0, 0, 0, 0)]
    await make_durable(store, [settled(1), settled(2, BOB, tokens=2)])
    assert await store.usage(ALL) == [UsageRow(0, b"", "", "", "", "", 3, 0, 6, 9, 2)]


async def test_a_question_does_not_read_the_folded_ledger(store: SqliteStore) -> None:
    await make_durable(store, [settled(number % 48) for number in range(2000)])
    fold(store._db, 10_000)
    store._db.execute("UPDATE ledger SET prompt_tokens = 1000")
    (row,) = await store.usage(ALL)
    assert row.prompt_tokens == 2000
    plan = store._db.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM ledger WHERE id > (SELECT through_id FROM folded) AND user = 'u'"
    ).fetchall()
    assert "SEARCH ledger USING INTEGER PRIMARY KEY" in plan[0][-1]


def made(number: int, user: str = "u", at_ms: int | None = None) -> KeyStored:
    digest = number.to_bytes(4, "big") + b"k" * 28
    data = f'{{"key_sha256": "{digest.hex()}", "user": "{user}"}}'
    return KeyStored(digest, data, number if at_ms is None else at_ms, "admin")


class TestKeys:
    async def pages(self, store: SqliteStore, query: KeyQuery) -> list[list[bytes]]:
        pages = []
        while True:
            page = await store.stored_keys(query)
            pages.append([key.digest for key in page])
            if len(page) < query.max_rows:
                return pages
            query = query._replace(after=(page[-1].created_at_ms, page[-1].digest[:6]))

    async def test_pages_have_each_key_once_the_oldest_first(self, store: SqliteStore) -> None:
        keys = [made(5, at_ms=1), made(1, at_ms=2), made(2, "v", at_ms=2), made(3, at_ms=2), made(4, at_ms=9)]
        await make_durable(store, [*reversed(keys), KeyRevoked(keys[3].digest, 77)])
        digests = [key.digest for key in keys]
        listed = await self.pages(store, KeyQuery(2))
        assert listed == [digests[:2], [digests[2], digests[4]], []]
        (all_of_them,) = await self.pages(store, KeyQuery(10, with_revoked=True))
        assert all_of_them == digests
        assert await self.pages(store, KeyQuery(10, user="v")) == [[digests[2]]]

    async def test_a_key_is_found_by_the_beginning_of_its_hash_also_when_it_is_revoked(
        self, store: SqliteStore
    ) -> None:
        key = made(1)
        await make_durable(store, [key, made(2), KeyRevoked(key.digest, 77)])
        found = await store.stored_key(key.digest[:6])
        assert found == (*key, 77)
        assert await store.stored_key(b"nobody") is None

    async def test_a_hash_is_not_a_pattern(self, store: SqliteStore) -> None:
        odd, other = (made(1)._replace(digest=start.ljust(32, b"x")) for start in (rb"*?[\]^", b"abcdef"))
        await make_durable(store, [other])
        assert await store.stored_key(odd.digest[:6]) is None
        assert await store.stored_key(b"??????") is None
        await make_durable(store, [odd])
        assert await store.stored_key(odd.digest[:6]) == (*odd, None)

    @pytest.mark.parametrize("query", [KeyQuery(1000), KeyQuery(1000, user="u")], ids=["all", "one user's"])
    async def test_a_page_costs_the_same_wherever_it_is(self, store: SqliteStore, query: KeyQuery) -> None:
        await make_durable(store, [made(number) for number in range(20_000)])
        steps = 0

        def page(after: int) -> int:
            nonlocal steps
            steps = 0

            def step() -> None:
                nonlocal steps
                steps += 1

            store._db.set_progress_handler(step, 100)
            asked = query._replace(after=(after, made(after).digest))
            assert len(sqlite_queries.stored_keys(store._db, asked)) == 1000
            store._db.set_progress_handler(None, 0)
            return steps

        assert page(18_000) <= page(0) * 1.1


async def test_listing_every_key_takes_the_memory_of_a_page(store: SqliteStore, tmp_path: Path) -> None:
    await make_durable(store, [made(number, f"user-{number % 100}") for number in range(6_000)])
    keys = servicer_of(Desk(api_key("declared")), store, tmp_path)
    request = pb.ListKeysRequest(page_size=150)
    listed, peaks = 0, []
    tracemalloc.start()
    try:
        while True:
            page = await keys.ListKeys(request, None)
            listed += len(page.keys)
            peaks.append(tracemalloc.get_traced_memory()[1])
            gc.collect()
            tracemalloc.reset_peak()
            request.page_token = page.next_page_token
            if not request.page_token:
                break
    finally:
        tracemalloc.stop()
    assert listed == 6_001
    assert max(peaks[5:]) < 1.2 * max(peaks[:5])


def entry(at_ms: int, action: str = "key.create", user: str = "admin", target: str = "t") -> AuditEntry:
    return AuditEntry(at_ms, "0a0b0c0d0e0f", user, action, target, "ok", "", "127.0.0.1", "r")


class TestAudit:
    async def test_pages_are_the_newest_first_and_filters_hold(self, store: SqliteStore) -> None:
        entries = [entry(1), entry(2, "key.revoke", target="x"), entry(3, "adapter.load", "bob"), entry(4)]
        await make_durable(store, entries)

        async def asked(**query: object) -> list[int]:
            rows = await store.audit(AuditQuery(10, **query))  # type: ignore[arg-type]
            return [row.entry.at_ms for row in rows]

        assert await asked() == [4, 3, 2, 1]
        first = await store.audit(AuditQuery(3))
        assert [row.entry for row in first] == [entries[3], entries[2], entries[1]]
        assert await asked(before=first[-1].number) == [1]
        assert await asked(action="key.") == [4, 2, 1]
        assert await asked(action="key") == []
        assert await asked(action="key.revoke") == [2]
        assert await asked(actor="bob") == [3]
        assert await asked(actor="0a0b0c0d0e0f") == [4, 3, 2, 1]
        assert await asked(target="x") == [2]
        assert await asked(from_ms=2, until_ms=4) == [3, 2]

    async def test_old_entries_are_forgotten(self, store: SqliteStore) -> None:
        records: list[Record] = [entry(1), entry(2), entry(3)]
        await make_durable(store, records)
        await make_durable(store, [AuditForgotten(3)])
        assert [row.entry.at_ms for row in await store.audit(AuditQuery(10))] == [3]


async def test_questions_do_not_hold_up_the_journal(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = asyncio.Event(), False
    loop = asyncio.get_running_loop()

    def slow(db: object, query: object) -> list[UsageRow]:
        loop.call_soon_threadsafe(asked.set)
        while not answered:
            time.sleep(0.001)
        return []

    monkeypatch.setattr(sqlite_queries, "usage", slow)
    monkeypatch.setattr(sqlite_store, "_MAX_QUESTIONS", 1)
    question = asyncio.create_task(store.usage(ALL))
    await asked.wait()
    await make_durable(store, [settled(1)])
    assert not question.done()
    with pytest.raises(NoCapacity):
        await store.usage(ALL)
    answered = True
    assert await question == []
    assert await store.usage(ALL) == [], "there is room again"

"""What every store must do, as tests that each store's own file runs against itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from tests.unit.auth.test_sqlite_store import ALICE, BOB, opened, settled

from vllm_proxy.auth.store import Balance, LeaseReported, Record, Store, StoredState


class OpenStore:
    """A store, what it held when it was opened, and what became of each append."""

    def __init__(self, store: Store, since_ms: int = 0) -> None:
        self.store = store
        self.state: StoredState = store.load(since_ms, 0, 0)
        self.acknowledged: list[int] = []

    def append(self, number: int, records: Sequence[Record]) -> None:
        self.store.append(records, lambda: self.acknowledged.append(number))

    async def write(self, *records: Record) -> None:
        done = asyncio.Event()
        self.store.append(records, done.set)
        async with asyncio.timeout(20):
            await done.wait()

    async def close(self) -> None:
        await self.store.close()


#: Opens the test's own store, each time with what it was left with; the argument is `recent_since_ms`.
OpenAgain = Callable[..., Awaitable[OpenStore]]


class StoreContract:
    @pytest.fixture
    def open_again(self) -> OpenAgain:
        raise NotImplementedError

    async def test_it_begins_empty(self, open_again: OpenAgain) -> None:
        store = await open_again()
        assert store.state == StoredState()
        assert store.store.accepting
        await store.close()

    async def test_what_was_written_is_read_again(self, open_again: OpenAgain) -> None:
        store = await open_again()
        await store.write(opened(1), opened(2), opened(3, BOB))
        await store.write(LeaseReported("lease-2", 1, 3, 10, 4, 50, "m", "h"), settled(1))
        await store.write(settled(9, BOB, completion=7), LeaseReported("lease-2", 2, 3, 10, 4, 51, "m", "h"))
        await store.write(settled(1, completion=-2, closes=False))
        await store.close()
        store = await open_again()
        assert store.state.leases == [opened(2), opened(3, BOB)]
        assert store.state.reports == [LeaseReported("lease-2", 2, 3, 10, 4, 51, "m", "h")]
        assert store.state.balances == {ALICE: Balance(20, 8, 3, 1, 23, 2001), BOB: Balance(10, 4, 7, 1, 17, 2009)}
        rows = [settled(1), settled(9, BOB, completion=7), settled(1, completion=-2, closes=False)]
        assert store.state.recent == rows
        await store.close()
        again = await open_again()
        assert again.state == store.state, "reading changes nothing"
        await again.close()

    async def test_a_whole_life_in_one_append(self, open_again: OpenAgain) -> None:
        store = await open_again()
        await store.write(opened(1), LeaseReported("lease-1", 1, 3, 10, 4, 50, "m", "h"), settled(1), opened(2))
        await store.write(LeaseReported("lease-2", 1, 3, 10, 4, 50, "m", "h"), settled(2), opened(3))
        await store.close()
        store = await open_again()
        assert store.state.leases == [opened(3)] and store.state.reports == []
        assert store.state.recent == [settled(1), settled(2)]
        await store.close()

    async def test_only_recent_rows_are_loaded(self, open_again: OpenAgain) -> None:
        store = await open_again()
        for number in range(10):
            await store.write(settled(number))
        await store.close()
        store = await open_again(2007)
        assert [row.lease_id for row in store.state.recent] == ["lease-7", "lease-8", "lease-9"]
        assert store.state.balances[ALICE].requests == 10
        await store.close()

    async def test_answers_keep_their_order_and_come_after_the_commit(self, open_again: OpenAgain) -> None:
        store = await open_again()
        for number in range(100):
            store.append(number, [opened(number)] if number % 3 else [])
        assert store.acknowledged == []
        await store.write()
        assert store.acknowledged == list(range(100))
        await store.close()

    async def test_a_group_larger_than_one_transaction(self, open_again: OpenAgain) -> None:
        store = await open_again()
        await store.write(*(opened(number) for number in range(5000)))
        await store.write(*(settled(number, ALICE if number % 2 else BOB) for number in range(4990)))
        await store.close()
        store = await open_again()
        assert len(store.state.leases) == 10
        assert store.state.balances[ALICE] == Balance(24950, 9980, 12475, 2495, 37425, 6989)
        await store.close()

    async def test_closing_waits_for_what_was_appended(self, open_again: OpenAgain) -> None:
        store = await open_again()
        store.append(1, [opened(1)])
        await store.close()
        assert store.acknowledged == [1]
        store = await open_again()
        assert store.state.leases == [opened(1)]
        await store.close()

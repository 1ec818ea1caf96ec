"""The Redis store against a real server: what every store must do, who leads, and what becomes of an outage."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.support.cluster import free_port
from tests.support.valkey import Valkey
from tests.support.wait import eventually
from tests.unit.auth import test_sqlite_queries
from tests.unit.auth.fakes import CONFIG
from tests.unit.auth.store_contract import OpenAgain, OpenStore, StoreContract
from tests.unit.auth.test_sqlite_queries import ALL
from tests.unit.auth.test_sqlite_store import ALICE, BOB, opened, settled

from vllm_proxy.auth.config import RedisConfig
from vllm_proxy.auth.leadership import DataLost, Deposed
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.redis_store import RedisStore
from vllm_proxy.auth.store import Store, make_durable
from vllm_proxy.auth.usage_sums import sum_usage
from vllm_proxy.common.settings import ConfigError

QUICK = RedisConfig(timeout_s=0.3, leadership_ttl_s=1.0)


async def open_store(url: str, config: RedisConfig = QUICK, since_ms: int = 0) -> OpenStore:
    metrics = AuthMetrics(CollectorRegistry())
    store = await RedisStore.open(replace(CONFIG, redis_url=url, redis=config), metrics, lambda: (since_ms, 0, 0))
    return OpenStore(store, since_ms)


@pytest.fixture(scope="module")
def shared() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def config(request: pytest.FixtureRequest) -> RedisConfig:
    """Each test has keys of its own."""
    return replace(QUICK, prefix=request.node.name)


@pytest.fixture
def own() -> Iterator[Valkey]:
    """A server that the test may kill."""
    with Valkey() as valkey:
        yield valkey


class TestContract(StoreContract):
    @pytest.fixture
    def open_again(self, shared: Valkey, config: RedisConfig) -> OpenAgain:
        # No outage here, and great groups: a busy machine may take its time over them.
        patient = replace(config, timeout_s=20, leadership_ttl_s=60)
        return lambda since_ms=0: open_store(shared.url, patient, since_ms)


@pytest.fixture
async def store(shared: Valkey, config: RedisConfig) -> AsyncIterator[Store]:
    opened = await open_store(shared.url, config)
    yield opened.store
    await opened.close()


class TestKeys(test_sqlite_queries.TestKeys):
    #: It counts SQLite's steps.
    test_a_page_costs_the_same_wherever_it_is = None


class TestAudit(test_sqlite_queries.TestAudit):
    pass


async def test_usage_is_summed(store: Store) -> None:
    settle = test_sqlite_queries.settled
    entries = [settle(1), settle(2, BOB, "v", tokens=2), settle(2, BOB, "v", tokens=3), settle(30, model="pirate")]
    await make_durable(store, entries)
    for query in (ALL, ALL._replace(group_by=("day", "key")), ALL._replace(group_by=("adapter",), user="u")):
        assert await store.usage(query) == sum_usage(map(test_sqlite_queries.hour_row, entries), query)


class TestBatches:
    async def test_one_that_is_sent_again_is_applied_once(
        self, shared: Valkey, config: RedisConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_store(shared.url, config)
        send, lost = store.store._send, []

        async def send_and_lose_the_answer(number: int) -> Any:
            answer = await send(number)
            if len(lost) < 3:
                lost.append(number)
                raise ConnectionResetError
            return answer

        monkeypatch.setattr(store.store, "_send", send_and_lose_the_answer)
        await store.write(opened(1), settled(1))
        assert lost == [1, 1, 1]
        await store.close()
        store = await open_store(shared.url, config)
        assert store.state.balances[ALICE].requests == 1
        assert store.state.recent == [settled(1)]
        await store.close()

    async def test_it_knows_the_script_again_when_redis_forgot_it(self, shared: Valkey, config: RedisConfig) -> None:
        store = await open_store(shared.url, config)
        await store.write(opened(1))
        shared.client.script_flush()
        await store.write(opened(2))
        await store.close()

    async def test_all_keys_lie_in_one_slot(self, shared: Valkey, config: RedisConfig) -> None:
        store = await open_store(shared.url, config)
        await store.write(opened(1), settled(1))
        await store.close()
        assert all(key.startswith(b"{") for key in shared.client.scan_iter())

    async def test_what_no_script_can_use_fails_for_good(self, shared: Valkey, config: RedisConfig) -> None:
        store = await open_store(shared.url, config)
        shared.client.set(f"{{{config.prefix}}}:leases", "not a hash")
        store.append(1, [opened(1)])
        assert "WRONGTYPE" in str(await store.store.failed)
        await store.close()
        assert store.acknowledged == []


class TestLeadership:
    async def test_who_stands_by_leads_as_soon_as_the_leader_stops(self, shared: Valkey, config: RedisConfig) -> None:
        first = await open_store(shared.url, replace(config, leadership_ttl_s=60))
        await first.write(opened(1))
        standby = asyncio.create_task(open_store(shared.url, config))
        assert not (await asyncio.wait([standby], timeout=0.5))[0]
        await first.close()
        second = await asyncio.wait_for(standby, 5)
        assert second.state.leases == [opened(1)]
        await second.close()

    async def test_a_leader_that_died_is_followed_when_its_lease_ran_out(
        self, shared: Valkey, config: RedisConfig
    ) -> None:
        first = await open_store(shared.url, config)
        await first.write(opened(1))
        for task in first.store._tasks:
            task.cancel()
        second = await asyncio.wait_for(open_store(shared.url, config), 5)
        assert second.state.leases == [opened(1)]
        assert not first.store.accepting
        await second.close()
        await first.close()

    async def test_a_deposed_leader_changes_nothing_and_answers_nobody(
        self, shared: Valkey, config: RedisConfig
    ) -> None:
        first = await open_store(shared.url, config)
        await first.write(opened(1))
        shared.client.delete(f"{{{config.prefix}}}:leader")
        second = await open_store(shared.url, config)
        first.append(1, [settled(1)])
        assert isinstance(await first.store.failed, Deposed)
        await first.close()
        assert first.acknowledged == []
        await second.write(opened(2))
        assert not second.store.failed.done()
        await second.close()
        third = await open_store(shared.url, config)
        assert third.state.leases == [opened(1), opened(2)] and third.state.balances == {}
        await third.close()

    async def test_a_wrong_password_stops_the_start_and_is_not_shown(self, own: Valkey) -> None:
        own.client.config_set("requirepass", "right")
        with pytest.raises(ConfigError) as told:
            await open_store(own.url.replace("unix://", "unix://:wrong-secret@"))
        assert "refuses" in str(told.value) and "wrong-secret" not in str(told.value)
        store = await open_store(own.url.replace("unix://", "unix://:right@"))
        assert "right" not in store.store.place
        await store.close()


async def write_on(store: OpenStore, numbers: range) -> asyncio.Task[None]:
    async def write() -> None:
        for number in numbers:
            await store.write(opened(number), settled(number))

    return asyncio.create_task(write())


class TestOutages:
    async def test_a_kill_loses_nothing_and_the_leader_goes_on(self, own: Valkey) -> None:
        store = await open_store(own.url)
        writing = await write_on(store, range(300))
        for _ in range(3):
            await asyncio.sleep(0.05)
            await asyncio.to_thread(own.kill)
            await asyncio.to_thread(own.start)
        await asyncio.wait_for(writing, 20)
        await eventually(lambda: store.store.accepting, "admissions again")
        await store.close()
        store = await open_store(own.url)
        assert store.state.balances[ALICE].requests == 300
        assert len(store.state.recent) == 300
        await store.close()

    async def test_a_pause_longer_than_the_lease(self, own: Valkey) -> None:
        store = await open_store(own.url)
        own.pause()
        store.append(1, [opened(1)])
        await eventually(lambda: not store.store.accepting, "no admissions")
        await eventually(lambda: store.store._out, "the outage is noticed")
        await asyncio.sleep(1.2)  # the lease runs out meanwhile
        own.resume()
        await eventually(lambda: store.acknowledged == [1], "the record is durable")
        await eventually(lambda: store.store.accepting, "admissions again")
        await store.close()
        store = await open_store(own.url)
        assert store.state.leases == [opened(1)]
        await store.close()

    async def test_fail_open_answers_from_memory_and_writes_later(self, own: Valkey) -> None:
        store = await open_store(own.url, replace(QUICK, fail_open=True, outage_buffer=50))
        await store.write(opened(0))
        await asyncio.to_thread(own.kill)
        store.append(0, [opened(1)])
        await eventually(lambda: store.acknowledged == [0], "answered without Redis")
        for number in range(1, 25):
            store.append(number, [opened(number + 1)])
        await eventually(lambda: len(store.acknowledged) == 25, "answered without Redis")
        assert store.store.accepting
        for number in range(25, 60):
            store.append(number, [opened(number + 1)])
        assert not store.store.accepting, "the buffer is bounded"
        await asyncio.to_thread(own.start)
        await eventually(lambda: store.store._queued_records == 0, "everything written")
        assert store.store.accepting
        await store.close()
        store = await open_store(own.url)
        assert len(store.state.leases) == 61
        await store.close()

    async def test_a_redis_that_lost_its_last_moments_gets_them_again(self, own: Valkey) -> None:
        store = await open_store(own.url)
        await (await write_on(store, range(10)))
        files, copy = own.root / "appendonlydir", own.root / "copy"
        shutil.copytree(files, copy)
        await (await write_on(store, range(10, 20)))
        await asyncio.to_thread(own.kill)
        shutil.rmtree(files)
        copy.rename(files)
        await asyncio.to_thread(own.start)
        await (await write_on(store, range(20, 30)))
        await store.close()
        store = await open_store(own.url)
        assert [row.lease_id for row in store.state.recent] == [f"lease-{number}" for number in range(30)]
        assert store.state.balances[ALICE].requests == 30
        await store.close()

    async def test_an_empty_redis_is_noticed(self, own: Valkey, caplog: pytest.LogCaptureFixture) -> None:
        store = await open_store(own.url)
        await store.write(opened(1))
        await asyncio.to_thread(own.lose_everything)
        await asyncio.to_thread(own.start)
        store.append(1, [settled(1)])
        assert isinstance(await asyncio.wait_for(store.store.failed, 10), DataLost)
        await store.close()
        assert store.acknowledged == [] and "Redis has lost data" in caplog.text

    async def test_a_full_redis_is_an_outage(self, own: Valkey) -> None:
        store = await open_store(own.url)
        await store.write(opened(1))
        own.client.config_set("maxmemory", 1)
        store.append(1, [opened(2)])
        await eventually(lambda: store.store._out, "the outage is noticed")
        own.client.config_set("maxmemory", 0)
        await eventually(lambda: store.acknowledged == [1], "the record is durable")
        await store.close()


async def test_a_cluster() -> None:
    with Valkey(arguments=["--cluster-enabled", "yes"], port=free_port()) as valkey:
        valkey.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await eventually(lambda: valkey.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "a cluster")
        url = f"redis+cluster://127.0.0.1:{valkey.port}"
        store = await open_store(url)
        await store.write(opened(1), settled(1), opened(2))
        await store.close()
        store = await open_store(url)
        assert store.state.leases == [opened(2)] and store.state.balances[ALICE].requests == 1
        await store.close()


async def test_a_failover_under_sentinels() -> None:
    """The replica becomes the primary; what it had not copied yet comes from the leader's own memory."""
    with (
        Valkey(port=free_port()) as primary,
        Valkey(port=free_port(), arguments=["--replicaof", "127.0.0.1", str(primary.port)]) as replica,
        Valkey(port=free_port(), sentinel_of=primary) as sentinel,
    ):
        await eventually(lambda: replica.client.info()["master_link_status"] == "up", "a replica in step", 20)
        await eventually(
            lambda: sentinel.client.execute_command("SENTINEL REPLICAS", "main"), "the sentinel knows it", 20
        )
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        store = await open_store(url)
        await (await write_on(store, range(20)))
        replica.pause()
        await (await write_on(store, range(20, 25)))
        await asyncio.to_thread(primary.kill)
        replica.resume()
        await asyncio.wait_for(await write_on(store, range(25, 30)), 40)
        await store.close()
        store = await open_store(url)
        assert store.state.balances[ALICE].requests == 30
        await store.close()

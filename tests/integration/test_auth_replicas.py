"""Two auth replicas over one Redis: one leads, the other takes over; what an outage of Redis does to clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import Cluster
from tests.support.process import ServiceProcess
from tests.support.streams import live_streams
from tests.support.valkey import Valkey
from tests.support.wait import eventually

#: Contract: new requests work so soon after a kill.
BACK_WITHIN_S = 10.0
STREAMS = 20


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster, valkey: Valkey) -> Cluster:
    auth = {"store": valkey.url, "leadership_ttl_s": 1.5, "redis_timeout_s": 0.5, "lease_ttl_s": 5}
    return start_cluster({"auth": auth}, auths=2)


def leader(cluster: Cluster) -> ServiceProcess:
    """The replica that says last that it is ready."""
    ready = {
        line["time"]: auth
        for auth in cluster.auths
        if auth.running
        for line in auth.log_lines()
        if line.get("event") == "ready"
    }
    return ready[max(ready)]


async def answers(cluster: Cluster) -> bool:
    return (await cluster.client().chat()).status == 200


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_the_other_replica_takes_over_under_streams(cluster: Cluster, kill: bool) -> None:
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, STREAMS, max_tokens=400) as streams:
        old = leader(cluster)
        began = time.monotonic()
        if kill:
            old.kill()
        else:
            assert await asyncio.to_thread(old.stop) == 0
        assert (await alice.chat(max_tokens=3)).status == 200, "it waited for the new leader"
        assert time.monotonic() - began < BACK_WITHIN_S
        assert leader(cluster) is not old
        await asyncio.to_thread(old.start)
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes), "running streams do not notice"
    used = await cluster.settled_usage() - before
    assert (used.requests, used.completion_tokens) == (STREAMS + 1, STREAMS * 400 + 3)
    assert cluster.control.open_leases() == []


async def test_a_frozen_leader_is_left_for_the_other_replica(cluster: Cluster) -> None:
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, STREAMS, max_tokens=400) as streams:
        frozen = leader(cluster)
        frozen.pause()
        assert (await alice.chat(max_tokens=3)).status == 200, "it waited for the new leader"
        assert leader(cluster) is not frozen
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes), "running streams do not notice"
    frozen.kill()
    await asyncio.to_thread(frozen.start)
    used = await cluster.settled_usage() - before
    assert (used.requests, used.completion_tokens) == (STREAMS + 1, STREAMS * 400 + 3)


async def test_without_redis_nothing_new_is_admitted_and_what_runs_goes_on(cluster: Cluster, valkey: Valkey) -> None:
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, STREAMS, max_tokens=400) as streams:
        await asyncio.to_thread(valkey.kill)

        async def refused() -> bool:
            answer = await alice.chat()
            return answer.status == 503 and answer.error["code"] == "auth_unavailable"

        await eventually(refused, "no admission without Redis", 15)
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes), "running streams do not notice"
        await asyncio.to_thread(valkey.start)
        await eventually(lambda: answers(cluster), "admissions again", BACK_WITHIN_S)
    used = await cluster.settled_usage() - before
    assert used.completion_tokens >= STREAMS * 400
    assert cluster.control.open_leases() == []


async def test_the_password_of_redis_is_nowhere_to_be_seen(start_cluster: StartCluster) -> None:
    with Valkey(arguments=["--requirepass", "hunter2"], password="hunter2") as locked:
        cluster = start_cluster({"auth": {"store": locked.url.replace("unix://", "unix://:hunter2@")}})
        assert await answers(cluster)
        assert "hunter2" not in cluster.auth.log_path.read_text()
        assert any(line.get("store") == locked.url for line in cluster.auth.log_lines())
        cluster.auth.stop()

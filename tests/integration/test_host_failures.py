"""Engine hosts that die, return and share the work."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import Cluster
from tests.support.streams import live_streams
from tests.support.wait import eventually

HOSTS = ("sim-a", "sim-b")
#: Contract: a dead host is out of the table within this time.
OUT_OF_TABLE_S = 3.0
#: Tokens that may be counted on their way to the edge when a host dies: a few steps.
IN_TRANSIT_TOKENS = 50


@pytest.fixture(scope="module")
def one_host(start_cluster: StartCluster) -> Cluster:
    return start_cluster({"edge": {"capacity_wait_s": 1}})


@pytest.fixture(scope="module")
def two_hosts(start_cluster: StartCluster) -> Cluster:
    return start_cluster(hosts=HOSTS)


class TestOneHost:
    @pytest.fixture
    def cluster(self, one_host: Cluster) -> Cluster:
        return one_host

    async def test_killed_in_mid_stream(self, cluster: Cluster) -> None:
        alice = cluster.client()
        before = await cluster.settled_usage()
        async with live_streams(alice, 5, max_tokens=100_000) as streams:
            for stream in streams:
                await stream.wait_tokens(10)
            cluster.host.kill()
            for stream in streams:
                outcome = await stream.end(deadline_s=10)
                assert outcome.complete and not outcome.done
                assert outcome.error is not None
                assert outcome.error["code"] in ("engine_failed", "engine_unavailable")
            used = await cluster.settled_usage() - before
            seen = sum(stream.tokens for stream in streams)
            assert seen <= used.completion_tokens <= seen + IN_TRANSIT_TOKENS
            assert used.requests == 5

            refused = await alice.chat()
            assert refused.status == 503
            assert refused.error["type"]
            health = await alice.request("GET", "/health")
            assert health.status == 503

            cluster.host.start()
            await asyncio.to_thread(cluster.host.wait_healthy)
            await eventually(lambda: _answers(cluster), "answers after the host returned")
            assert (await alice.stream(max_tokens=20)).done

    async def test_a_request_waits_for_a_host_that_comes_back_soon(self, cluster: Cluster) -> None:
        cluster.write_config({"edge": {"capacity_wait_s": 20}})
        await asyncio.to_thread(cluster.edge.restart)
        cluster.host.kill()
        waiting = asyncio.create_task(cluster.client().chat(max_tokens=2))
        await eventually(lambda: cluster.control.usage("alice").running == 1, "the request admitted")
        await asyncio.to_thread(cluster.host.start)
        assert (await waiting).status == 200
        await cluster.settled_usage()


class TestTwoHosts:
    @pytest.fixture
    def cluster(self, two_hosts: Cluster) -> Cluster:
        return two_hosts

    async def test_least_loaded_spreads_streams(self, cluster: Cluster) -> None:
        async with live_streams(cluster.client(), 20, max_tokens=100_000) as streams:
            await eventually(lambda: cluster.control.in_flight() == 20, "all reported in flight")
            per_host = {name: host.load.in_flight for name, host in cluster.control.hosts().items()}
            for stream in streams:
                await stream.leave()
            assert min(per_host.values()) >= 5, per_host

    async def test_killed_before_the_first_byte_is_retried_elsewhere(self, cluster: Cluster) -> None:
        """A stopped host takes requests and answers none; when it dies they are served by the other."""
        alice = cluster.client()
        before = await cluster.settled_usage()
        frozen = cluster.hosts["sim-a"]
        frozen.pause()
        requests = [asyncio.create_task(alice.chat(max_tokens=5)) for _ in range(20)]
        # Those that went to the other host are done; the rest wait for the frozen one.
        await eventually(lambda: sum(r.done() for r in requests) >= 1, "answers of the living host")
        await eventually(lambda: cluster.control.usage("alice").running == 20 - sum(r.done() for r in requests), "rest")
        frozen.kill()
        answers = await asyncio.gather(*requests)
        assert [answer.status for answer in answers] == [200] * 20
        used = await cluster.settled_usage() - before
        assert (used.completion_tokens, used.requests) == (100, 20)
        await eventually(lambda: any(line.get("attempt") == 2 for line in cluster.edge.log_lines()), "a second attempt")
        frozen.start()
        await asyncio.to_thread(cluster.wait_serving, 2)

    async def test_a_dead_host_leaves_the_table_and_returns(self, cluster: Cluster) -> None:
        died_at = time.monotonic()
        cluster.hosts["sim-b"].kill()
        await eventually(lambda: cluster.control.serving_hosts() == {"sim-a"}, "sim-b out of the table", OUT_OF_TABLE_S)
        assert time.monotonic() - died_at <= OUT_OF_TABLE_S
        answers = await asyncio.gather(*(cluster.client().chat(max_tokens=2) for _ in range(20)))
        assert [answer.status for answer in answers] == [200] * 20
        cluster.hosts["sim-b"].start()
        await eventually(lambda: cluster.control.serving_hosts() == set(HOSTS), "sim-b back", 10)
        await eventually(lambda: _served_by(cluster, "sim-b"), "requests on sim-b again")

    async def test_a_frozen_host_leaves_the_table_too(self, cluster: Cluster) -> None:
        """Its connections stay open, so only the missing heartbeats tell."""
        cluster.hosts["sim-b"].pause()
        try:
            await eventually(
                lambda: cluster.control.serving_hosts() == {"sim-a"}, "sim-b out of the table", OUT_OF_TABLE_S + 0.5
            )
        finally:
            cluster.hosts["sim-b"].resume()
        await eventually(lambda: cluster.control.serving_hosts() == set(HOSTS), "sim-b back", 10)

    async def test_streams_of_the_living_host_do_not_notice(self, cluster: Cluster) -> None:
        alice = cluster.client()
        async with live_streams(alice, 20, max_tokens=400) as streams:
            cluster.hosts["sim-a"].kill()
            outcomes = await asyncio.gather(*(stream.end() for stream in streams))
            done = sum(outcome.done for outcome in outcomes)
            failed = sum(outcome.error is not None for outcome in outcomes)
            assert done + failed == 20
            assert done >= 5 and failed >= 5
            cluster.hosts["sim-a"].start()
            await asyncio.to_thread(cluster.wait_serving, 2)
            await cluster.settled_usage()


async def test_round_robin_takes_turns(start_cluster: StartCluster) -> None:
    cluster = start_cluster({"router": {"policy": "round_robin"}}, hosts=HOSTS)
    alice = cluster.client()
    for _ in range(10):
        assert (await alice.chat(max_tokens=1)).status == 200
    assert {name: len(cluster.journal(name)) for name in HOSTS} == {"sim-a": 5, "sim-b": 5}


async def _answers(cluster: Cluster) -> bool:
    return (await cluster.client().chat()).status == 200


async def _served_by(cluster: Cluster, host: str) -> bool:
    await asyncio.gather(*(cluster.client().chat(max_tokens=2) for _ in range(4)))
    return len(cluster.journal(host)) > 0

"""SIGTERM: what runs ends well, nothing new is taken, and the process goes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import Cluster
from tests.support.streams import live_streams
from tests.support.wait import eventually

DRAIN_TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def shared(start_cluster: StartCluster) -> Cluster:
    return start_cluster(
        {"edge": {"drain_timeout_s": DRAIN_TIMEOUT_S}, "engine_host": {"drain_timeout_s": DRAIN_TIMEOUT_S}},
        hosts=("sim-a", "sim-b"),
    )


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Whole again after each test."""
    yield shared
    for service in shared.services:
        if not service.running:
            service.start()
    for service in shared.services:
        service.wait_healthy()
    shared.wait_serving(len(shared.hosts))


async def test_an_edge_lets_its_streams_end(cluster: Cluster) -> None:
    before = await cluster.settled_usage()
    async with live_streams(cluster.client(), 20, max_tokens=300) as streams:
        cluster.edge.terminate()
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes)
        assert await asyncio.to_thread(cluster.edge.wait_ended) == 0
        used = await cluster.settled_usage() - before
        assert (used.requests, used.completion_tokens) == (20, 20 * 300)


async def test_an_edge_aborts_what_does_not_end_in_time(cluster: Cluster) -> None:
    before = await cluster.settled_usage()
    async with live_streams(cluster.client(), 5, max_tokens=100_000) as streams:
        cluster.edge.terminate()
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert not any(outcome.done for outcome in outcomes)
        assert await asyncio.to_thread(cluster.edge.wait_ended, DRAIN_TIMEOUT_S + 8) == 0
        used = await cluster.settled_usage() - before
        assert used.completion_tokens >= sum(stream.tokens for stream in streams)


async def test_a_second_signal_forces(cluster: Cluster) -> None:
    async with live_streams(cluster.client(), 2, max_tokens=100_000) as streams:
        seen = _stops_seen(cluster)
        cluster.edge.terminate()
        await eventually(lambda: _stops_seen(cluster) > seen, "the first signal seen")
        cluster.edge.terminate()
        assert await asyncio.to_thread(cluster.edge.wait_ended, 2) not in (0, -signal.SIGKILL)
        for stream in streams:
            await stream.end()
        await cluster.settled_usage()


async def test_a_host_lets_its_streams_end_while_new_ones_go_elsewhere(cluster: Cluster) -> None:
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, 20, max_tokens=300) as streams:
        cluster.hosts["sim-a"].terminate()
        await eventually(lambda: "sim-a" not in cluster.control.serving_hosts(), "sim-a takes nothing new")
        others = await asyncio.gather(*(alice.chat(max_tokens=2) for _ in range(20)))
        assert [answer.status for answer in others] == [200] * 20
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.done for outcome in outcomes), [o.error for o in outcomes]
        assert await asyncio.to_thread(cluster.hosts["sim-a"].wait_ended) == 0
        used = await cluster.settled_usage() - before
        assert (used.requests, used.completion_tokens) == (40, 20 * 300 + 40)


async def test_a_host_aborts_what_does_not_end_in_time(cluster: Cluster) -> None:
    before = await cluster.settled_usage()
    async with live_streams(cluster.client(), 10, max_tokens=100_000) as streams:
        for host in cluster.hosts.values():
            host.terminate()
        outcomes = await asyncio.gather(*(stream.end() for stream in streams))
        assert all(outcome.error is not None and not outcome.done for outcome in outcomes)
        for host in cluster.hosts.values():
            assert await asyncio.to_thread(host.wait_ended, DRAIN_TIMEOUT_S + 8) == 0
        used = await cluster.settled_usage() - before
        assert used.completion_tokens >= sum(stream.tokens for stream in streams)


@pytest.mark.parametrize("name", ["auth", "router"])
async def test_auth_and_router_stop_at_once(cluster: Cluster, name: str) -> None:
    service = cluster.auth if name == "auth" else cluster.router
    assert await asyncio.to_thread(service.stop) == 0


def _stops_seen(cluster: Cluster) -> int:
    return sum(line.get("event") == "stopping" for line in cluster.edge.log_lines())

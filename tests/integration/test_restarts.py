"""Services that are killed and come back while 50 streams run: nobody else notices, and the books balance."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import Cluster
from tests.support.streams import LiveStream, live_streams
from tests.support.wait import eventually

STREAMS = 50
#: Contract: new requests work so soon after a kill.
BACK_WITHIN_S = 10.0
#: Tokens counted on their way to the edge when a host dies.
IN_TRANSIT_TOKENS = STREAMS * 10


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster({"auth": {"lease_ttl_s": 5}})


async def answers(cluster: Cluster) -> bool:
    return (await cluster.client().chat()).status == 200


async def finish_all(streams: list[LiveStream], tokens: int) -> None:
    outcomes = await asyncio.gather(*(stream.end() for stream in streams))
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert all(outcome.done for outcome in outcomes)
    assert {stream.tokens for stream in streams} == {tokens}


async def assert_nothing_leaks(cluster: Cluster) -> None:
    await cluster.settled_usage()
    assert cluster.control.open_leases() == []
    await eventually(lambda: cluster.control.in_flight() == 0, "nothing in flight at the host")


async def test_auth_killed(cluster: Cluster) -> None:
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, STREAMS, max_tokens=600) as streams:
        cluster.auth.kill()
        progress = [len(stream.outcome.events) for stream in streams]
        for stream, events in zip(streams, progress, strict=True):
            await stream.wait_tokens(events + 5)  # they go on without it
        assert (await alice.request("GET", "/health")).status == 503
        waiting = asyncio.create_task(alice.chat(max_tokens=3))  # admitted once it is back
        await asyncio.to_thread(cluster.auth.start)
        assert (await waiting).status == 200
        await finish_all(streams, 600)
        used = await cluster.settled_usage() - before
        assert used.requests == STREAMS + 1
        assert used.completion_tokens == STREAMS * 600 + 3
        await assert_nothing_leaks(cluster)


async def test_auth_killed_while_streams_end(cluster: Cluster) -> None:
    """What ended in its absence is settled when it is back."""
    before = await cluster.settled_usage()
    async with live_streams(cluster.client(), STREAMS, max_tokens=100) as streams:
        cluster.auth.kill()
        await finish_all(streams, 100)
        await asyncio.to_thread(cluster.auth.start)
        used = await cluster.settled_usage() - before
        assert (used.requests, used.completion_tokens) == (STREAMS, STREAMS * 100)
        await assert_nothing_leaks(cluster)


async def test_router_killed(cluster: Cluster) -> None:
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, STREAMS, max_tokens=600) as streams:
        cluster.router.kill()
        # The edge's table is frozen, not gone.
        assert [(await alice.chat(max_tokens=1)).status for _ in range(5)] == [200] * 5
        await asyncio.to_thread(cluster.router.start)
        await asyncio.to_thread(cluster.wait_serving, 1)
        assert (await alice.chat(max_tokens=1)).status == 200
        await finish_all(streams, 600)
        used = await cluster.settled_usage() - before
        assert (used.requests, used.completion_tokens) == (STREAMS + 6, STREAMS * 600 + 6)
        await assert_nothing_leaks(cluster)


async def test_edge_killed(cluster: Cluster) -> None:
    """Its clients lose their streams; the host settles what was produced, and slots return."""
    before = await cluster.settled_usage()
    rows_before = {row["id"] for row in cluster.journal()}
    async with live_streams(cluster.client(), STREAMS, max_tokens=100_000) as streams:
        cluster.edge.kill()
        for stream in streams:
            assert not (await stream.end()).complete
        await eventually(lambda: cluster.control.in_flight() == 0, "the engine freed", deadline_s=5)
        await asyncio.to_thread(cluster.edge.start)
        await eventually(lambda: answers(cluster), "answers after the edge returned", BACK_WITHIN_S)
        used = await cluster.settled_usage() - before
        rows = [row for row in cluster.journal() if row["id"] not in rows_before]
        assert used.completion_tokens == sum(row["completion_tokens"] for row in rows)
        assert used.prompt_tokens == sum(row["prompt_tokens"] for row in rows)
        await assert_nothing_leaks(cluster)


async def test_host_killed(cluster: Cluster) -> None:
    """The edge settles what it saw last."""
    alice = cluster.client()
    before = await cluster.settled_usage()
    async with live_streams(alice, STREAMS, max_tokens=100_000) as streams:
        cluster.host.kill()
        for stream in streams:
            assert (await stream.end()).error is not None
        await asyncio.to_thread(cluster.host.start)
        await eventually(lambda: answers(cluster), "answers after the host returned", BACK_WITHIN_S)
        used = await cluster.settled_usage() - before
        seen = sum(stream.tokens for stream in streams)
        assert seen <= used.completion_tokens - 1 <= seen + IN_TRANSIT_TOKENS
        await assert_nothing_leaks(cluster)


async def test_everything_killed_at_once(cluster: Cluster) -> None:
    async with live_streams(cluster.client(), 10, max_tokens=100_000):
        for service in cluster.services:
            service.kill()
        for service in cluster.services:
            service.start()
        await eventually(lambda: cluster.edge.is_healthy, "everything back", 2 * BACK_WITHIN_S)
        await eventually(lambda: answers(cluster), "answers again", BACK_WITHIN_S)
        # Nobody is left who knows what was produced: the leases lapse, the slots return.
        await cluster.settled_usage(deadline_s=15)
        await assert_nothing_leaks(cluster)


async def test_one_of_two_workers_killed(start_cluster: StartCluster) -> None:
    """The workers share one listener; new connections go to the one that is left."""
    cluster = start_cluster(workers=2)
    alice = cluster.client()

    def owners() -> Counter[str]:
        return Counter(lease.owner_id for lease in cluster.control.open_leases())

    async with AsyncExitStack() as stack:
        streams: list[LiveStream] = []
        async with asyncio.timeout(30):
            while len(owners()) < 2 or min(owners().values()) < 3:
                streams += await stack.enter_async_context(live_streams(alice, 1, max_tokens=100_000))
        (killed,) = [owner for owner in owners() if f"-{cluster.edges[0].pid}-" in owner]
        lost = owners()[killed]
        cluster.edges[0].kill()
        await eventually(lambda: sum(stream.ended for stream in streams) == lost, "the killed worker's streams ended")
        survivors = [stream for stream in streams if not stream.ended]
        progress = [len(stream.outcome.events) for stream in survivors]
        for stream, events in zip(survivors, progress, strict=True):
            await stream.wait_tokens(events + 5)
        assert [(await alice.chat()).status for _ in range(10)] == [200] * 10
        cluster.edges[0].start()
    used = await cluster.settled_usage()
    await eventually(lambda: cluster.control.in_flight() == 0, "nothing in flight")
    assert used.completion_tokens == sum(row["completion_tokens"] for row in cluster.journal())

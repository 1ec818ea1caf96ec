"""Two edges of two workers each ask one auth service: a key gets what it would get from one of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, ALICE, BOB, ApiKey, Cluster
from tests.support.http_client import Client
from tests.support.wait import eventually

QPS, CONCURRENT, TOKENS_PER_MINUTE = 20, 6, 9_000
#: Requests that are on their way at once, over all four workers.
HAMMERS = 32
HAMMER_S = 3.0


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    limits = {"qps": QPS, "concurrent": CONCURRENT, "tokens_per_minute": TOKENS_PER_MINUTE}
    return start_cluster({"rate_limit": limits, "sim": {"step_ms": 2}}, edges=2, workers=2)


def clients(cluster: Cluster, key: ApiKey) -> list[Client]:
    """Of each edge one. Each test has a key of its own, whose whole bursts are there."""
    return [Client(port, key.key) for port in cluster.ports]


async def hammer(edges: list[Client], *, max_tokens: int, for_s: float) -> tuple[Counter[str], float]:
    """All four workers at once, without a pause. Returns the answers by what they say, and how long it took."""
    answers: Counter[str] = Counter()
    begun = time.monotonic()

    async def client(number: int) -> None:
        edge = edges[number % 2]
        while time.monotonic() - begun < for_s:
            answer = await edge.chat(max_tokens=max_tokens)
            answers["admitted" if answer.status == 200 else answer.error["code"]] += 1

    await asyncio.gather(*(client(number) for number in range(HAMMERS)))
    return answers, time.monotonic() - begun


async def test_requests_per_second(cluster: Cluster) -> None:
    answers, elapsed_s = await hammer(clients(cluster, ALICE), max_tokens=1, for_s=HAMMER_S)
    used = await cluster.settled_usage(ALICE.user)
    assert used.requests == answers["admitted"]
    one_edge = QPS + QPS * elapsed_s
    assert one_edge - QPS <= answers["admitted"] <= one_edge
    assert answers["requests_per_second"] > 0 and answers["tokens_per_minute"] == 0


async def test_concurrency(cluster: Cluster) -> None:
    """Of streams that are asked for at all four workers at once, as many run as may run, and never one more."""
    edges = clients(cluster, BOB)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(edges[number % 2].open_stream(max_tokens=1000)) for number in range(2 * CONCURRENT)]
    streams = [task.result() for task in asked]
    try:
        assert Counter(stream.status for stream in streams) == {200: CONCURRENT, 429: CONCURRENT}
        owners = {lease.owner_id for lease in await asyncio.to_thread(cluster.control.open_leases)}
        assert len(owners) > 1, "several workers have a part"
        running = [stream for stream in streams if stream.status == 200]
        for stream in running[:2]:
            stream.close()
        await eventually(lambda: cluster.control.usage(BOB.user).running == CONCURRENT - 2, "two slots returned")
        more = await asyncio.gather(*(edges[number % 2].open_stream(max_tokens=1000) for number in range(6)))
        streams += more
        assert Counter(stream.status for stream in more) == {200: 2, 429: 4}
    finally:
        for stream in streams:
            stream.close()
    await cluster.settled_usage(BOB.user)


async def test_tokens_per_minute(cluster: Cluster) -> None:
    answers, elapsed_s = await hammer(clients(cluster, ADMIN), max_tokens=900, for_s=HAMMER_S)
    used = await cluster.settled_usage(ADMIN.user)
    one_edge = TOKENS_PER_MINUTE + TOKENS_PER_MINUTE * elapsed_s / 60
    assert answers["tokens_per_minute"] > 0
    # What was admitted last may not fit any more; of what did not fit, a request's worth stays unused.
    assert TOKENS_PER_MINUTE - 1000 <= used.tokens <= one_edge

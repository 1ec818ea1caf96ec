"""Clients that read slowly, or not at all."""

from __future__ import annotations

import asyncio
import time

import psutil
import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import Cluster
from tests.support.http_client import Client, Connection, ResponseBroken, StreamOutcome, finish
from tests.support.wait import eventually

STALL_TIMEOUT_S = 2.0
SMALL_BUFFER_BYTES = 4096
#: Answers of one request, which make a response of some megabytes: far more than all buffers on the way can hold.
CHOICES = 8
TOKENS = 3_000
ENDLESS_TOKENS = 500_000


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster(
        {
            "sim": {"step_ms": 1},
            "edge": {"client_stall_timeout_s": STALL_TIMEOUT_S, "response_window_bytes": 16 * 1024},
        }
    )


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    return cluster.client()


async def read_slowly(connection: Connection, outcome: StreamOutcome, until_s: float) -> None:
    """A few events at a time with rests between them, then the rest at full speed."""
    events = connection.events()
    while time.monotonic() < until_s:
        for _ in range(20):
            outcome.events.append(await anext(events))
        await asyncio.sleep(STALL_TIMEOUT_S / 4)
    async for event in events:
        outcome.events.append(event)
    outcome.complete = True


async def test_a_slow_reader_is_not_aborted_and_slows_only_itself(cluster: Cluster, alice: Client) -> None:
    baseline_s = await _time_of_a_stream(alice)
    request = alice.open_stream(max_tokens=TOKENS, n=CHOICES, receive_buffer_bytes=SMALL_BUFFER_BYTES)
    async with await request as connection:
        slow = StreamOutcome(connection.status)
        # Longer than the stall timeout by far: progress is what counts, not speed.
        reading = asyncio.create_task(read_slowly(connection, slow, time.monotonic() + 3 * STALL_TIMEOUT_S))
        beside_s = min([await _time_of_a_stream(alice) for _ in range(3)])
        assert beside_s < 3 * baseline_s + 0.5
        assert not reading.done()
        async with asyncio.timeout(60):
            await reading
    assert slow.complete and slow.done and slow.error is None
    assert sum(1 for chunk in slow.chunks if chunk["choices"][0]["delta"].get("content")) == TOKENS * CHOICES


async def test_a_client_that_reads_nothing_is_cut_off(cluster: Cluster, alice: Client) -> None:
    before = await cluster.settled_usage()
    async with await _unread(alice) as connection:
        started = time.monotonic()
        await eventually(
            lambda: cluster.control.usage("alice").running == 0, "the stalled request ended", 4 * STALL_TIMEOUT_S + 5
        )
        assert time.monotonic() - started >= STALL_TIMEOUT_S * 0.9
        outcome = await finish(connection)
        assert not outcome.done
    used = await cluster.settled_usage() - before
    assert 0 < used.completion_tokens < ENDLESS_TOKENS
    await eventually(lambda: cluster.control.in_flight() == 0, "the engine freed")


async def test_the_engine_is_held_back_for_a_client_that_does_not_read(cluster: Cluster, alice: Client) -> None:
    """Without credit the host keeps the response back, so what waits in the edge stays bounded."""
    memory = psutil.Process(cluster.edge.pid)
    async with await _unread(alice):
        before_bytes = memory.memory_info().rss
        # Nobody reads: the request is cut off for it, and until then nothing piled up.
        await eventually(lambda: cluster.control.usage("alice").running == 0, "it ended", 4 * STALL_TIMEOUT_S + 5)
        assert memory.memory_info().rss - before_bytes < 8 * 1024 * 1024
    await cluster.settled_usage()


async def test_a_client_that_sends_its_body_too_slowly_is_cut_off(start_cluster: StartCluster) -> None:
    cluster = start_cluster({"edge": {"body_timeout_s": 1}})
    alice = cluster.client()
    async with await Connection.open(cluster.port) as connection:
        headers = {**alice.headers, "content-length": "5000"}
        await connection.send_only("POST", "/v1/chat/completions", headers=headers, body=b"{")
        try:
            async with asyncio.timeout(10):
                await connection.read_head()
        except ResponseBroken:
            return
        assert connection.status == 408


async def _unread(client: Client) -> Connection:
    """An endless response of which only the head was read."""
    return await client.open_stream(max_tokens=ENDLESS_TOKENS, n=CHOICES, receive_buffer_bytes=SMALL_BUFFER_BYTES)


async def _time_of_a_stream(client: Client) -> float:
    started = time.monotonic()
    outcome = await client.stream(max_tokens=300)
    assert outcome.done
    return time.monotonic() - started

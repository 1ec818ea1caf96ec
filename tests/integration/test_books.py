"""What is charged is what the engine produced, however a request ends."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ALICE, BOB, Cluster
from tests.support.http_client import Client, Connection
from tests.support.streams import LiveStream, live_streams
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster()


@pytest.fixture
def alice(cluster: Cluster) -> Client:
    return cluster.client()


async def assert_books_balance(cluster: Cluster, users: tuple[str, ...] = (ALICE.user, BOB.user)) -> None:
    """All settled, no lease open, no slot taken, and the sum of the book is the engine's own journal."""
    usages = [await cluster.settled_usage(user) for user in users]
    assert cluster.control.open_leases() == []
    await eventually(lambda: cluster.control.in_flight() == 0, "nothing in flight at the host")
    # A prompt counts once the engine has read it, which yields its first token.
    journal = [row for row in cluster.journal() if row["completion_tokens"]]
    assert sum(u.prompt_tokens for u in usages) == sum(row["prompt_tokens"] for row in journal)
    assert sum(u.completion_tokens for u in usages) == sum(row["completion_tokens"] for row in journal)


async def test_many_requests_of_two_keys(cluster: Cluster, alice: Client) -> None:
    bob = cluster.client(BOB)
    before = await cluster.settled_usage()
    await asyncio.gather(
        *(alice.stream(max_tokens=20 + i) for i in range(20)),
        *(alice.chat(max_tokens=1 + i) for i in range(20)),
        *(bob.chat(max_tokens=3, n=2) for _ in range(5)),
    )
    used = await cluster.settled_usage() - before
    assert used.completion_tokens == sum(20 + i for i in range(20)) + sum(1 + i for i in range(20))
    assert used.requests == 40
    await assert_books_balance(cluster)


async def test_a_client_that_leaves_frees_its_slot_and_pays_for_what_was_produced(
    cluster: Cluster, alice: Client
) -> None:
    before = await cluster.settled_usage()
    async with live_streams(alice, 5, max_tokens=100_000) as streams:
        for stream in streams:
            await stream.wait_tokens(10)
            await stream.leave()
        await eventually(lambda: cluster.control.in_flight() == 0, "the engine freed", deadline_s=5)
        used = await cluster.settled_usage() - before
        seen = sum(stream.tokens for stream in streams)
        assert seen <= used.completion_tokens < 100_000
        assert used.requests == 5
        await assert_books_balance(cluster)


async def test_a_client_that_leaves_before_its_answer_begins(cluster: Cluster, alice: Client) -> None:
    before = await cluster.settled_usage()
    async with await Connection.open(cluster.port) as connection:
        body = alice.chat_body(max_tokens=100_000, stream=False)
        await connection.send_only("POST", "/v1/chat/completions", headers=alice.headers, body=body)
        await eventually(lambda: cluster.control.usage(ALICE.user).running == 1, "the request admitted")
    used = await cluster.settled_usage() - before
    assert used.completion_tokens < 100_000
    await assert_books_balance(cluster)


async def test_a_client_that_leaves_in_the_middle_of_its_body(cluster: Cluster, alice: Client) -> None:
    before = await cluster.settled_usage()
    async with await Connection.open(cluster.port) as connection:
        headers = {**alice.headers, "content-length": "5000"}
        await connection.send_only("POST", "/v1/chat/completions", headers=headers, body=b"{")
    assert (await alice.chat()).status == 200
    used = await cluster.settled_usage() - before
    assert used.completion_tokens == 1
    await assert_books_balance(cluster)


async def test_a_stream_in_the_middle_counts_as_running(cluster: Cluster, alice: Client) -> None:
    stream = await LiveStream.start(alice, max_tokens=100_000)
    await stream.wait_tokens(1)
    usage = cluster.control.usage(ALICE.user)
    assert usage.running == 1
    assert usage.reserved_tokens >= 100_000
    (lease,) = cluster.control.open_leases()
    assert lease.owner_id
    await stream.leave()
    await assert_books_balance(cluster)

"""The auth client against a scripted auth service on a real stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc.aio
import pytest
from tests.unit.edge.edge_peers import AuthPeer, eventually, socket_address

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable, QuotaExceeded, RateLimited
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import Grpc
from vllm_proxy.edge.admission import AdmissionRefused, AuthClient, Settlement, rate_limit_headers

QUICK = Grpc(reconnect_min_s=0.001, reconnect_max_s=0.01)


def ask(model: str = "m") -> auth_pb2.AdmitRequest:
    return auth_pb2.AdmitRequest(operation=auth_pb2.OPERATION_INFERENCE, model=model)


def settlement(lease_id: str = "l1") -> Settlement:
    return Settlement(lease_id, 1, auth_pb2.OUTCOME_FINISHED, "m", "h", 7, 0, 3)


@asynccontextmanager
async def client_and_peer(timeout_s: float = 5, silence_s: float = 60) -> AsyncIterator[tuple[AuthClient, AuthPeer]]:
    peer = AuthPeer()
    server = grpc.aio.server()
    auth_pb2_grpc.add_AuthServiceServicer_to_server(peer, server)
    with socket_address() as address:
        server.add_insecure_port(address)
        await server.start()
        client = AuthClient(partial(open_channel, address, QUICK), "edge-1", QUICK, timeout_s, silence_s)
        running = asyncio.create_task(client.run())
        try:
            await eventually(lambda: client.connected)
            yield client, peer
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await server.stop(None)


async def test_admission_opens_a_lease_that_is_announced_again_after_a_break() -> None:
    async with client_and_peer() as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        await eventually(lambda: peer.admits)
        assert peer.read[0].hello.owner_id == "edge-1"
        await peer.answer(admits=[auth_pb2.AdmitResponse(seq=peer.admits[0].seq, admitted=True, lease_id="l1")])
        assert (await asking).lease_id == "l1"
        peer.break_session()
        await eventually(lambda: peer.sessions == 2 and peer.read[-1].hello.owner_id)
        assert list(peer.read[-1].renew_lease_ids) == ["l1"]


async def test_settlement_is_repeated_until_it_is_durable() -> None:
    async with client_and_peer() as (client, peer):
        durable: list[str] = []
        one = settlement()
        one.on_durable = lambda: durable.append("l1")
        client.settle(one)
        await eventually(lambda: peer.settles)
        peer.break_session()
        await eventually(lambda: len(peer.settles) == 2)
        first, second = peer.settles
        assert (second.lease_id, second.usage.completion_tokens) == ("l1", 3)
        assert first.seq == second.seq
        assert durable == []
        assert client.unsettled == 1
        await peer.answer(settles=[auth_pb2.SettleResponse(seq=second.seq, applied=True)])
        await client.wait_settled()
        assert durable == ["l1"]


async def test_settlement_travels_before_the_admission_that_follows_it() -> None:
    async with client_and_peer() as (client, peer):
        client.settle(settlement())
        asking = asyncio.create_task(client.admit(ask()))
        await eventually(lambda: peer.admits)
        (both,) = (message for message in peer.read if message.admits)
        assert [settle.lease_id for settle in both.settles] == ["l1"]
        asking.cancel()


async def test_admission_waits_through_an_outage() -> None:
    async with client_and_peer() as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        await eventually(lambda: peer.admits)
        peer.break_session()
        await eventually(lambda: len(peer.admits) == 2)
        await peer.answer(admits=[auth_pb2.AdmitResponse(seq=peer.admits[1].seq, admitted=True, lease_id="l2")])
        assert (await asking).lease_id == "l2"


async def test_auth_service_that_is_silent_is_left_for_one_that_answers() -> None:
    async with client_and_peer(silence_s=0.06) as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        # The scripted peer answers no ping.
        await eventually(lambda: peer.sessions == 2 and len(peer.admits) == 2)
        assert any(message.ping for message in peer.read)
        await peer.answer(admits=[auth_pb2.AdmitResponse(seq=peer.admits[1].seq, admitted=True, lease_id="l2")])
        assert (await asking).lease_id == "l2"


async def test_auth_service_that_answers_pings_may_take_its_time() -> None:
    async with client_and_peer(silence_s=0.3) as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        for count in range(1, 7):
            await eventually(lambda count=count: sum(message.ping for message in peer.read) >= count)
            await peer.answer(pong=True)
        assert peer.sessions == 1
        asking.cancel()


async def test_admission_gives_up_in_time_and_settles_the_late_lease() -> None:
    async with client_and_peer(timeout_s=0.02) as (client, peer):
        with pytest.raises(AuthUnavailable):
            await client.admit(ask())
        await peer.answer(admits=[auth_pb2.AdmitResponse(seq=peer.admits[0].seq, admitted=True, lease_id="late")])
        await eventually(lambda: peer.settles)
        assert (peer.settles[0].lease_id, peer.settles[0].outcome) == ("late", auth_pb2.OUTCOME_NOT_SENT)
        assert peer.settles[0].model == "m"


@pytest.mark.parametrize("answered", [False, True])
async def test_waiter_that_is_cancelled_leaves_no_lease(answered: bool) -> None:
    async with client_and_peer() as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        await eventually(lambda: peer.admits)
        answer = auth_pb2.AdmitResponse(seq=peer.admits[0].seq, admitted=True, lease_id="l1")
        if answered:
            # The answer has come, but the waiter has not run yet.
            client.received(auth_pb2.SessionResponse(admits=[answer]))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        if not answered:
            await peer.answer(admits=[answer])
        await eventually(lambda: peer.settles)
        assert [settle.lease_id for settle in peer.settles] == ["l1"]


async def test_whoever_gives_up_says_so_and_forgets_it_once_that_is_heard() -> None:
    async with client_and_peer() as (client, peer):
        answers: list[object] = []
        seq = client.ask(ask(), answers.append)
        await eventually(lambda: peer.admits)
        client.abandon(seq)
        await eventually(lambda: [list(m.cancel_admit_seqs) for m in peer.read if m.cancel_admit_seqs] == [[seq]])
        await peer.answer(admits=[auth_pb2.AdmitResponse(seq=seq)])
        await eventually(lambda: not client._orphans)
        assert not peer.settles
        assert answers == []


async def test_waiter_that_left_before_there_was_a_stream_is_never_sent() -> None:
    async with open_channel("unix:/nobody.sock", QUICK) as channel:
        client = AuthClient(lambda: channel, "edge-1", QUICK, 5)
        asking = asyncio.create_task(client.admit(ask("gone")))
        staying = asyncio.create_task(client.admit(ask("here")))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        batch = client.next_batch()
        assert batch is not None
        assert [admit.model for admit in batch.admits] == ["here"]
        staying.cancel()


async def test_refusal_keeps_its_reason_its_limit_and_its_wait() -> None:
    async with client_and_peer() as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        await eventually(lambda: peer.admits)
        await peer.answer(
            admits=[
                auth_pb2.AdmitResponse(
                    seq=peer.admits[0].seq,
                    reason="RATE_LIMITED",
                    limit_name="concurrency",
                    message="2 of 2 requests run.",
                    retry_after_ms=1000,
                    requests=auth_pb2.RateLimitState(limit=2, remaining=0, reset_ms=1000),
                )
            ]
        )
        with pytest.raises(AdmissionRefused) as caught:
            await asking
        error = caught.value.error
        assert type(error) is RateLimited
        assert (error.message, error.retry_after_s, error.metadata) == (
            "2 of 2 requests run.",
            1.0,
            {"limit": "concurrency"},
        )
        assert rate_limit_headers(caught.value.answer) == [
            (b"x-ratelimit-limit-requests", b"2"),
            (b"x-ratelimit-remaining-requests", b"0"),
            (b"x-ratelimit-reset-requests", b"1s"),
        ]


async def test_spent_quota_has_no_wait() -> None:
    async with client_and_peer() as (client, peer):
        asking = asyncio.create_task(client.admit(ask()))
        await eventually(lambda: peer.admits)
        answer = auth_pb2.AdmitResponse(seq=peer.admits[0].seq, reason="QUOTA_EXCEEDED", limit_name="quota")
        await peer.answer(admits=[answer])
        with pytest.raises(AdmissionRefused) as caught:
            await asking
        assert type(caught.value.error) is QuotaExceeded
        assert caught.value.error.retry_after_s is None

"""A host's stream: batches, pieces, credit and what happens when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from tests.unit.edge.edge_peers import EnginePeer, eventually, socket_address

from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.api.engine.v1 import engine_pb2_grpc
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import Grpc
from vllm_proxy.edge.host_session import MAX_PIECE_BYTES, HostSession

QUICK = Grpc(reconnect_min_s=0.001, reconnect_max_s=0.01)


class Sink:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def fill(self, envelope: pb.RequestEnvelope) -> None:
        envelope.lease_id = "l1"

    def head(self, status: int, headers: Any) -> None:
        self.events.append(("head", status, headers))

    def deliver(self, data: bytes, prompt_tokens: int, completion_tokens: int, more: bool) -> None:
        self.events.append(("data", data, prompt_tokens, completion_tokens, more))

    def ended(self, end: pb.EndFrame) -> None:
        self.events.append(("end", end.reason))

    def lost(self) -> None:
        self.events.append(("lost",))


@asynccontextmanager
async def session_and_peer() -> AsyncIterator[tuple[HostSession, EnginePeer, dict[str, int]]]:
    peer = EnginePeer()
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(peer, server)
    load: dict[str, int] = {}
    with socket_address() as address:
        server.add_insecure_port(address)
        await server.start()
        channel = open_channel(address, QUICK)
        session = HostSession("h", channel, "edge-1", QUICK, load, lambda: None)
        running = asyncio.create_task(session.run())
        try:
            await eventually(lambda: session.connected)
            yield session, peer, load
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await channel.close()
            await server.stop(None)


async def test_frames_reach_their_requests() -> None:
    async with session_and_peer() as (session, peer, load):
        one, two = Sink(), Sink()
        first = session.start(one, b"1", 100)
        second = session.start(two, b"2", 100)
        assert load == {"h": 2}
        await eventually(lambda: sum(len(message.starts) for message in peer.read) == 2)
        assert peer.read[0].hello.edge_id == "edge-1"
        await peer.say(
            heads=[pb.HeadFrame(stream_id=first, status=200, headers=[pb.Header(name=b"a", value=b"b")])],
            data_stream_ids=[first, second, 999],
            data=[b"x", b"y", b"z"],
            data_prompt_tokens=[5, 6, 7],
            data_completion_tokens=[1, 2, 3],
            ends=[pb.EndFrame(stream_id=second, reason="ENGINE_FAILED")],
        )
        await eventually(lambda: two.events and two.events[-1][0] == "end")
        assert one.events == [("head", 200, [(b"a", b"b")]), ("data", b"x", 5, 1, True)]
        assert two.events == [("data", b"y", 6, 2, False), ("end", "ENGINE_FAILED")]
        assert load == {"h": 1}


async def test_large_bodies_travel_in_pieces_and_take_turns() -> None:
    async with session_and_peer() as (session, peer, _):
        bodies = [bytes([65 + i]) * (3 * MAX_PIECE_BYTES + 17) for i in range(3)]
        ids = [session.start(Sink(), body, 100) for body in bodies]
        small = session.start(Sink(), b"small", 100)
        await eventually(lambda: sum(body.complete for message in peer.read for body in message.bodies) == 3)
        got = dict.fromkeys(ids, b"")
        order: list[int] = []
        for message in peer.read:
            assert message.ByteSize() <= 1024 * 1024
            for start in message.starts:
                if start.stream_id == small:
                    assert start.body_complete
                    assert not any(got[i] == body for i, body in zip(ids, bodies, strict=True))
                else:
                    got[start.stream_id] += start.body
            for body in message.bodies:
                assert len(body.data) <= MAX_PIECE_BYTES
                got[body.stream_id] += body.data
                order.append(body.stream_id)
        assert [got[i] for i in ids] == bodies
        assert order[:3] == ids


async def test_credit_is_added_up_and_acks_go_out() -> None:
    async with session_and_peer() as (session, peer, _):
        stream_id = session.start(Sink(), b"", 100)
        session.grant(stream_id, 10)
        session.grant(stream_id, 5)
        session.grant(stream_id + 1, 5)
        session.cancel(stream_id)
        session.ack(stream_id)
        await eventually(lambda: any(message.end_acks for message in peer.read))
        frames = [m for m in peer.read if m.credit_stream_ids]
        assert [(list(m.credit_stream_ids), list(m.credit_bytes)) for m in frames] == [([stream_id], [15])]
        assert [i for m in peer.read for i in m.cancels] == [stream_id]
        assert [i for m in peer.read for i in m.end_acks] == [stream_id]


async def test_broken_stream_loses_its_requests_and_comes_back() -> None:
    async with session_and_peer() as (session, peer, load):
        sink = Sink()
        stream_id = session.start(sink, b"", 100)
        await eventually(lambda: any(message.starts for message in peer.read))
        peer.break_session()
        await eventually(lambda: sink.events)
        assert sink.events == [("lost",)]
        assert load == {}
        await eventually(lambda: session.connected)
        assert session.incarnation == "h-2"
        session.ack(stream_id)
        again = Sink()
        other = session.start(again, b"", 100)
        assert other > stream_id
        await peer.say(ends=[pb.EndFrame(stream_id=other)])
        await eventually(lambda: again.events == [("end", "")])
        session.ack(other)
        await eventually(lambda: any(message.end_acks for message in peer.read))
        assert [i for m in peer.read for i in m.end_acks] == [other], "an old stream's ends are the host's own"


async def test_end_of_a_request_that_was_given_up_is_acknowledged() -> None:
    async with session_and_peer() as (session, peer, _):
        sink = Sink()
        stream_id = session.start(sink, b"", 100)
        session.forget(stream_id)
        await peer.say(ends=[pb.EndFrame(stream_id=stream_id)])
        await eventually(lambda: any(message.end_acks for message in peer.read))
        assert sink.events == []


async def test_message_that_makes_no_sense_costs_the_stream_not_the_worker() -> None:
    async with session_and_peer() as (session, peer, _):
        sink = Sink()
        session.start(sink, b"", 100)
        await eventually(lambda: any(message.starts for message in peer.read))
        await peer.say(data_stream_ids=[1], data=[])
        await eventually(lambda: sink.events == [("lost",)])
        await eventually(lambda: peer.sessions == 2 and session.connected)


async def test_fault_of_one_request_costs_no_other() -> None:
    class Faulty(Sink):
        def deliver(self, *_: Any) -> None:
            raise RuntimeError("a fault of ours")

    async with session_and_peer() as (session, peer, load):
        faulty, well = Faulty(), Sink()
        ids = [session.start(sink, b"", 100) for sink in (faulty, well)]
        await eventually(lambda: any(message.starts for message in peer.read))
        await peer.say(data_stream_ids=ids, data=[b"x", b"y"], data_prompt_tokens=[1, 1], data_completion_tokens=[1, 1])
        await eventually(lambda: well.events)
        assert faulty.events == [("lost",)]
        assert well.events == [("data", b"y", 1, 1, True)]
        await eventually(lambda: any(message.cancels for message in peer.read))
        assert (peer.sessions, load) == (1, {"h": 1})


async def test_fault_before_the_start_costs_no_other() -> None:
    class Faulty(Sink):
        def fill(self, _: Any) -> None:
            raise RuntimeError("a fault of ours")

    async with session_and_peer() as (session, peer, load):
        faulty, well = Faulty(), Sink()
        session.start(faulty, b"", 100)
        sent = session.start(well, b"", 100)
        await eventually(lambda: any(message.starts for message in peer.read))
        assert [start.stream_id for message in peer.read for start in message.starts] == [sent]
        assert faulty.events == [("lost",)]
        assert (peer.sessions, load) == (1, {"h": 1})


async def test_finish_sends_what_is_queued_and_closes_in_order() -> None:
    async with session_and_peer() as (session, peer, _):
        stream_id = session.start(Sink(), b"", 100)
        session.ack(stream_id)
        session.finish()
        await eventually(lambda: peer.ended == 1)
        assert [i for m in peer.read for i in m.end_acks] == [stream_id]

"""What a session puts into its messages, for any mix of answers and credit. No sockets."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc.aio
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.common.settings import Grpc
from vllm_proxy.engine_host.engines.base import AsgiApp, Receive, Scope, Send
from vllm_proxy.engine_host.session import HostSession
from vllm_proxy.engine_host.settlement import End, Settler, UnacknowledgedEnds
from vllm_proxy.engine_host.stream import RequestStream

MIB = 1024 * 1024
PIECE = 256 * 1024

#: One request: the sizes of what its application sends, and its credit at the start.
REQUESTS = st.lists(
    st.tuples(
        st.lists(st.one_of(st.integers(0, 300), st.integers(0, 700_000)), max_size=6),
        st.one_of(st.integers(0, 2000), st.integers(0, 2 * MIB)),
    ),
    min_size=1,
    max_size=12,
)


class Host:
    name = "h"
    incarnation = "h-1"

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    def begin(self, stream: RequestStream) -> None:
        stream.start(self._app)

    def ended(self, stream: RequestStream, edge_id: str) -> End:
        return End("", 1, stream.outcome, 0, 0, 0, "", self.name)


class Stream:
    """The gRPC stream: every message written is checked, then answered with credit for what it brought."""

    def __init__(self, first: pb.SessionRequest, credit: dict[int, int], grants: list[int]) -> None:
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._inbox.put_nowait(first)
        self._credit = credit
        self._grants = grants
        self.data = dict.fromkeys(credit, b"")
        self.ends: list[int] = []
        self.shares: list[list[int]] = []

    async def read(self) -> Any:
        return await self._inbox.get()

    async def write(self, message: pb.SessionResponse) -> None:
        await asyncio.sleep(0)
        if message.HasField("welcome"):
            return
        assert message.ByteSize() <= MIB
        assert message.heads or message.data or message.ends, "no empty message"
        columns = (message.data, message.data_prompt_tokens, message.data_completion_tokens)
        assert {len(column) for column in columns} == {len(message.data_stream_ids)}
        assert len(set(message.data_stream_ids)) == len(message.data_stream_ids), "what is ready is joined"
        for stream_id, piece in zip(message.data_stream_ids, message.data, strict=True):
            assert stream_id not in self.ends
            assert 0 < len(piece) <= PIECE
            self.data[stream_id] += piece
            self._credit[stream_id] -= len(piece)
            assert self._credit[stream_id] >= 0, "never beyond its credit"
        self.ends += [end.stream_id for end in message.ends]
        self.shares.append(list(message.data_stream_ids))
        running = [stream_id for stream_id in self._credit if stream_id not in self.ends]
        if not running:
            self._inbox.put_nowait(grpc.aio.EOF)

    def grant(self) -> None:
        """Another grant for everyone who still runs."""
        running = [stream_id for stream_id in self._credit if stream_id not in self.ends]
        amount = self._grants.pop(0) if self._grants else 4 * MIB
        for stream_id in running:
            self._credit[stream_id] += amount
        self._inbox.put_nowait(pb.SessionRequest(credit_stream_ids=running, credit_bytes=[amount] * len(running)))


def content(stream_id: int, sizes: list[int]) -> list[bytes]:
    return [bytes([(stream_id + index) % 256]) * size for index, size in enumerate(sizes)]


async def converse(requests: list[tuple[list[int], int]], grants: list[int]) -> Stream:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream_id = int((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y" * 100)]})
        for piece in content(stream_id, requests[stream_id][0]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    starts = [
        pb.StartFrame(stream_id=n, body=str(n).encode(), body_complete=True, credit_bytes=credit)
        for n, (_, credit) in enumerate(requests)
    ]
    first = pb.SessionRequest(hello=pb.SessionHello(edge_id="e"), starts=starts)
    stream = Stream(first, {n: credit for n, (_, credit) in enumerate(requests)}, grants)
    session = HostSession(Host(app), UnacknowledgedEnds(10, Settler("unix:none", Grpc(), "h-1", limit=10)))
    running = asyncio.create_task(session.run(stream))
    with contextlib.suppress(asyncio.CancelledError):
        while not running.done():
            before = len(stream.shares)
            # Enough turns of the loop for everything that can go without another grant.
            for _ in range(50):
                await asyncio.sleep(0)
            if len(stream.shares) == before and not running.done():
                stream.grant()
    await running
    return stream


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.lists(st.integers(0, 100_000), max_size=8))
def test_every_answer_arrives_whole_within_credit_and_bounds(
    requests: list[tuple[list[int], int]], grants: list[int]
) -> None:
    stream = asyncio.run(asyncio.wait_for(converse(requests, grants), 20))
    assert sorted(stream.ends) == list(range(len(requests))), "one end each"
    for stream_id, (sizes, _) in enumerate(requests):
        assert stream.data[stream_id] == b"".join(content(stream_id, sizes))


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 20))
def test_nobody_gets_a_second_piece_before_everybody_had_one(count: int) -> None:
    size = 3 * PIECE
    stream = asyncio.run(asyncio.wait_for(converse([([size], size)] * count, []), 20))
    turns = [stream_id for share in stream.shares for stream_id in share]
    for start in range(0, 2 * count, count):
        assert len(set(turns[start : start + count])) == count

"""One edge worker's session: all its requests over one bidirectional stream.

The reader hands frames to requests. One writer, whenever a write has ended, puts everything that became ready
meanwhile into one message; so batches grow by themselves under load and no timer adds latency.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Protocol

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.common.errors import InvalidRequest, ServiceError
from vllm_proxy.engine_host.settlement import End, UnacknowledgedEnds
from vllm_proxy.engine_host.stream import RequestStream

log = logging.getLogger(__name__)

MAX_PIECE_BYTES = 256 * 1024
#: Of a message's own bytes; what the columns and tags add stays below the limit of 1 MiB.
MAX_BATCH_BYTES = 1024 * 1024 - 32 * 1024
#: What one entry of the data columns costs besides its bytes: tag, length, id and two counts.
ENTRY_BYTES = 32


class Host(Protocol):
    """What a session needs of its host."""

    name: str
    incarnation: str

    def begin(self, stream: RequestStream) -> None:
        """Starts it. Raises what it is refused with."""

    def ended(self, stream: RequestStream, edge_id: str) -> End:
        """Accounts for a request that ended; returns what is to be settled."""


class HostSession:
    """`run` serves it until the edge leaves; `close` ends it from this side."""

    def __init__(self, host: Host, unacknowledged: UnacknowledgedEnds) -> None:
        self._host = host
        self._unacknowledged = unacknowledged
        self._streams: dict[int, RequestStream] = {}
        self._ready: deque[RequestStream] = deque()
        self._writer_waits: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._closing = asyncio.Event()
        self._broken = False
        self.edge_id = ""

    def __len__(self) -> int:
        return len(self._streams)

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Returns when the edge has ended the stream or `close` was called; cancelled when the stream broke.

        Either way the requests that still run are aborted and what the edge did not acknowledge is settled.
        """
        first: pb.SessionRequest = await context.read()
        if first is grpc.aio.EOF:
            return
        if not first.HasField("hello") or not first.hello.edge_id:
            raise InvalidRequest("A session begins with a hello that names the edge.")
        self.edge_id = first.hello.edge_id
        log.info("session opened", extra={"edge": self.edge_id})
        tasks: list[asyncio.Task[Any]] = []
        try:
            welcome = pb.SessionWelcome(host=self._host.name, incarnation=self._host.incarnation)
            await context.write(pb.SessionResponse(welcome=welcome))
            self._dispatch(first)
            tasks = [
                asyncio.create_task(self._read(context), name=f"session read {self.edge_id}"),
                asyncio.create_task(self._write(context), name=f"session write {self.edge_id}"),
                asyncio.create_task(self._closing.wait(), name=f"session close {self.edge_id}"),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._break()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends the session now, as if the edge had left."""
        self._break()
        self._closing.set()

    async def flushed(self) -> None:
        """Returns once everything that is ready has been written and all ends are acknowledged."""
        await self._idle.wait()
        await self._unacknowledged.wait_empty()

    # Reading.

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            self._dispatch(message)

    def _dispatch(self, message: pb.SessionRequest) -> None:
        streams = self._streams
        for start in message.starts:
            self._start(start)
        for body in message.bodies:
            if stream := streams.get(body.stream_id):
                stream.feed(body.data, body.complete)
        for stream_id, credit_bytes in zip(message.credit_stream_ids, message.credit_bytes, strict=True):
            if stream := streams.get(stream_id):
                stream.grant(credit_bytes)
        for stream_id in message.cancels:
            if stream := streams.get(stream_id):
                stream.stop(auth_pb2.OUTCOME_CANCELLED)
        if message.end_acks:
            self._unacknowledged.acknowledge(message.end_acks)

    def _start(self, start: pb.StartFrame) -> None:
        if start.stream_id in self._streams:
            raise InvalidRequest(f"Stream id {start.stream_id} is in use.")
        # A copy: a message within a message keeps all of it in memory, the bodies of other requests too.
        envelope = pb.RequestEnvelope()
        envelope.CopyFrom(start.envelope)
        stream = RequestStream(start.stream_id, envelope, start.credit_bytes, self._on_ready, self._on_end)
        self._streams[start.stream_id] = stream
        stream.feed(start.body, start.body_complete)
        try:
            self._host.begin(stream)
        except ServiceError as e:
            stream.refuse(e)

    def _on_end(self, stream: RequestStream) -> None:
        self._unacknowledged.add(stream.stream_id, self._host.ended(stream, self.edge_id))

    # Writing.

    def _on_ready(self, stream: RequestStream) -> None:
        if self._broken:
            return
        stream.queued = True
        self._ready.append(stream)
        if self._writer_waits is not None:
            self._writer_waits.set_result(None)
            self._writer_waits = None
            self._idle.clear()

    async def _write(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while True:
            if self._ready:
                await context.write(self._collect())
            else:
                self._idle.set()
                self._writer_waits = asyncio.get_running_loop().create_future()
                await self._writer_waits
                # One more turn of the loop: tasks that the same event woke add theirs, a request's end above all.
                await asyncio.sleep(0)

    def _collect(self) -> pb.SessionResponse:
        """The next message: a piece of each ready request in turn, until all are served or the message is full.

        A request that has more stands at the end of the queue for the next message.
        """
        ready = self._ready
        message = pb.SessionResponse()
        heads, ends = message.heads, message.ends
        ids: list[int] = []
        data: list[bytes] = []
        prompt_tokens: list[int] = []
        completion_tokens: list[int] = []
        room = MAX_BATCH_BYTES
        for _ in range(len(ready)):
            if room <= 0:
                break
            stream = ready.popleft()
            if stream.head_bytes:
                if stream.head_bytes > room and heads:
                    ready.appendleft(stream)
                    break
                room -= stream.head_bytes
                stream.fill_head(heads.add())
            if piece := stream.take_data(min(room, MAX_PIECE_BYTES)):
                ids.append(stream.stream_id)
                data.append(piece)
                prompt_tokens.append(stream.meter.prompt_tokens)
                completion_tokens.append(stream.meter.completion_tokens)
                room -= len(piece) + ENTRY_BYTES
            if stream.has_data:
                ready.append(stream)
            elif stream.ended:
                frame = ends.add()
                stream.fill_end(frame)
                room -= frame.ByteSize() + ENTRY_BYTES
                del self._streams[stream.stream_id]
            else:
                stream.queued = False
        if ids:
            message.data_stream_ids.extend(ids)
            message.data.extend(data)
            message.data_prompt_tokens.extend(prompt_tokens)
            message.data_completion_tokens.extend(completion_tokens)
        return message

    def _break(self) -> None:
        """The edge is out of reach: its running requests end, and all its ends are the settler's."""
        if self._broken:
            return
        self._broken = True
        running = [stream for stream in self._streams.values() if not stream.ended]
        log.info(
            "session ended",
            extra={"edge": self.edge_id, "aborted": len(running), "unacknowledged": len(self._unacknowledged)},
        )
        self._unacknowledged.session_broke()
        for stream in running:
            stream.stop(auth_pb2.OUTCOME_CANCELLED)
        self._streams.clear()
        self._ready.clear()

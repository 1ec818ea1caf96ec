"""One stream to one engine host, carrying all requests of this edge worker there."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

import grpc.aio

from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.api.engine.v1 import engine_pb2_grpc
from vllm_proxy.common.settings import Grpc
from vllm_proxy.edge.session_link import SessionLink

log = logging.getLogger(__name__)

MAX_PIECE_BYTES = 256 * 1024
#: A batch stops growing here; one more piece and the small frames still fit in 1 MiB.
BATCH_BYTES = 640 * 1024
MAX_CONTROL_FRAMES = 8192
#: An acknowledgement only frees memory at the host, so it waits for company.
ACK_DELAY_S = 0.1


class ResponseSink(Protocol):
    """One request as a host's stream sees it. Nothing here may block or raise."""

    def fill(self, envelope: pb.RequestEnvelope) -> None:
        """Says what is asked; called once for each `start`, when it is sent."""

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def deliver(self, data: bytes, prompt_tokens: int, completion_tokens: int, more: bool) -> None:
        """Bytes and the counts so far. `more` False: the end follows in the same message."""

    def ended(self, end: pb.EndFrame) -> None: ...

    def lost(self) -> None:
        """The stream broke; nothing more comes."""


class HostSession:
    """The client of one host's `EngineService.Session`. Runs in `run`, which returns only after `finish`."""

    def __init__(
        self,
        name: str,
        channel: grpc.aio.Channel,
        edge_id: str,
        settings: Grpc,
        load: MutableMapping[str, int],
        on_change: Callable[[], None],
    ) -> None:
        """`load[name]` is kept at the number of requests in flight here; `on_change` is called after `connected`
        changed."""
        stub = engine_pb2_grpc.EngineServiceStub(channel)
        self.name = name
        self._edge_id = edge_id
        self._load = load
        self._on_change = on_change
        self._link = SessionLink(f"host {name}", lambda: stub.Session(wait_for_ready=True), self, settings)
        self.run = self._link.run
        self.finish = self._link.finish
        self.connected = False
        self.incarnation = ""
        self._last_id = 0
        #: Stream ids up to this one belong to streams that broke.
        self._lost_until = 0
        self._streams: dict[int, ResponseSink] = {}
        #: Stream id, body (its first piece), whether that is all of it, credit.
        self._starts: deque[tuple[int, bytes, bool, int]] = deque()
        #: Bodies that did not fit into their start: stream id and what is left, taken in turn.
        self._bodies: deque[tuple[int, memoryview]] = deque()
        self._credits: dict[int, int] = {}
        self._cancels: list[int] = []
        self._acks: list[int] = []

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def start(self, sink: ResponseSink, body: bytes, credit_bytes: int) -> int:
        """Sends a request; its events go to `sink`. Returns its stream id."""
        self._last_id = stream_id = self._last_id + 1
        self._streams[stream_id] = sink
        self._load[self.name] = len(self._streams)
        fits = len(body) <= MAX_PIECE_BYTES
        self._starts.append((stream_id, body if fits else body[:MAX_PIECE_BYTES], fits, credit_bytes))
        if not fits:
            self._bodies.append((stream_id, memoryview(body)[MAX_PIECE_BYTES:]))
        self._link.wake()
        return stream_id

    def grant(self, stream_id: int, credit_bytes: int) -> None:
        """Lets the host send so many bytes more for a request."""
        if stream_id in self._streams:
            self._credits[stream_id] = self._credits.get(stream_id, 0) + credit_bytes
            self._link.wake()

    def cancel(self, stream_id: int) -> None:
        """Asks the host to end a request. Its end still comes."""
        if stream_id in self._streams:
            self._cancels.append(stream_id)
            self._link.wake()

    def forget(self, stream_id: int) -> None:
        """Gives a request's end up: it is acknowledged whenever it comes."""
        self._streams.pop(stream_id, None)
        self._load[self.name] = len(self._streams)

    def ack(self, stream_id: int) -> None:
        """Tells the host that a request's end has been settled. Requests of an earlier stream are the host's own."""
        if stream_id > self._lost_until:
            self._acks.append(stream_id)
            self._link.wake_within(ACK_DELAY_S)

    # The link's side.

    def hello(self) -> pb.SessionRequest:
        return pb.SessionRequest(hello=pb.SessionHello(edge_id=self._edge_id))

    def next_batch(self) -> pb.SessionRequest | None:
        if not (self._starts or self._bodies or self._credits or self._cancels or self._acks):
            return None
        batch = pb.SessionRequest()
        size = 0
        while self._starts and size < BATCH_BYTES:
            size += self._fill_start(batch)
        for _ in range(0 if self._starts else len(self._bodies)):
            if size >= BATCH_BYTES:
                break
            stream_id, rest = self._bodies.popleft()
            if stream_id not in self._streams:
                continue
            piece, rest = rest[:MAX_PIECE_BYTES], rest[MAX_PIECE_BYTES:]
            size += len(piece)
            batch.bodies.append(pb.BodyFrame(stream_id=stream_id, data=bytes(piece), complete=not rest))
            if rest:
                self._bodies.append((stream_id, rest))
        if self._credits:
            batch.credit_stream_ids.extend(self._credits.keys())
            batch.credit_bytes.extend(self._credits.values())
            self._credits = {}
        if self._cancels:
            batch.cancels.extend(self._cancels)
            self._cancels = []
        if self._acks:
            batch.end_acks.extend(self._acks[:MAX_CONTROL_FRAMES])
            del self._acks[:MAX_CONTROL_FRAMES]
        return batch

    def _fill_start(self, batch: pb.SessionRequest) -> int:
        """Adds the next start; returns its size. Nothing is built twice: protobuf copies what is appended."""
        stream_id, body, complete, credit_bytes = self._starts.popleft()
        if (sink := self._streams.get(stream_id)) is None:
            return 0  # It was given up before it was sent.
        frame = batch.starts.add()
        frame.stream_id = stream_id
        frame.body = body
        frame.body_complete = complete
        frame.credit_bytes = credit_bytes
        try:
            sink.fill(frame.envelope)
        except Exception:
            del batch.starts[-1]
            self._fault(stream_id)
        size: int = frame.ByteSize()
        return size

    def received(self, message: pb.SessionResponse) -> None:
        """Hands a message's frames to their requests. The path of every token: no awaiting, no tasks."""
        streams = self._streams
        if not self.connected:
            self._welcome(message)
        for head in message.heads:
            if (sink := streams.get(head.stream_id)) is not None:
                try:
                    sink.head(head.status, [(header.name, header.value) for header in head.headers])
                except Exception:
                    self._fault(head.stream_id)
        ends = message.ends
        ending = {end.stream_id for end in ends} if ends else ()
        for stream_id, data, prompt_tokens, completion_tokens in zip(
            message.data_stream_ids,
            message.data,
            message.data_prompt_tokens,
            message.data_completion_tokens,
            strict=True,
        ):
            if (sink := streams.get(stream_id)) is not None:
                try:
                    sink.deliver(data, prompt_tokens, completion_tokens, stream_id not in ending)
                except Exception:
                    self._fault(stream_id)
        for end in ends:
            sink = streams.pop(end.stream_id, None)
            if sink is None:
                self._acks.append(end.stream_id)
                self._link.wake_within(ACK_DELAY_S)
            else:
                self._load[self.name] = len(streams)
                try:
                    sink.ended(end)
                except Exception:
                    log.exception("request failed at its end", extra={"host": self.name})

    def lost(self) -> None:
        was_connected, self.connected = self.connected, False
        streams, self._streams = self._streams, {}
        self._load.pop(self.name, None)
        self._lost_until = self._last_id
        self._starts.clear()
        self._bodies.clear()
        self._credits = {}
        self._cancels = []
        self._acks = []
        if was_connected:
            self._on_change()
        for sink in streams.values():
            sink.lost()

    def _fault(self, stream_id: int) -> None:
        """One request's fault must not cost the others their stream."""
        log.exception("request failed", extra={"host": self.name})
        self.cancel(stream_id)
        sink = self._streams.pop(stream_id)
        self._load[self.name] = len(self._streams)
        try:
            sink.lost()
        except Exception:
            log.exception("request failed at its end", extra={"host": self.name})

    def _welcome(self, message: Any) -> None:
        self.connected = True
        self.incarnation = message.welcome.incarnation
        self._on_change()

"""One request inside the host: from its envelope to its EndFrame.

It calls the engine's application as ASGI, holds what the application sent until the session writes it, and lets
the application's `send` wait while the request has no credit. Sessions, limits and settlement are elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.common.errors import EngineFailed, InternalError, RequestTimeout, ServiceError
from vllm_proxy.common.tracing.context import OpenSpan
from vllm_proxy.engine_host.engines.base import (
    AsgiApp,
    EngineDied,
    Message,
    Scope,
    UsageMeter,
    current_key_id,
    current_meter,
)
from vllm_proxy.engine_host.engines.priority import current_priority

log = logging.getLogger(__name__)

#: A request that was told to disconnect and still runs after this long is cancelled.
DISCONNECT_GRACE_S = 0.3

#: What the engine may see of a client's headers, whatever the edge lets through.
FORWARDED_REQUEST_HEADERS = frozenset(
    (b"accept", b"content-type", b"user-agent", b"anthropic-version", b"anthropic-beta", b"tracestate")
)

#: Hop-by-hop, or the edge's own business.
DROPPED_RESPONSE_HEADERS = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server"))

#: The engine's request ids: random for each process, counted within it.
_ID_PREFIX = secrets.token_hex(8)
_id_numbers = itertools.count(1)

#: What a header costs on the wire besides its text, and a head besides its headers.
HEADER_BYTES = 16

_CLIENT = ("127.0.0.1", 0)
_SERVER = ("127.0.0.1", 80)


def usage_of(meter: UsageMeter) -> auth_pb2.TokenUsage:
    return auth_pb2.TokenUsage(
        prompt_tokens=meter.prompt_tokens,
        cached_tokens=meter.cached_tokens,
        completion_tokens=meter.completion_tokens,
    )


class RequestStream:
    """One request. `on_ready` is called when it has something new to write, `on_end` once when it has ended.

    At most `credit_bytes` (plus what `grant` adds) leave through `take_data`; an application that sends more waits
    with one message in hand.
    """

    __slots__ = (
        "_balance",
        "_body",
        "_body_complete",
        "_complete",
        "_credit_waiter",
        "_disconnected",
        "_head",
        "_kill_timer",
        "_on_end",
        "_on_ready",
        "_pieces",
        "_receivers",
        "_started_at",
        "_stop",
        "_task",
        "_timeout_timer",
        "ended",
        "engine_request_id",
        "envelope",
        "error",
        "first_byte_at",
        "head_bytes",
        "meter",
        "outcome",
        "queued",
        "route",
        "status",
        "stream_id",
        "trace",
    )

    def __init__(
        self,
        stream_id: int,
        envelope: pb.RequestEnvelope,
        credit_bytes: int,
        on_ready: Callable[[RequestStream], None],
        on_end: Callable[[RequestStream], None],
    ) -> None:
        self.stream_id = stream_id
        self.envelope = envelope
        #: Minted here: an engine aborts by id, so a client must not be able to name another's.
        self.engine_request_id = f"{_ID_PREFIX}{next(_id_numbers):016x}"
        self.meter = UsageMeter()
        #: The short name of the engine route that it was started on.
        self.route = "unknown"
        #: Set by the owner of `on_ready` while the stream stands in its queue.
        self.queued = False
        #: The size of the head that still has to be written; 0: there is none.
        self.head_bytes = 0
        self._head: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.first_byte_at: float | None = None
        #: If it is traced.
        self.trace: OpenSpan | None = None
        self.ended = False
        self.outcome: auth_pb2.Outcome = auth_pb2.OUTCOME_UNSPECIFIED
        self.error: ServiceError | None = None
        self._on_ready = on_ready
        self._on_end = on_end
        self._started_at = time.monotonic()
        #: Granted bytes less sent ones; below zero the application waits.
        self._balance = credit_bytes
        self._pieces: list[bytes | memoryview] = []
        self._credit_waiter: asyncio.Future[None] | None = None
        self._body: deque[bytes] = deque()
        self._body_complete = False
        #: Where the application's `receive` waits.
        self._receivers: list[asyncio.Future[None]] = []
        self._complete = False
        self._disconnected = False
        self._stop: tuple[auth_pb2.Outcome, ServiceError | None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._timeout_timer: asyncio.TimerHandle | None = None

    # From the session.

    @property
    def request_id(self) -> str:
        return self.envelope.request_id

    @property
    def duration_s(self) -> float:
        return time.monotonic() - self._started_at

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first byte of the answer's body, if there was one."""
        return None if self.first_byte_at is None else self.first_byte_at - self._started_at

    def start(self, app: AsgiApp) -> None:
        """Runs the application in a task of its own that counts into `meter`."""
        loop = asyncio.get_running_loop()
        if timeout_ms := self.envelope.timeout_ms:
            self._timeout_timer = loop.call_later(timeout_ms / 1000, self._timed_out)
        self._task = loop.create_task(self._run(app))

    def refuse(self, error: ServiceError) -> None:
        """Ends a request that was never started."""
        self._end(auth_pb2.OUTCOME_NOT_SENT, error)

    def feed(self, data: bytes, complete: bool) -> None:
        """Adds a piece of the request's body."""
        if data or complete:
            self._body.append(data)
        self._body_complete = complete
        self._wake_receivers()

    def grant(self, credit_bytes: int) -> None:
        self._balance += credit_bytes
        if self._balance >= 0 and self._credit_waiter is not None:
            self._release_sender()
        if self.has_data:
            self._announce()

    def stop(self, outcome: auth_pb2.Outcome, error: ServiceError | None = None) -> None:
        """Tells the application that its client is gone; cancels it if it does not end soon. Nothing it sends from
        now on leaves. The EndFrame says `outcome` and `error`. Without effect once the request has ended."""
        if self.ended or self._stop is not None:
            return
        self._stop = (outcome, error)
        self._disconnected = True
        self._wake_receivers()
        self._release_sender()
        if self._task is None:
            self._end(outcome, error)
        else:
            self._kill_timer = asyncio.get_running_loop().call_later(DISCONNECT_GRACE_S, self._task.cancel)

    def take_data(self, limit: int) -> bytes:
        """The next bytes to write, within credit and at most `limit`. Empty if there are none."""
        pieces = self._pieces
        if len(pieces) == 1 and self._balance >= 0 and len(piece := pieces[0]) <= limit:
            pieces.clear()
            return piece if type(piece) is bytes else bytes(piece)
        allowed = sum(map(len, pieces)) + min(self._balance, 0)
        size = min(allowed, limit)
        if size <= 0:
            return b""
        taken: list[bytes | memoryview] = []
        for index, piece in enumerate(pieces):
            if len(piece) > size:
                view = memoryview(piece)
                taken.append(view[:size])
                pieces[:index] = []
                pieces[0] = view[size:]
                break
            taken.append(piece)
            size -= len(piece)
        else:
            pieces.clear()
        return b"".join(taken)

    @property
    def has_data(self) -> bool:
        """Whether `take_data` would give something."""
        pieces = self._pieces
        return bool(pieces) and (self._balance >= 0 or sum(map(len, pieces)) + self._balance > 0)

    def fill_head(self, frame: pb.HeadFrame) -> None:
        """Takes the head out. Field by field, into its place in a message: a third of what constructors cost."""
        frame.stream_id = self.stream_id
        frame.status = self.status
        for name, value in self._head:
            header = frame.headers.add()
            header.name = name
            header.value = value
        self._head, self.head_bytes = [], 0

    def fill_end(self, frame: pb.EndFrame) -> None:
        frame.stream_id = self.stream_id
        frame.outcome = self.outcome
        meter, usage = self.meter, frame.usage
        usage.prompt_tokens = meter.prompt_tokens
        usage.cached_tokens = meter.cached_tokens
        usage.completion_tokens = meter.completion_tokens
        if (error := self.error) is not None:
            frame.reason = error.reason
            frame.message = error.message

    # To the application.

    def _scope(self) -> Scope:
        envelope = self.envelope
        headers = [(name, h.value) for h in envelope.headers if (name := h.name) in FORWARDED_REQUEST_HEADERS]
        headers.append((b"x-request-id", self.engine_request_id.encode()))
        if traceparent := envelope.traceparent:
            headers.append((b"traceparent", traceparent.encode()))
        path = envelope.path
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": envelope.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": envelope.query,
            "root_path": "",
            "headers": headers,
            "client": _CLIENT,
            "server": _SERVER,
            "state": {},
        }

    async def _receive(self) -> Message:
        while True:
            if self._disconnected:
                return {"type": "http.disconnect"}
            if self._body:
                piece = self._body.popleft()
                more = bool(self._body) or not self._body_complete
                return {"type": "http.request", "body": piece, "more_body": more}
            if self._complete:
                return {"type": "http.disconnect"}
            receiver: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._receivers.append(receiver)
            await receiver

    def _wake_receivers(self) -> None:
        for receiver in self._receivers:
            if not receiver.done():  # it may have been cancelled
                receiver.set_result(None)
        self._receivers.clear()

    async def _send(self, message: Message) -> None:
        if self._disconnected or self._complete:
            return
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body:
                if self.first_byte_at is None:
                    self.first_byte_at = time.monotonic()
                self._pieces.append(body)
                self._balance -= len(body)
                if self._balance >= 0:
                    if not self.queued:
                        self._on_ready(self)
                else:
                    if self.has_data:
                        self._announce()
                    await self._credit()
            if not message.get("more_body", False) and not self._disconnected:
                self._complete = True
                self._wake_receivers()
                # Here, not when the application returns: so the end shares the message of the last bytes, and a
                # client that saw its answer's end finds its concurrency slot free.
                self._end(auth_pb2.OUTCOME_FINISHED, None)
        elif message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message.get("headers", ()):
                name = name.lower()
                if name not in DROPPED_RESPONSE_HEADERS and not name.startswith(b"access-control-"):
                    self._head.append((name, value))
                    self.head_bytes += len(name) + len(value) + HEADER_BYTES
            self.head_bytes += HEADER_BYTES
            self._announce()

    async def _credit(self) -> None:
        while self._balance < 0 and not self._disconnected:
            if self._credit_waiter is None:
                self._credit_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._credit_waiter)

    def _release_sender(self) -> None:
        if self._credit_waiter is not None:
            self._credit_waiter.set_result(None)
            self._credit_waiter = None

    def _announce(self) -> None:
        if not self.queued:
            self._on_ready(self)

    # The end.

    async def _run(self, app: AsgiApp) -> None:
        fault: BaseException | None = None
        # The task's own context: nobody else sees these.
        current_meter.set(self.meter)
        current_key_id.set(self.envelope.key_id)
        current_priority.set(self.envelope.priority)
        try:
            await app(self._scope(), self._receive, self._send)
        except asyncio.CancelledError as e:
            fault = e
            if self._stop is None:
                # The process is ending: nobody will ask for the rest.
                if not self.ended:
                    self._end(auth_pb2.OUTCOME_CANCELLED, None)
                raise
        except Exception as e:
            fault = e
        finally:
            # The task holds this object through its coroutine: no cycle is left for the garbage collector.
            self._task = None
        if not self.ended:
            self._end(*self._result(fault))
        elif fault is not None:
            log.error(
                "the engine's application failed after its answer",
                exc_info=fault,
                extra={"request_id": self.request_id},
            )

    def _result(self, fault: BaseException | None) -> tuple[auth_pb2.Outcome, ServiceError | None]:
        if self._stop is not None:
            return self._stop
        if isinstance(fault, EngineDied):
            return auth_pb2.OUTCOME_FAILED, EngineFailed()
        if isinstance(fault, ServiceError):
            return auth_pb2.OUTCOME_FAILED, fault
        error_id = secrets.token_hex(4)
        log.error(
            "the engine's application failed" if fault else "the engine's application ended without an answer",
            exc_info=fault,
            extra={"error_id": error_id, "request_id": self.request_id},
        )
        return auth_pb2.OUTCOME_FAILED, InternalError(f"The service met an unexpected fault (error id {error_id}).")

    def _timed_out(self) -> None:
        self.stop(auth_pb2.OUTCOME_CANCELLED, RequestTimeout())

    def _end(self, outcome: auth_pb2.Outcome, error: ServiceError | None) -> None:
        for timer in (self._timeout_timer, self._kill_timer):
            if timer is not None:
                timer.cancel()
        self.ended = True
        self.outcome = outcome
        self.error = error
        if self._disconnected and error is None:
            self._pieces.clear()
        elif self._balance < 0:
            # Cut short while it waited for credit: only what was granted still goes.
            granted = self.take_data(sum(map(len, self._pieces)))
            self._pieces = [granted] if granted else []
            self._balance = 0
        self._on_end(self)
        self._announce()

"""One admitted request: from the choice of a host, over its answer, to its settlement.

Whatever happens, the lease is settled exactly once and the client gets exactly one answer: the engine's, an error,
or an answer that is visibly cut short. Everything here runs in callbacks of the host's stream; nothing awaits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.engine.v1 import engine_pb2
from vllm_proxy.common.errors import (
    ClientStalled,
    EngineFailed,
    EngineUnavailable,
    NoCapacity,
    RequestTimeout,
    ServiceError,
    from_reason,
)
from vllm_proxy.edge.admission import AuthClient, Settlement
from vllm_proxy.edge.config import EdgeConfig
from vllm_proxy.edge.errors import HeaderList, error_event
from vllm_proxy.edge.host_session import HostSession
from vllm_proxy.edge.hosts import Hosts
from vllm_proxy.edge.http_request import HttpRequest
from vllm_proxy.edge.metrics import UNKNOWN_MODEL, EdgeMetrics
from vllm_proxy.edge.request import CLIENT_CLOSED_REQUEST, CLIENT_GONE, NO_REASON, RequestFacts, log_request
from vllm_proxy.edge.request_body import MAX_UINT32
from vllm_proxy.edge.request_trace import Answer, RequestTrace
from vllm_proxy.edge.response_head import EVENT_STREAM, client_headers

if TYPE_CHECKING:
    from vllm_proxy.common.tracing.tracer import Tracer

#: How long the end of a cancelled request is waited for before it is settled with the last counts.
END_WAIT_S = 30.0
#: So many hosts may fail a request; those that refuse it because they start or stop do not count.
MAX_FAILURES = 2
#: A comment line, which clients skip (https://html.spec.whatwg.org/multipage/server-sent-events.html).
_KEEP_ALIVE = b": keep-alive\n\n"
#: After one of these an event stream has nothing more to say.
_LAST_EVENTS = (b"data: [DONE]\n", b"event: response.completed\n", b"event: message_stop\n")


Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


@dataclass(slots=True)
class ExchangeContext:
    """What all requests of a worker share."""

    #: Replaced when the configuration changes.
    config: EdgeConfig
    hosts: Hosts
    auth: AuthClient
    metrics: EdgeMetrics
    spawn: Spawn
    clock: Callable[[], float]
    #: None: nothing is traced.
    tracer: Tracer | None = None
    #: The requests that are not over, for the sweep and the drain.
    running: set[Exchange] = field(default_factory=set)
    #: Set while `running` is empty.
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def add(self, exchange: Exchange) -> None:
        self.running.add(exchange)
        self.idle.clear()

    def model_label(self, request: RequestFacts) -> str:
        """The model's name for metrics."""
        model = request.model
        return model if model is not None and self.hosts.table.knows(model) else UNKNOWN_MODEL

    def discard(self, exchange: Exchange) -> None:
        self.running.discard(exchange)
        if not self.running:
            self.idle.set()


class Exchange:
    """A `ResponseSink` of one host at a time, and the `ResponseOwner` of the client's response. Call `begin` once and
    `sweep` from time to time."""

    # Without slots, more than 30 attributes would make each a dictionary of its own.
    __slots__ = (
        "__weakref__",
        "_attempt",
        "_attempts",
        "_cached_tokens",
        "_cancelled",
        "_client_done",
        "_completion_tokens",
        "_consumed",
        "_context",
        "_end_deadline",
        "_engine",
        "_failures",
        "_first_byte_at",
        "_grant_at",
        "_head",
        "_heard",
        "_host_done",
        "_http",
        "_is_event_stream",
        "_last_data",
        "_last_error",
        "_lease_id",
        "_prompt_tokens",
        "_request",
        "_response",
        "_sent_at",
        "_session",
        "_settled_at",
        "_spoke_at",
        "_stalled_at",
        "_status",
        "_stream_id",
        "_tail",
        "_tried",
        "_unsent",
        "_waiting",
        "reason",
    )

    def __init__(self, context: ExchangeContext, facts: RequestFacts, lease_id: str, request: HttpRequest) -> None:
        self._context = context
        self._request = facts
        self._lease_id = lease_id
        self._http = request
        self._response = response = request.response
        window = context.config.response_window_bytes
        response.owner = self
        response.limit_bytes = 2 * window
        self._grant_at = window // 2
        self._consumed = 0
        self._session: HostSession | None = None
        self._stream_id = 0
        self._attempt = 1
        #: Attempts that may have reached an engine.
        self._failures = 0
        #: Streams whose end must be acknowledged after the settlement.
        self._attempts: list[tuple[HostSession, int]] = []
        #: Host name -> the engine that failed this request.
        self._tried: dict[str, tuple[str, int]] = {}
        self._engine = ("", 0)
        self._last_error: ServiceError | None = None
        self._waiting: asyncio.Task[None] | None = None
        #: Held until the first byte: up to then another host may serve the request.
        self._head: tuple[int, HeaderList] | None = None
        self._tail = b""
        self._is_event_stream = False
        self._last_data = self._heard = b""
        #: When `_heard` was seen, or the last comment was sent.
        self._spoke_at = 0.0
        self._sent_at = 0.0
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._first_byte_at = self._settled_at = 0.0
        self._status = 0
        #: Why the host was told to stop. Empty while it is wanted.
        self._cancelled = ""
        self._end_deadline = 0.0
        self._client_done = self._host_done = False
        self._unsent = (0, 0)
        self._stalled_at = 0.0
        #: Why it did not end well: a reason of the error table, or CLIENT_GONE.
        self.reason = NO_REASON
        context.add(self)

    # The client's side.

    def begin(self) -> None:
        """Sends the request to a host, or waits for one."""
        if not self._try_start():
            self._waiting = self._context.spawn(self._wait_for_host(), "capacity")

    def client_left(self) -> None:
        self._head = None
        self._client_done = True
        if self._has_whole_answer():
            # The client read its last byte and left before the host's end came.
            self._end_deadline = self._context.clock() + END_WAIT_S
        else:
            if self.reason == NO_REASON:
                self.reason = CLIENT_GONE
            self._cancel(CLIENT_GONE)
        self._over()

    def _has_whole_answer(self) -> bool:
        if self._is_event_stream:
            return any(event in self._last_data for event in _LAST_EVENTS)
        return self._response.body_left == 0

    def shut_down(self) -> None:
        """The worker stops and the request's time to end is over."""
        self._give_up(EngineUnavailable("The service is stopping.", retry_after_s=1))

    def sweep(self, now: float) -> None:
        """Checks the deadlines."""
        if self._end_deadline and now >= self._end_deadline and not self._host_done:
            assert self._session is not None
            self._session.forget(self._stream_id)
            self._settle(auth_pb2.OUTCOME_CANCELLED)
        elif not self._client_done and now - self._request.started_at >= self._context.config.request_timeout_s:
            self._give_up(RequestTimeout())
        self._keep_alive(now)
        if self._response.waiting:
            self._check_stall(now)

    def _check_stall(self, now: float) -> None:
        progress, unsent = self._unsent
        self._unsent = (self._response.progress, self._response.unsent_bytes())
        moved = self._unsent[0] != progress or self._unsent[1] < unsent
        if moved or not self._stalled_at:
            self._stalled_at = now
        elif now - self._stalled_at >= self._context.config.client_stall_timeout_s:
            self.reason = ClientStalled.reason
            self._response.abort()

    def _give_up(self, error: ServiceError) -> None:
        """Ends the request from our side."""
        if self._host_done and not self._client_done:
            # Everything was queued for a client that is too slow for the time that is left.
            self.reason = error.reason
            self._response.abort()
            return
        self._answer_error(error)
        self._cancel(error.reason)

    def written(self, size_bytes: int) -> None:
        self._consumed += size_bytes
        if self._consumed >= self._grant_at and not self._host_done and self._session is not None:
            self._session.grant(self._stream_id, self._consumed)
            self._consumed = 0

    def sent(self) -> None:
        self._client_done = True
        self._over()

    # The host's side: a ResponseSink.

    def fill(self, envelope: engine_pb2.RequestEnvelope) -> None:
        request = self._request
        left_s = self._context.config.request_timeout_s - (self._context.clock() - request.started_at)
        envelope.request_id = request.request_id
        envelope.lease_id = self._lease_id
        envelope.attempt = self._attempt
        envelope.method = request.route.method
        envelope.path = request.path
        if request.query:
            envelope.query = request.query
        for name, value in request.headers:
            header = envelope.headers.add()
            header.name = name
            header.value = value
        envelope.model = request.model or ""
        if request.traceparent:
            envelope.traceparent = request.traceparent
        envelope.timeout_ms = min(max(1, int(left_s * 1000)), MAX_UINT32)
        envelope.key_id = request.key_id
        if request.priority:
            envelope.priority = request.priority

    def head(self, status: int, headers: HeaderList) -> None:
        if not (self._response.started or self._response.closed):
            self._head = (status, headers)

    def deliver(self, data: bytes, prompt_tokens: int, completion_tokens: int, more: bool) -> None:
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = completion_tokens
        if not more:
            self._tail += data
        elif data:
            self._last_data = data
            if self._head is not None:
                self._open()
            self._response.write(data)

    def ended(self, end: engine_pb2.EndFrame) -> None:
        usage = end.usage
        self._prompt_tokens = usage.prompt_tokens
        self._cached_tokens = usage.cached_tokens
        self._completion_tokens = usage.completion_tokens
        assert self._session is not None
        self._attempts.append((self._session, self._stream_id))
        if not end.reason:
            if self._head is not None:
                self._open()
            self._response.finish(self._tail)
            self._settle(end.outcome or auth_pb2.OUTCOME_FINISHED)
            return
        error = from_reason(end.reason, end.message, retry_after_s=1 if end.reason == NoCapacity.reason else None)
        if isinstance(error, (NoCapacity, EngineUnavailable)):
            # A host that starts or stops has refused it. That is no failure, so it may happen again.
            refused = end.outcome == auth_pb2.OUTCOME_NOT_SENT and not isinstance(error, NoCapacity)
            if self._retry(error, refused=refused):
                return
        self._settle(end.outcome or auth_pb2.OUTCOME_FAILED)
        self._cut_short(error)

    def lost(self) -> None:
        error = EngineFailed()
        if self._retry(error):
            return
        self._settle(auth_pb2.OUTCOME_CANCELLED if self._cancelled else auth_pb2.OUTCOME_FAILED)
        self._cut_short(error)

    def _open(self) -> None:
        """Sends the head; from here on the request belongs to this host."""
        assert self._head is not None
        self._first_byte_at = self._context.clock()
        if self._context.config.server_timing:
            self._request.answer_headers.append((b"server-timing", self._timing()))
        self._status, engine_headers = self._head
        self._head = None
        headers, self._is_event_stream = client_headers(engine_headers, self._request.answer_headers)
        self._http.drop_body()
        self._response.start(self._status, headers)

    def _timing(self) -> bytes:
        request = self._request
        admitted_at = request.started_at + request.admission_s
        return b"auth;dur=%.2f, route;dur=%.2f, ttft;dur=%.2f" % (
            request.admission_s * 1000,
            max(0.0, self._sent_at - admitted_at) * 1000,
            (self._first_byte_at - request.started_at) * 1000,
        )

    def _keep_alive(self, now: float) -> None:
        """Sends a comment on a stream that has been silent. Not in the middle of an event."""
        after_s = self._context.config.sse_keepalive_s
        if not after_s or self._host_done or self._client_done:
            return
        if self._last_data is not self._heard:
            self._heard, self._spoke_at = self._last_data, now
        if now - (self._spoke_at or self._sent_at) < after_s:
            return
        if self._head is not None and dict(self._head[1]).get(b"content-type", b"").startswith(EVENT_STREAM):
            self._open()  # From here on the request belongs to its host.
        if (
            self._is_event_stream
            and not self._response.waiting
            and (not self._last_data or self._last_data.endswith(b"\n\n"))
        ):
            self._spoke_at = now
            self._response.write(_KEEP_ALIVE)

    # Hosts, attempts and the end.

    def _try_start(self) -> bool:
        hosts = self._context.hosts
        session = None
        if self._request.holder_tag and not self._tried:
            session = hosts.holder(self._request.holder_tag)
        if session is None:
            session = hosts.pick(self._request.model, self._tried)
        if session is None and self._tried:
            # The same host, if it or its engine is another process by now.
            session = hosts.pick(self._request.model)
            if session is None or self._tried.get(session.name) == hosts.engine_of(session):
                return False
        if session is None:
            return False
        self._session = session
        self._engine = hosts.engine_of(session)
        self._sent_at = self._context.clock()
        self._stream_id = session.start(self, self._http.body, self._context.config.response_window_bytes)
        return True

    async def _wait_for_host(self) -> None:
        config, hosts = self._context.config, self._context.hosts
        try:
            async with asyncio.timeout(config.retry_wait_s if self._failures else config.capacity_wait_s):
                while not self._try_start():
                    await hosts.wait_changed()
        except TimeoutError:
            self._answer_error(self._last_error or EngineUnavailable(retry_after_s=max(1.0, config.capacity_wait_s)))
            self._settle(auth_pb2.OUTCOME_FAILED if self._failures else auth_pb2.OUTCOME_NOT_SENT)
        finally:
            self._waiting = None

    def _retry(self, error: ServiceError, *, refused: bool = False) -> bool:
        """Starts the next attempt if the client has seen nothing of this one."""
        if self._cancelled or self._response.started:
            return False
        if not refused:
            if self._failures + 1 >= MAX_FAILURES:
                return False
            self._failures += 1
            self._last_error = error
        assert self._session is not None
        if (trace := self._request.trace) is not None:
            now, host = self._context.clock(), self._session.name
            trace.attempt_failed(self._request, host, self._attempt, self._sent_at, now, error.reason)
        self._tried[self._session.name] = self._engine
        self._head, self._tail = None, b""
        self._attempt += 1
        if not self._try_start():
            if isinstance(error, NoCapacity):
                self._attempt -= 1
                return False
            self._session = None
            self._waiting = self._context.spawn(self._wait_for_host(), "capacity")
        self._context.metrics.retries += 1
        return True

    def _cancel(self, reason: str) -> None:
        """Tells the host to stop; its end, with the true counts, is still waited for."""
        if self._cancelled or self._host_done:
            return
        self._cancelled = reason
        if self._waiting is not None:
            self._waiting.cancel()
            self._settle(auth_pb2.OUTCOME_CANCELLED if self._failures else auth_pb2.OUTCOME_NOT_SENT)
        elif self._session is not None:
            self._end_deadline = self._context.clock() + END_WAIT_S
            self._session.cancel(self._stream_id)

    def _cut_short(self, error: ServiceError) -> None:
        """Tells the client that the answer ends here, unless it knows why already."""
        if not self._cancelled:
            if self._response.started:
                self._response.write(self._tail)
            self._answer_error(error)

    def _answer_error(self, error: ServiceError) -> None:
        response, shape = self._response, self._request.route.errors
        if response.finished or response.closed:
            return
        self.reason = error.reason
        self._head = None
        if not response.started:
            self._status = error.http_status
            response.send_error(error, self._request.answer_headers, shape)
        elif self._is_event_stream:
            response.finish(error_event(error, shape))
        else:
            # The status is out: a missing end is the only way left to say that it failed.
            response.abandon()

    def _settle(self, outcome: auth_pb2.Outcome) -> None:
        if self._host_done:
            return
        self._host_done = True
        self._settled_at = self._context.clock()
        model, host = self._request.model or "", self._session.name if self._session is not None else ""
        # A name that nobody serves is worth nothing in the books: only what answered has a base model.
        answered = self._prompt_tokens or self._completion_tokens
        base_model = self._context.hosts.base_of(model, host if answered else "")
        self._context.auth.settle(
            Settlement(
                lease_id=self._lease_id,
                attempt=self._attempt,
                outcome=outcome,
                model=model,
                base_model=base_model,
                host=host,
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                completion_tokens=self._completion_tokens,
                on_durable=self._acknowledge,
                traceparent=self._request.trace.traceparent if self._request.trace is not None else "",
            )
        )
        self._over()

    def _acknowledge(self) -> None:
        for session, stream_id in self._attempts:
            session.ack(stream_id)
        self._attempts.clear()
        self._context.metrics.settle_s.add(self._context.clock() - self._settled_at)

    def _over(self) -> None:
        """Both sides have ended: one line in the log."""
        if not (self._host_done and self._client_done) or self not in self._context.running:
            return
        self._context.discard(self)
        request, metrics, now = self._request, self._context.metrics, self._context.clock()
        status = self._status or CLIENT_CLOSED_REQUEST
        duration_s = now - request.started_at
        model = self._context.model_label(request)
        metrics.requests[request.route.name, model, status, self.reason] += 1
        metrics.tokens[model, "prompt"] += self._prompt_tokens
        metrics.tokens[model, "cached"] += self._cached_tokens
        metrics.tokens[model, "completion"] += self._completion_tokens
        metrics.duration_s(request.route.name).add(duration_s)
        ttft_s = self._first_byte_at - request.started_at if self._first_byte_at else None
        if ttft_s is not None:
            metrics.ttft_s(request.route.name).add(ttft_s)
            if self._is_event_stream and self._completion_tokens > 1:
                metrics.time_per_token_s.add((duration_s - ttft_s) / (self._completion_tokens - 1))
        log_request(
            request,
            status,
            duration_s,
            reason=self.reason,
            ttft_s=ttft_s,
            host=self._session.name if self._session is not None else "",
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            attempt=self._attempt,
        )
        if request.trace is not None:
            self._end_trace(request.trace, status, now)

    def _end_trace(self, trace: RequestTrace, status: int, now: float) -> None:
        answer = Answer(
            status=status,
            reason="" if self.reason == NO_REASON else self.reason,
            host=self._session.name if self._session is not None else "",
            attempt=self._attempt,
            sent_at=self._sent_at,
            first_byte_at=self._first_byte_at,
            settled_at=self._settled_at,
            is_event_stream=self._is_event_stream,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
        )
        trace.answered(self._request, answer, now)

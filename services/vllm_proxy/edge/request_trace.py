"""The spans of one traced request at the edge: the request itself, its admission, the choice of a host, each attempt.

All are made when the request is over, from times that were taken anyway; their ids go ahead to the other services.
Never a prompt, never a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_proxy.common.errors import ClientStalled
from vllm_proxy.common.tracing.context import OpenSpan
from vllm_proxy.edge.request import CLIENT_GONE, RequestFacts

if TYPE_CHECKING:
    from vllm_proxy.common.tracing.tracer import Tracer, Value
    from vllm_proxy.edge.http_request import HttpRequest

#: Handed on with a traceparent, as it came (https://www.w3.org/TR/trace-context/#tracestate-header).
_TRACESTATE = b"tracestate"
_MAX_TRACESTATE_BYTES = 512

#: Ends that are the client's own doing, and no failure.
_CLIENTS_DOING = frozenset({"", CLIENT_GONE, ClientStalled.reason})

#: gen_ai.operation.name of the routes that OpenTelemetry has a word for.
_OPERATIONS = {
    "chat_completions": "chat",
    "chat_completions_batch": "chat",
    "responses": "chat",
    "messages": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "embed": "embeddings",
}


def begin(tracer: Tracer, request: HttpRequest, facts: RequestFacts) -> None:
    """Decides whether a request is traced, and has whoever is told of it told so."""
    root = tracer.begin(facts.traceparent, facts.started_at)
    if facts.traceparent:
        state = request.headers.get(_TRACESTATE, b"")
        if state and len(state) <= _MAX_TRACESTATE_BYTES:
            facts.headers.append((_TRACESTATE, state))
    if root.context.sampled:
        facts.trace = RequestTrace(tracer, root, request.method, request.path)
        facts.traceparent = facts.trace.attempt_traceparent
    else:
        # Said, lest an engine with spans of its own begins a trace.
        facts.traceparent = root.context.traceparent


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended that a host got, or that waited for one in vain (`host` is empty). Times are by the event
    loop's clock, 0 for what did not happen."""

    status: int
    reason: str
    host: str
    attempt: int
    sent_at: float
    first_byte_at: float
    settled_at: float
    is_event_stream: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class RequestTrace:
    """One request that is traced. Call `refused` or `answered` once, when it is over."""

    __slots__ = (
        "_admission",
        "_asked_at",
        "_attempt",
        "_failed_sent_at",
        "_has_chosen",
        "_method",
        "_path",
        "_root",
        "_tracer",
    )

    def __init__(self, tracer: Tracer, root: OpenSpan, method: str, path: str) -> None:
        self._tracer = tracer
        self._root = root
        self._method = method
        self._path = path
        self._admission = root.context.child()
        self._asked_at = 0.0
        self._has_chosen = False
        self._attempt = root.context.child()
        #: When the last attempt that failed was sent.
        self._failed_sent_at = 0.0

    @property
    def traceparent(self) -> str:
        """For what belongs to the request as a whole."""
        return self._root.context.traceparent

    @property
    def attempt_traceparent(self) -> str:
        """For the host that gets it next."""
        return self._attempt.traceparent

    def asked(self, at: float) -> str:
        """The auth service is asked; returns what it is told."""
        self._asked_at = at
        return self._admission.traceparent

    def attempt_failed(
        self, facts: RequestFacts, host: str, attempt: int, sent_at: float, at: float, reason: str
    ) -> None:
        """Another attempt may follow."""
        self._end_choice(facts, host, sent_at)
        self._end_attempt(host, attempt, sent_at, at, reason)
        self._failed_sent_at = sent_at
        self._attempt = self._root.context.child()
        facts.traceparent = self._attempt.traceparent

    def refused(self, facts: RequestFacts, status: int, reason: str, at: float) -> None:
        """No host ever got it."""
        if self._asked_at:
            admitted_at = self._asked_at + facts.admission_s if facts.admission_s else at
            self._end_admission(facts, admitted_at)
        self._end(facts, status, reason, at, {})

    def answered(self, facts: RequestFacts, answer: Answer, at: float) -> None:
        self._end_admission(facts, self._asked_at + facts.admission_s)
        self._end_choice(facts, answer.host, answer.sent_at or at)
        if answer.host and answer.sent_at != self._failed_sent_at:
            self._end_attempt(answer.host, answer.attempt, answer.sent_at, answer.settled_at or at, answer.reason)
        ttft_s = answer.first_byte_at - facts.started_at if answer.first_byte_at else None
        attributes: dict[str, Value] = {
            "vllm_proxy.host": answer.host,
            "vllm_proxy.attempts": answer.attempt,
            "gen_ai.request.stream": answer.is_event_stream,
            "gen_ai.response.time_to_first_chunk": ttft_s,
            "gen_ai.usage.input_tokens": answer.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": answer.cached_tokens,
            "gen_ai.usage.output_tokens": answer.completion_tokens,
        }
        self._end(facts, answer.status, answer.reason, at, attributes, answer.first_byte_at)

    def _end_admission(self, facts: RequestFacts, at: float) -> None:
        attributes: dict[str, Value] = {
            "vllm_proxy.key_id": facts.key_id,
            "vllm_proxy.reserved_tokens": facts.reserved_tokens or None,
            "vllm_proxy.limit": facts.limit,
            "vllm_proxy.limit_scope": facts.limit_scope,
        }
        span = OpenSpan(self._admission, self._root.context, self._asked_at)
        self._tracer.end(span, "admit", "client", attributes, at=at)

    def _end_choice(self, facts: RequestFacts, host: str, at: float) -> None:
        """Of the first host; later ones stand in the attempts."""
        if not self._has_chosen:
            self._has_chosen = True
            span = OpenSpan(self._root.context.child(), self._root.context, self._asked_at + facts.admission_s)
            self._tracer.end(span, "choose host", "internal", {"vllm_proxy.host": host}, at=at)

    def _end_attempt(self, host: str, number: int, sent_at: float, at: float, reason: str) -> None:
        attributes: dict[str, Value] = {"vllm_proxy.host": host, "vllm_proxy.attempt": number, "error.type": reason}
        span = OpenSpan(self._attempt, self._root.context, sent_at)
        self._tracer.end(span, "attempt", "client", attributes, at=at, failed=reason not in _CLIENTS_DOING)

    def _end(
        self,
        facts: RequestFacts,
        status: int,
        reason: str,
        at: float,
        attributes: dict[str, Value],
        first_byte_at: float = 0.0,
    ) -> None:
        # A client's own fault is no failure of a server (OpenTelemetry's conventions for HTTP spans).
        failed = status >= 500 or (status < 400 and reason not in _CLIENTS_DOING)
        attributes |= {
            "http.request.method": self._method,
            "http.route": facts.route.path,
            "url.path": self._path,
            "url.scheme": "http",
            "http.response.status_code": status,
            "error.type": (reason or str(status)) if failed else None,
            "gen_ai.operation.name": _OPERATIONS.get(facts.route.name),
            "gen_ai.request.model": facts.model,
            "vllm_proxy.request_id": facts.request_id,
            "vllm_proxy.key_id": facts.key_id,
            "vllm_proxy.user": facts.user,
            "vllm_proxy.reason": reason,
        }
        events = [("first byte", first_byte_at)] if first_byte_at else []
        name = f"{self._method} {facts.route.path}"
        self._tracer.end(self._root, name, "server", attributes, at=at, failed=failed, events=events)

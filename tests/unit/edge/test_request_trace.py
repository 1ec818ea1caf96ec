"""The spans of one request at the edge, by how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vllm_proxy.common.engine_routes import EDGE_ROUTES
from vllm_proxy.common.tracing.context import OpenSpan, TraceContext
from vllm_proxy.edge.request import RequestFacts
from vllm_proxy.edge.request_trace import Answer, RequestTrace

ROUTE = EDGE_ROUTES.find("POST", "/v1/chat/completions")
ANSWER: dict[str, Any] = {
    "status": 200,
    "reason": "",
    "host": "a",
    "attempt": 1,
    "sent_at": 12.0,
    "first_byte_at": 13.0,
    "settled_at": 14.0,
    "is_event_stream": False,
    "prompt_tokens": 1,
    "cached_tokens": 0,
    "completion_tokens": 2,
}


class Tracer:
    def __init__(self) -> None:
        self.spans: list[tuple[str, OpenSpan, Mapping[str, Any], float, bool]] = []

    def end(
        self,
        span: OpenSpan,
        name: str,
        kind: str,
        attributes: Mapping[str, Any],
        *,
        at: float,
        failed: bool = False,
        events: Any = (),
    ) -> None:
        self.spans.append((name, span, attributes, at, failed))

    @property
    def names(self) -> list[str]:
        return [span[0] for span in self.spans]


class Rig:
    def __init__(self) -> None:
        assert ROUTE is not None
        self.tracer = Tracer()
        root = OpenSpan(TraceContext(1, 2, True), None, 10.0)
        self.trace = RequestTrace(self.tracer, root, "POST", "/v1/chat/completions")  # type: ignore[arg-type]
        self.facts = RequestFacts("req-1", ROUTE, ROUTE.path, b"", [], self.trace.attempt_traceparent, 10.0)
        self.trace.asked(11.0)
        self.facts.admission_s = 0.5


def test_served_at_once() -> None:
    rig = Rig()
    rig.trace.answered(rig.facts, Answer(**ANSWER), 15.0)
    times = {name: (span.started_at, at) for name, span, _, at, _ in rig.tracer.spans}
    assert times == {
        "admit": (11.0, 11.5),
        "choose host": (11.5, 12.0),
        "attempt": (12.0, 14.0),
        "POST /v1/chat/completions": (10.0, 15.0),
    }
    ids = {span.context.span_id for _, span, _, _, _ in rig.tracer.spans}
    assert len(ids) == 4


def test_the_next_attempt_is_another_span() -> None:
    rig = Rig()
    first = rig.facts.traceparent
    rig.trace.attempt_failed(rig.facts, "a", 1, 12.0, 12.5, "ENGINE_FAILED")
    assert rig.facts.traceparent == rig.trace.attempt_traceparent != first
    rig.trace.answered(rig.facts, Answer(**{**ANSWER, "host": "b", "attempt": 2, "sent_at": 12.6}), 15.0)
    attempts = [(a["vllm_proxy.host"], failed) for name, _, a, _, failed in rig.tracer.spans if name == "attempt"]
    assert attempts == [("a", True), ("b", False)]
    assert rig.tracer.names.count("choose host") == 1


def test_an_attempt_that_nobody_could_follow_is_told_once() -> None:
    rig = Rig()
    rig.trace.attempt_failed(rig.facts, "a", 1, 12.0, 12.5, "NO_CAPACITY")
    rig.trace.answered(
        rig.facts, Answer(**{**ANSWER, "status": 503, "reason": "NO_CAPACITY", "first_byte_at": 0.0}), 13.0
    )
    assert rig.tracer.names == ["choose host", "attempt", "admit", "POST /v1/chat/completions"]
    assert rig.tracer.spans[-1][4] and rig.tracer.spans[-1][2]["error.type"] == "NO_CAPACITY"


def test_no_host_came() -> None:
    rig = Rig()
    nobody = {**ANSWER, "status": 503, "reason": "ENGINE_UNAVAILABLE", "host": "", "sent_at": 0.0, "first_byte_at": 0.0}
    rig.trace.answered(rig.facts, Answer(**nobody), 16.0)
    assert rig.tracer.names == ["admit", "choose host", "POST /v1/chat/completions"]
    assert rig.tracer.spans[1][3] == 16.0


@pytest.mark.parametrize(
    ("status", "reason", "failed"),
    [
        (200, "", False),
        (429, "RATE_LIMITED", False),
        (200, "CLIENT_GONE", False),
        (502, "ENGINE_FAILED", True),
        (200, "ENGINE_FAILED", True),
    ],
)
def test_which_ends_are_failures(status: int, reason: str, failed: bool) -> None:
    rig = Rig()
    rig.trace.answered(rig.facts, Answer(**{**ANSWER, "status": status, "reason": reason}), 15.0)
    name, _, attributes, _, is_failed = rig.tracer.spans[-1]
    assert name == "POST /v1/chat/completions" and is_failed is failed
    assert attributes["error.type"] == (reason if failed else None)


def test_refused_before_anybody_was_asked() -> None:
    rig = Rig()
    rig.trace._asked_at = 0.0
    rig.trace.refused(rig.facts, 400, "INVALID_REQUEST", 10.1)
    assert rig.tracer.names == ["POST /v1/chat/completions"]

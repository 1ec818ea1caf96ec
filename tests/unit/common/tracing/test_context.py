"""W3C trace context: what is taken from a client, and what is told to others."""

from __future__ import annotations

import pytest

from vllm_proxy.common.tracing.context import TraceContext, accept_traceparent, parse

TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_well_formed_one_is_kept() -> None:
    assert accept_traceparent(TRACEPARENT) == TRACEPARENT.decode()


@pytest.mark.parametrize("end", [b"", b"-what-a-later-version-adds"])
def test_a_later_version_is_read_as_ours(end: bytes) -> None:
    assert accept_traceparent(b"cc" + TRACEPARENT[2:] + end) == TRACEPARENT.decode()


@pytest.mark.parametrize(
    "value",
    [
        *(None, b"", b"garbage", TRACEPARENT.upper(), TRACEPARENT[:-1], TRACEPARENT + b"\n", TRACEPARENT + b"-more"),
        b"ff" + TRACEPARENT[2:],
        b"cc" + TRACEPARENT[2:] + b"more",
        b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    ],
)
def test_any_other_is_dropped(value: bytes | None) -> None:
    assert accept_traceparent(value) == ""


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("fe", False)]
)
def test_only_the_last_bit_says_sampled(flags: str, sampled: bool) -> None:
    context = parse(TRACEPARENT.decode()[:-2] + flags)
    assert context is not None and context.sampled is sampled


def test_what_is_told_reads_back() -> None:
    context = TraceContext(1, 2, True)
    assert context.traceparent == "00-00000000000000000000000000000001-0000000000000002-01"
    assert parse(context.traceparent) == context
    child = context.child()
    assert child.trace_id == 1 and child.span_id not in (0, 2) and child.sampled
    assert parse("nothing") is None

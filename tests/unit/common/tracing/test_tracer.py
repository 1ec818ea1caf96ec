"""Which requests are traced, what their spans say, and what becomes of spans that cannot be sent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from tests.support.wait import wait_until

from vllm_proxy.common.settings import Tracing
from vllm_proxy.common.tracing.context import parse
from vllm_proxy.common.tracing.export import SpanPipe
from vllm_proxy.common.tracing.tracer import Tracer

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-1] + "0"
AWAY, BACK = "trace collector away", "trace collector back"


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """A pipe takes over what OpenTelemetry logs."""
    logger = logging.getLogger("opentelemetry")
    handlers, propagate = logger.handlers[:], logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate


class Exporter(SpanExporter):
    """Keeps what it gets; holds it while `open` is not set, and fails while `fails`."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.open = threading.Event()
        self.open.set()
        self.fails = False
        self.holds = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.holds = True
        self.open.wait(10)
        if self.fails:
            raise OSError("nobody there")
        self.spans += spans
        return SpanExportResult.SUCCESS


class Rig:
    def __init__(self, **settings: Any) -> None:
        self.exporter = Exporter()
        self.registry = CollectorRegistry()
        tracing = Tracing.model_validate({"endpoint": "http://c:4317", "export_interval_s": 0.01, **settings})
        self.pipe = SpanPipe(tracing, "t_", self.registry, self.exporter)
        self.tracer = Tracer(self.pipe, tracing, {"service.name": "t"})

    def end_one(self) -> None:
        self.tracer.end(self.tracer.begin(SAMPLED, time.monotonic()), "x", "server", {})

    def counted(self, what: str) -> float:
        return self.registry.get_sample_value(f"t_trace_spans_{what}_total") or 0.0


@pytest.mark.parametrize(
    ("settings", "traceparent", "sampled"),
    [
        ({"sample_ratio": 0}, SAMPLED, True),
        ({"sample_ratio": 1}, UNSAMPLED, False),
        ({"sample_ratio": 1}, "", True),
        ({"sample_ratio": 0}, "", False),
        ({"sample_ratio": 0, "follow_client": False}, SAMPLED, False),
        ({"sample_ratio": 1, "follow_client": False}, UNSAMPLED, True),
    ],
)
def test_who_decides(settings: dict[str, Any], traceparent: str, sampled: bool) -> None:
    span = Rig(**settings).tracer.begin(traceparent, 0.0)
    assert span.context.sampled is sampled
    assert span.parent == (parse(traceparent) if traceparent else None)
    told = parse(span.context.traceparent)
    assert told is not None and told.sampled is sampled
    if span.parent is not None:
        assert span.context.trace_id == span.parent.trace_id
        assert span.context.span_id != span.parent.span_id


def test_about_the_share_is_traced() -> None:
    tracer = Rig(sample_ratio=0.25).tracer
    traced = sum(tracer.begin("", 0.0).context.sampled for _ in range(4000))
    assert 725 < traced < 1275  # ten standard deviations


def test_only_what_is_traced_is_joined() -> None:
    tracer = Rig().tracer
    assert tracer.join(UNSAMPLED) is None and tracer.join("garbage") is None
    span = tracer.join(SAMPLED)
    assert span is not None and span.parent == parse(SAMPLED)


async def test_what_a_span_says() -> None:
    rig = Rig()
    now = time.monotonic()
    span = rig.tracer.begin(SAMPLED, now - 3)
    attributes = {"a": 1, "none": None, "empty": "", "zero": 0}
    rig.tracer.end(span, "name", "client", attributes, at=now - 1, failed=True, events=[("half", now - 2)])
    await rig.tracer.close()
    (made,) = rig.exporter.spans
    assert (made.context.trace_id, made.context.span_id) == span.context[:2]
    assert made.parent is not None and made.parent.span_id == parse(SAMPLED).span_id  # type: ignore[union-attr]
    assert made.kind is SpanKind.CLIENT and dict(made.attributes or {}) == {"a": 1, "zero": 0}
    assert made.resource.attributes["service.name"] == "t" and not made.status.is_ok
    assert made.start_time is not None and made.end_time is not None
    assert made.end_time - made.start_time == pytest.approx(2e9, abs=10)
    assert made.events[0].timestamp - made.start_time == pytest.approx(1e9, abs=10)
    assert abs(made.end_time - time.time_ns()) < 60e9


def test_what_the_queue_cannot_hold_is_dropped_and_counted() -> None:
    rig = Rig(max_queue_spans=4, export_batch_spans=1)
    rig.exporter.open.clear()
    rig.end_one()
    wait_until(lambda: rig.exporter.holds, "one span on its way")
    for _ in range(10):
        rig.end_one()
    assert rig.pipe.processor.unsent == 4 and rig.counted("dropped") == 6
    rig.exporter.open.set()
    wait_until(lambda: rig.counted("sent") == 5, "the rest sent")
    assert rig.counted("dropped") == 6


def test_an_outage_is_said_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig(export_batch_spans=1)
    rig.exporter.fails = True
    for count in (1, 2, 3):
        rig.end_one()
        wait_until(lambda count=count: rig.counted("dropped") == count, f"{count} spans lost")  # type: ignore[misc]
    rig.exporter.fails = False
    rig.end_one()
    wait_until(lambda: BACK in caplog.messages, "said that it is back")
    assert caplog.messages == [AWAY, BACK]
    assert "nobody there" in vars(caplog.records[0])["detail"]


async def test_a_stop_waits_no_longer_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(flush_timeout_s=0.05)
    rig.exporter.open.clear()
    rig.end_one()
    await rig.tracer.close()
    assert "spans lost at the stop" in caplog.messages
    rig.exporter.open.set()


@pytest.mark.parametrize(
    ("protocol", "endpoint", "address"),
    [
        ("grpc", "http://c:4317", "http://c:4317"),
        ("http/protobuf", "http://c:4318/", "http://c:4318/v1/traces"),
        ("http/protobuf", "https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ],
)
def test_where_spans_go(protocol: str, endpoint: str, address: str) -> None:
    assert Tracing.model_validate({"endpoint": endpoint, "protocol": protocol}).otlp_endpoint == address


def test_off_by_default() -> None:
    assert Tracing().otlp_endpoint == ""

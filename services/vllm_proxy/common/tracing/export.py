"""The way of spans to the collector: a bounded queue, a thread that sends, and what is lost on the way.

The queue, its thread and OTLP are OpenTelemetry's. Whatever happens to the collector, no request waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, Counter

from vllm_proxy.common.settings import Tracing

log = logging.getLogger(__name__)


class SpanPipe:
    """`processor` is where spans go in."""

    def __init__(
        self,
        settings: Tracing,
        metric_prefix: str,
        registry: CollectorRegistry,
        exporter: SpanExporter | None = None,
    ) -> None:
        """`exporter` stands in for the configured one."""
        sent = Counter(metric_prefix + "trace_spans_sent_total", "Spans that the collector took.", registry=registry)
        dropped = Counter(
            metric_prefix + "trace_spans_dropped_total",
            "Spans that were lost: the queue was full, or the collector did not take them.",
            registry=registry,
        )
        sender = _Sender(exporter or _exporter(settings), settings.otlp_endpoint, sent, dropped)
        self.processor = _Bounded(sender, settings, dropped)

    async def close(self, timeout_s: float) -> None:
        """Sends what is left, at most so long; the rest is lost."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def shut_down() -> None:
            self.processor.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        # Not one of asyncio's threads: the process would wait for it at its end.
        threading.Thread(target=shut_down, name="tracing-flush", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            log.warning("spans lost at the stop", extra={"spans": self.processor.unsent})


class _Sender(SpanExporter):
    """Sends batches, on the processor's thread. Says once when the collector is away, and once when it is back."""

    def __init__(self, exporter: SpanExporter, endpoint: str, sent: Counter, dropped: Counter) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._sent = sent
        self._dropped = dropped
        self._is_away = False
        self._detail = _LastLine()
        # What OpenTelemetry says of each try, an engine's in this process included, is told once, by `export`.
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:] = [self._detail]
        logger.propagate = False
        #: Spans that were taken out of the queue. Only this thread writes it.
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception as e:
            self._detail.text = f"{type(e).__name__}: {e}"
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._sent.inc(len(spans))
            if self._is_away:
                self._is_away = False
                log.info("trace collector back", extra={"endpoint": self._endpoint})
            return result
        self._dropped.inc(len(spans))
        if not self._is_away:
            self._is_away = True
            log.warning("trace collector away", extra={"endpoint": self._endpoint, "detail": self._detail.text})
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Bounded(SpanProcessor):
    """OpenTelemetry's batches, with a queue that tells what it drops: the new ones, when it is full."""

    def __init__(self, sender: _Sender, settings: Tracing, dropped: Counter) -> None:
        self._sender = sender
        self._limit = settings.max_queue_spans
        self._dropped = dropped
        #: Spans that went into the queue. Only the event loop writes it.
        self._put = 0
        self._batches = BatchSpanProcessor(
            sender,
            max_queue_size=self._limit,
            schedule_delay_millis=settings.export_interval_s * 1000,
            max_export_batch_size=min(settings.export_batch_spans, self._limit),
        )

    @property
    def unsent(self) -> int:
        return self._put - self._sender.taken

    def on_start(self, span: Span, parent_context: Context | None = None) -> None: ...

    def on_end(self, span: ReadableSpan) -> None:
        if self.unsent >= self._limit:
            self._dropped.inc()
            return
        self._put += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batches.force_flush(timeout_millis)


class _LastLine(logging.Handler):
    """Keeps the last thing that was said."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def _exporter(settings: Tracing) -> SpanExporter:
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc(endpoint=settings.otlp_endpoint, timeout=settings.export_timeout_s)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp(endpoint=settings.otlp_endpoint, timeout=settings.export_timeout_s)

"""Decides which requests are traced and makes their spans, each in one piece when it has ended.

What a span says is known at its end, so a request that is traced costs nothing between. Needs OpenTelemetry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from vllm_proxy.common.settings import Tracing
from vllm_proxy.common.tracing.context import OpenSpan, TraceContext, chance, new_span_id, new_trace_id, parse
from vllm_proxy.common.tracing.export import SpanPipe

Kind = Literal["server", "client", "internal"]
Value = str | int | float | bool | None

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NOWHERE = Context()


class _GivenIds(IdGenerator):
    """The SDK asks for a span's ids when it makes it; ours went ahead of it, to who made its children."""

    def __init__(self) -> None:
        self.next = TraceContext(0, 0, True)

    def generate_trace_id(self) -> int:
        return self.next.trace_id

    def generate_span_id(self) -> int:
        return self.next.span_id


class Tracer:
    """One process's. Not the global one: an engine in this process has its own. Call it on one thread."""

    def __init__(
        self,
        pipe: SpanPipe,
        settings: Tracing,
        resource: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipe = pipe
        self._ratio = settings.sample_ratio
        self._follow_client = settings.follow_client
        self._flush_timeout_s = settings.flush_timeout_s
        self._clock = clock
        self._ids = _GivenIds()
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({**resource, "service.instance.id": f"{os.getpid()}"}),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        provider.add_span_processor(pipe.processor)
        self._tracer = provider.get_tracer("vllm_proxy")

    def begin(self, traceparent: str, at: float) -> OpenSpan:
        """A span for a client's request, traced or not. `traceparent` is the client's, empty if there is none."""
        parent = parse(traceparent) if traceparent else None
        sampled = parent.sampled if parent is not None and self._follow_client else chance() < self._ratio
        trace_id = parent.trace_id if parent is not None else new_trace_id()
        return OpenSpan(TraceContext(trace_id, new_span_id(), sampled), parent, at)

    def join(self, traceparent: str) -> OpenSpan | None:
        """A span that begins now, below one of another service; None unless that is traced."""
        parent = parse(traceparent)
        return OpenSpan(parent.child(), parent, self._clock()) if parent is not None and parent.sampled else None

    def end(
        self,
        span: OpenSpan,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Value],
        *,
        at: float | None = None,
        failed: bool = False,
        events: Iterable[tuple[str, float]] = (),
    ) -> None:
        """Sends a span that is over, `at` or now. Attributes without a value are left out. An event has its time."""
        # Of both clocks the same moment, so that durations stay exact.
        now_ns, now = time.time_ns(), self._clock()

        def unix_ns(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        context = _NOWHERE
        if (parent := span.parent) is not None:
            known = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=_SAMPLED)
            context = set_span_in_context(NonRecordingSpan(known), _NOWHERE)
        self._ids.next = span.context
        made = self._tracer.start_span(
            name,
            context=context,
            kind=_KINDS[kind],
            attributes={key: value for key, value in attributes.items() if value is not None and value != ""},
            start_time=unix_ns(span.started_at),
        )
        for event, moment in events:
            made.add_event(event, timestamp=unix_ns(moment))
        if failed:
            made.set_status(Status(StatusCode.ERROR))
        made.end(end_time=unix_ns(now if at is None else at))

    async def close(self) -> None:
        """Sends what is left, for at most the configured time."""
        await self._pipe.close(self._flush_timeout_s)

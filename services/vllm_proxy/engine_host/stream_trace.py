"""The spans of requests that are traced: one for each, between the edge's attempt and the engine's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_proxy.engine_host.metrics import outcome_name
from vllm_proxy.engine_host.stream import RequestStream

if TYPE_CHECKING:
    from vllm_proxy.common.tracing.tracer import Tracer


class StreamTracer:
    def __init__(self, tracer: Tracer, host: str, engine: str) -> None:
        self._tracer = tracer
        self._host = host
        self._engine = engine

    def began(self, stream: RequestStream) -> None:
        """Before the engine gets it: the engine's spans will be children of this one."""
        envelope = stream.envelope
        if envelope.traceparent and (span := self._tracer.join(envelope.traceparent)) is not None:
            stream.trace = span
            envelope.traceparent = span.context.traceparent

    def ended(self, stream: RequestStream) -> None:
        if (span := stream.trace) is None:
            return
        envelope, meter, error = stream.envelope, stream.meter, stream.error
        self._tracer.end(
            span,
            f"engine {stream.route}",
            "server",
            {
                "vllm_proxy.host": self._host,
                "vllm_proxy.request_id": envelope.request_id,
                "vllm_proxy.engine_request_id": stream.engine_request_id,
                "vllm_proxy.key_id": envelope.key_id,
                "vllm_proxy.attempt": envelope.attempt,
                "vllm_proxy.outcome": outcome_name(stream.outcome),
                "vllm_proxy.reason": error.reason if error is not None else "",
                "error.type": error.reason if error is not None else "",
                "http.response.status_code": stream.status or None,
                "gen_ai.provider.name": self._engine,
                "gen_ai.request.model": envelope.model,
                "gen_ai.response.time_to_first_chunk": stream.ttft_s,
                "gen_ai.usage.input_tokens": meter.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": meter.cached_tokens,
                "gen_ai.usage.output_tokens": meter.completion_tokens,
            },
            failed=error is not None or stream.status >= 500,
            events=[("first byte", stream.first_byte_at)] if stream.first_byte_at is not None else (),
        )

"""Where spans go, and how many."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from vllm_proxy.common.settings.fields import PositiveInt, PositiveSeconds, Section, Url


class Tracing(Section):
    """OpenTelemetry tracing; off without an endpoint. What the collector wants to be shown, such as a token, comes
    from the environment: OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE."""

    endpoint: Url | None = None
    """Where spans are sent by OTLP, as http://host:4317 (grpc) or http://host:4318 (http/protobuf, which adds
    /v1/traces to an address without a path); null: tracing is off."""
    protocol: Literal["grpc", "http/protobuf"] = "grpc"
    """How they are sent."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of requests that are traced, of those whose client does not say; 0: none, 1: all."""
    follow_client: bool = True
    """Whether the sampled flag of a client's traceparent decides. false: sample_ratio decides for every request."""
    service_prefix: str = "vllm-proxy"
    """service.name of our spans begins with it: -edge, -auth, -router, -engine-NAME follow; an engine's kind follows it
    in that of the engine's own."""
    engines: bool = True
    """Whether engines that a host starts send their own spans there too, unless their start command says where."""
    export_interval_s: PositiveSeconds = 2.0
    """How often a process sends what it has; sooner when there is a full batch."""
    export_timeout_s: PositiveSeconds = 5.0
    """How long one batch may take to be sent, repeated tries included; then it is dropped."""
    export_batch_spans: PositiveInt = 512
    """Spans in one batch."""
    max_queue_spans: PositiveInt = 8192
    """Spans that a process holds; what exceeds them is dropped and counted."""
    flush_timeout_s: PositiveSeconds = 2.0
    """How long a stop waits for the last spans to be sent."""

    @property
    def otlp_endpoint(self) -> str:
        """The endpoint as an exporter takes it; empty: tracing is off."""
        endpoint = self.endpoint or ""
        has_path = self.protocol == "grpc" or bool(urlsplit(endpoint).path)
        return endpoint if has_path or not endpoint else endpoint + "/v1/traces"

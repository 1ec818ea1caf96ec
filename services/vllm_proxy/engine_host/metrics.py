"""Every metric of the engine host."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.metrics import LATENCY_BUCKETS_S
from vllm_proxy.engine_host.engines.base import EngineLoad, UsageMeter

_PREFIX = "vllm_proxy_engine_host"

_OUTCOMES: dict[int, str] = {
    auth_pb2.OUTCOME_FINISHED: "finished",
    auth_pb2.OUTCOME_CANCELLED: "cancelled",
    auth_pb2.OUTCOME_FAILED: "failed",
    auth_pb2.OUTCOME_NOT_SENT: "not_sent",
}


def outcome_name(outcome: auth_pb2.Outcome) -> str:
    return _OUTCOMES.get(outcome, "unknown")


class HostMetrics:
    """The host's metrics on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_requests_total",
            "Requests that ended here, by route, outcome and reason of the error table.",
            ("route", "outcome", "reason"),
            registry=self.registry,
        )
        #: Looking labels up costs as much as counting.
        self._requests_of: dict[tuple[str, int, str], Counter] = {}
        self._ttft = Histogram(
            f"{_PREFIX}_time_to_first_byte_seconds",
            "From the start of a request here to the first byte of its answer's body.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._duration = Histogram(
            f"{_PREFIX}_request_duration_seconds",
            "From the start of a request here to its end.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        tokens = Counter(
            f"{_PREFIX}_tokens_total", "Tokens that the engine counted, by kind.", ("kind",), registry=self.registry
        )
        self._prompt_tokens = tokens.labels("prompt")
        self._cached_tokens = tokens.labels("cached")
        self._completion_tokens = tokens.labels("completion")

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        Gauge(f"{_PREFIX}_{name}", documentation, registry=self.registry).set_function(read)

    def watch_engine(self, load: Callable[[], EngineLoad]) -> None:
        self.gauge("engine_running_requests", "Requests that the engine computes.", lambda: load().running)
        self.gauge("engine_waiting_requests", "Requests that wait in the engine.", lambda: load().waiting)
        self.gauge("engine_kv_usage_ratio", "The used part of the KV cache.", lambda: load().kv_usage)

    def request_ended(
        self,
        route: str,
        outcome: auth_pb2.Outcome,
        reason: str,
        usage: UsageMeter,
        ttft_s: float | None,
        duration_s: float,
    ) -> None:
        kind = (route, outcome, reason)
        requests = self._requests_of.get(kind)
        if requests is None:
            requests = self._requests_of[kind] = self._requests.labels(route, outcome_name(outcome), reason)
        requests.inc()
        self._duration.observe(duration_s)
        if ttft_s is not None:
            self._ttft.observe(ttft_s)
        self._prompt_tokens.inc(usage.prompt_tokens)
        if usage.cached_tokens:
            self._cached_tokens.inc(usage.cached_tokens)
        self._completion_tokens.inc(usage.completion_tokens)

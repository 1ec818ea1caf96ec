"""Every metric of the engine host."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import Gauge, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.metrics import LATENCY_BUCKETS_S, process_registry
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


class Durations:
    """A histogram as plain numbers."""

    def __init__(self) -> None:
        #: One for each bucket, and one for what is above all of them.
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, duration_s: float) -> None:
        self._counts[bisect_left(LATENCY_BUCKETS_S, duration_s)] += 1
        self._sum_s += duration_s

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        bounds = (*map(floatToGoString, LATENCY_BUCKETS_S), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=self._sum_s)


class HostMetrics(Collector):
    """The host's metrics on a registry of their own. What each request counts is a plain number that a scrape reads."""

    def __init__(self) -> None:
        self.registry = process_registry()
        self._requests: Tally[tuple[str, auth_pb2.Outcome, str]] = Tally()
        self._ttft = Durations()
        self._duration = Durations()
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._completion_tokens = 0
        # From 0, so that the first failure is an increase.
        self._adapter_operations: Tally[tuple[str, str]] = Tally(
            {(kind, outcome): 0 for kind in ("load", "unload") for outcome in ("ok", "failed")}
        )
        self._adapter_seconds: defaultdict[str, float] = defaultdict(float)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry, in whatever thread scrapes it."""
        requests = CounterMetricFamily(
            f"{_PREFIX}_requests_total",
            "Requests that ended here, by route, outcome and reason of the error table.",
            labels=("route", "outcome", "reason"),
        )
        for (route, outcome, reason), count in self._requests.copy().items():
            requests.add_metric((route, outcome_name(outcome), reason), count)
        yield requests
        yield self._ttft.family(
            f"{_PREFIX}_time_to_first_byte_seconds",
            "From the start of a request here to the first byte of its answer's body.",
        )
        yield self._duration.family(
            f"{_PREFIX}_request_duration_seconds", "From the start of a request here to its end."
        )
        tokens = CounterMetricFamily(
            f"{_PREFIX}_tokens_total", "Tokens that the engine counted, by kind.", labels=("kind",)
        )
        tokens.add_metric(("prompt",), self._prompt_tokens)
        tokens.add_metric(("cached",), self._cached_tokens)
        tokens.add_metric(("completion",), self._completion_tokens)
        yield tokens
        operations = CounterMetricFamily(
            f"{_PREFIX}_adapter_operations_total", "Adapter loads and unloads.", labels=("kind", "outcome")
        )
        for labels, count in self._adapter_operations.copy().items():
            operations.add_metric(labels, count)
        yield operations
        seconds = CounterMetricFamily(
            f"{_PREFIX}_adapter_operation_seconds_total", "Time that adapter loads and unloads took.", labels=("kind",)
        )
        for kind, duration_s in self._adapter_seconds.copy().items():
            seconds.add_metric((kind,), duration_s)
        yield seconds

    def adapter_operation(self, kind: str, ok: bool, duration_s: float) -> None:
        self._adapter_operations[kind, "ok" if ok else "failed"] += 1
        self._adapter_seconds[kind] += duration_s

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
        self._requests[route, outcome, reason] += 1
        self._duration.add(duration_s)
        if ttft_s is not None:
            self._ttft.add(ttft_s)
        self._prompt_tokens += usage.prompt_tokens
        self._cached_tokens += usage.cached_tokens
        self._completion_tokens += usage.completion_tokens

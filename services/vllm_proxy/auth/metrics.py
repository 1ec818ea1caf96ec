"""Every metric of the auth service."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_COMMIT_BUCKETS_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0)

_ESTIMATE_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


class AuthMetrics(Collector):
    """What each request counts is a plain number that a scrape reads; the rest are Prometheus' own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        #: Admissions by result and limit, settlements by what came of them.
        self.admissions: Tally[tuple[str, str]] = Tally({("admitted", ""): 0})
        self.settlements: Tally[str] = Tally(settled=0, lapsed=0, corrected=0)
        #: Admissions that waited, by how that ended.
        self.waits: Tally[str] = Tally(admitted=0, refused=0, left=0)
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        # Estimated prompts by estimate over count, and the sum of that.
        self._estimates = [0] * (len(_ESTIMATE_BUCKETS) + 1)
        self._estimate_sum = 0.0
        self.leases = Gauge("vllm_proxy_auth_open_leases", "Leases that are open.", registry=registry)
        self.waiting = Gauge("vllm_proxy_auth_waiting", "Admissions that wait for room.", registry=registry)
        self.keys = Gauge("vllm_proxy_auth_keys", "Keys in force.", registry=registry)
        self.sessions = Gauge("vllm_proxy_auth_sessions", "Sessions that are open.", registry=registry)
        self.commit_seconds = Histogram(
            "vllm_proxy_auth_commit_seconds",
            "Duration of a store transaction.",
            buckets=_COMMIT_BUCKETS_S,
            registry=registry,
        )
        self.committed_records = Counter(
            "vllm_proxy_auth_committed_records_total", "Records written to the store.", registry=registry
        )
        self.leader = Gauge(
            "vllm_proxy_auth_leader", "1 if this replica decides, 0 if it stands by.", registry=registry
        )
        self.store_outage = Gauge("vllm_proxy_auth_store_outage", "1 while Redis is away.", registry=registry)
        self.undurable_records = Gauge(
            "vllm_proxy_auth_undurable_records", "Records that are not in the store yet.", registry=registry
        )
        self.replayed_batches = Counter(
            "vllm_proxy_auth_replayed_batches_total",
            "Batches that Redis had lost and was given again.",
            registry=registry,
        )
        registry.register(self)

    def count_estimate(self, estimated: int, counted: int) -> None:
        """A prompt's tokens as they were estimated and as the engine counted them."""
        ratio = estimated / counted
        self._estimates[bisect_left(_ESTIMATE_BUCKETS, ratio)] += 1
        self._estimate_sum += ratio

    def collect(self) -> Iterator[Metric]:
        """For the registry, in whatever thread scrapes it."""
        admissions = CounterMetricFamily(
            "vllm_proxy_auth_admissions_total", "Admissions that were decided.", labels=("result", "limit")
        )
        for labels, count in self.admissions.copy().items():
            admissions.add_metric(labels, count)
        yield admissions
        settlements = CounterMetricFamily(
            "vllm_proxy_auth_settlements_total", "Settlements by what came of them.", labels=("result",)
        )
        for result, count in self.settlements.copy().items():
            settlements.add_metric((result,), count)
        yield settlements
        tokens = CounterMetricFamily(
            "vllm_proxy_auth_tokens_total", "Tokens that were charged first time.", labels=("kind",)
        )
        tokens.add_metric(("prompt",), self.prompt_tokens)
        tokens.add_metric(("cached",), self.cached_tokens)
        tokens.add_metric(("completion",), self.completion_tokens)
        yield tokens
        waits = CounterMetricFamily(
            "vllm_proxy_auth_waits_total", "Admissions that waited for room, by how that ended.", labels=("result",)
        )
        for result, count in self.waits.copy().items():
            waits.add_metric((result,), count)
        yield waits
        yield self._estimate_histogram()

    def _estimate_histogram(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            "vllm_proxy_auth_prompt_estimate_ratio",
            "Estimated prompt tokens over those that the engine counted: 1 is exact, 2 twice as many.",
        )
        counts = list(itertools.accumulate(self._estimates))
        bounds = [*(f"{bound:g}" for bound in _ESTIMATE_BUCKETS), "+Inf"]
        family.add_metric((), list(zip(bounds, counts, strict=True)), self._estimate_sum)
        return family

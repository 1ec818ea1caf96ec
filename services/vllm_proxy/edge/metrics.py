"""Every metric of the edge. With PROMETHEUS_MULTIPROC_DIR set, `render` sums over all workers.

Writing a value that processes share costs more than most of a request's other steps, so requests only count in plain
numbers here, and `flush` moves those into Prometheus' own: every second, before this worker renders, and at its end.
"""

from __future__ import annotations

import os
import re
import resource
import time
from bisect import bisect_left
from collections import Counter as Tally
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from vllm_proxy.common.metrics import LATENCY_BUCKETS_S, TOKEN_BUCKETS_S

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: What all models are called that no host has: clients choose names, and there must not be a series for each.
UNKNOWN_MODEL = "unknown"
_LIVE_GAUGE = re.compile(r"gauge_live\w*_(\d+)\.db")


class Observations:
    """What a histogram has not been told yet."""

    __slots__ = ("_histogram", "_values", "add")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._values: list[float] = []
        #: Takes a value.
        self.add = self._values.append

    def flush(self) -> None:
        if not self._values:
            return
        # prometheus_client has no public way to add more than one observation at once. Its buckets are not cumulative.
        bounds = self._histogram._upper_bounds
        counts = Tally([bisect_left(bounds, value) for value in self._values])
        for bucket, count in counts.items():
            self._histogram._buckets[bucket].inc(count)
        self._histogram._sum.inc(sum(self._values))
        self._values.clear()


class WorkerProcess:
    """The workers' processes. prometheus_client's own collector of this knows one process only."""

    def __init__(self, prefix: str, registry: CollectorRegistry) -> None:
        self._workers = Gauge(
            prefix + "workers", "Worker processes that are up.", multiprocess_mode="livesum", registry=registry
        )
        self._started = Gauge(
            prefix + "start_time_seconds",
            "When the youngest worker was started, in Unix seconds.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._cpu_s = Counter(prefix + "cpu_seconds_total", "CPU time of all workers.", registry=registry)
        self._memory = Gauge(
            prefix + "resident_memory_bytes", "Memory of all workers.", multiprocess_mode="livesum", registry=registry
        )
        self._counted_s = 0.0
        self._start_time_s = time.time()

    def sample(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = used.ru_utime + used.ru_stime
        self._cpu_s.inc(max(0.0, cpu_s - self._counted_s))
        self._counted_s = cpu_s
        self._memory.set(_resident_bytes())
        self._started.set(self._start_time_s)
        self._workers.set(1)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class EdgeMetrics:
    """One per process; prometheus_client decides at its import whether values are shared between processes.

    Belongs to the event loop, but for `render`.
    """

    def __init__(self) -> None:
        #: Requests that ended since the last flush, by (route, model, HTTP status, reason).
        self.requests: Tally[tuple[str, str, int, str]] = Tally()
        #: Tokens since the last flush, by (model, kind).
        self.tokens: Tally[tuple[str, str]] = Tally()
        self.retries = 0
        self.registry = registry = CollectorRegistry()
        prefix = "vllm_proxy_edge_"
        self._requests = Counter(
            prefix + "requests_total",
            "Requests that ended, by route, model or adapter, HTTP status and reason.",
            ["route", "model", "status", "reason"],
            registry=registry,
        )
        self._tokens = Counter(
            prefix + "tokens_total",
            "Tokens that were settled, by model or adapter and kind; cached ones are prompt tokens too.",
            ["model", "kind"],
            registry=registry,
        )
        self.process = WorkerProcess(prefix, registry)
        self.in_flight = Gauge(
            prefix + "requests_in_flight",
            "Inference requests that have not ended.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.unsettled = Gauge(
            prefix + "settlements_pending",
            "Settlements that are not durable in the auth service yet.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._retries = Counter(
            prefix + "retries_total", "Requests that were sent to a second host.", registry=registry
        )
        admission_s = Histogram(
            prefix + "admission_duration_seconds",
            "Time that the auth service took to answer.",
            buckets=(0.0005, 0.001, 0.0025, *LATENCY_BUCKETS_S[:11]),
            registry=registry,
        )
        time_per_token_s = Histogram(
            prefix + "time_per_output_token_seconds",
            "Of each request, the mean time from one token to the next after its first byte.",
            buckets=TOKEN_BUCKETS_S,
            registry=registry,
        )
        settle_s = Histogram(
            prefix + "settle_duration_seconds",
            "From the end of a request to its settlement being durable in the auth service.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._ttft_s = Histogram(
            prefix + "time_to_first_byte_seconds",
            "From the request's arrival to the first byte of its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._duration_s = Histogram(
            prefix + "request_duration_seconds",
            "From the request's arrival to its end.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._observations: list[Observations] = []
        self.admission_s = self._observed(admission_s)
        self.time_per_token_s = self._observed(time_per_token_s)
        self.settle_s = self._observed(settle_s)
        #: By route.
        self.ttft_s = cache(lambda route: self._observed(self._ttft_s.labels(route)))
        self.duration_s = cache(lambda route: self._observed(self._duration_s.labels(route)))

    def _observed(self, histogram: Histogram) -> Observations:
        observations = Observations(histogram)
        self._observations.append(observations)
        return observations

    def flush(self) -> None:
        """Moves what was counted into Prometheus' own values."""
        for (route, model, status, reason), count in self.requests.items():
            self._requests.labels(route, model, str(status), reason).inc(count)
        self.requests.clear()
        for (model, kind), count in self.tokens.items():
            self._tokens.labels(model, kind).inc(count)
        self.tokens.clear()
        self._retries.inc(self.retries)
        self.retries = 0
        for observations in self._observations:
            observations.flush()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format. Reads files when several workers share them."""
        if MULTIPROCESS_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self.registry)


def prepare_multiprocess() -> None:
    """Makes the shared folder and forgets the gauges of workers that died without saying so."""
    if not (name := os.environ.get(MULTIPROCESS_VARIABLE)):
        return
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if (match := _LIVE_GAUGE.fullmatch(path.name)) and not Path("/proc", match[1]).exists():
            mark_process_dead(int(match[1]), str(folder))


def leave_multiprocess() -> None:
    if MULTIPROCESS_VARIABLE in os.environ:
        mark_process_dead(os.getpid())

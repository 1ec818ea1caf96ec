"""Every metric of the edge. With PROMETHEUS_MULTIPROC_DIR set, `render` sums over all workers."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from vllm_proxy.common.metrics import LATENCY_BUCKETS_S

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_LIVE_GAUGE = re.compile(r"gauge_live\w*_(\d+)\.db")


class EdgeMetrics:
    """One per process; prometheus_client decides at its import whether values are shared between processes."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "vllm_proxy_edge_"
        self._requests = Counter(
            prefix + "requests_total",
            "Requests that ended, by route, HTTP status and reason.",
            ["route", "status", "reason"],
            registry=registry,
        )
        self._tokens = Counter(prefix + "tokens_total", "Tokens that were settled.", ["direction"], registry=registry)
        self.prompt_tokens = self._tokens.labels("prompt")
        self.completion_tokens = self._tokens.labels("completion")
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
        self.retries = Counter(prefix + "retries_total", "Requests that were sent to a second host.", registry=registry)
        self.admission_s = Histogram(
            prefix + "admission_duration_seconds",
            "Time that the auth service took to answer.",
            buckets=(0.0005, 0.001, 0.0025, *LATENCY_BUCKETS_S[:11]),
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
        # Label lookups cost more than the increment; the values are few.
        self.requests = cache(self._requests.labels)
        self.ttft_s = cache(self._ttft_s.labels)
        self.duration_s = cache(self._duration_s.labels)

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

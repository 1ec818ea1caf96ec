"""How a service's Prometheus metrics are served. What they are stands in each service's `metrics.py`."""

from __future__ import annotations

import logging

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from vllm_proxy.common.settings import ConfigError

log = logging.getLogger(__name__)

#: Buckets for durations of requests to language models, in seconds.
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
#: Buckets for the time from one token to the next, in seconds.
TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


def process_registry() -> CollectorRegistry:
    """A registry that has the process itself: CPU time, memory, file descriptors, when it was started."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def serve_metrics(port: int | None, registry: CollectorRegistry) -> None:
    """Serves `registry` on loopback in a thread of its own, if a port is configured (0: any). Raises ConfigError if
    the port cannot be had."""
    if port is None:
        return
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as e:
        raise ConfigError(f"metrics_port: 127.0.0.1:{port}, for Prometheus metrics: {e.strerror}") from None
    log.info("metrics", extra={"port": server.server_port})

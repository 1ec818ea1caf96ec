"""Opens a process's tracer, if tracing is on. Imports OpenTelemetry only then."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from vllm_proxy.common.settings import ConfigError, Tracing

if TYPE_CHECKING:
    from vllm_proxy.common.tracing.tracer import Tracer

log = logging.getLogger(__name__)


def open_tracer(settings: Tracing, service: str, metric_prefix: str, registry: CollectorRegistry) -> Tracer | None:
    """None unless an endpoint is configured. `service` follows the configured prefix in `service.name`; the metrics of
    what was sent and dropped go into `registry`. Close it with `close`. Raises ConfigError."""
    if settings.endpoint is None:
        return None
    try:
        from vllm_proxy.common.tracing.export import SpanPipe
        from vllm_proxy.common.tracing.tracer import Tracer
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"tracing.endpoint: tracing needs OpenTelemetry ({e.name} is missing): pip install 'vllm-proxy[tracing]'"
        ) from None
    name = f"{settings.service_prefix}-{service}"
    pipe = SpanPipe(settings, metric_prefix, registry)
    log.info("tracing", extra={"endpoint": settings.endpoint, "service_name": name, "ratio": settings.sample_ratio})
    return Tracer(pipe, settings, {"service.name": name, "host.name": socket.gethostname()})

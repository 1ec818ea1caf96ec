"""What the log and the metrics keep of a request that ended, however it came."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.logging import log_fields
from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.metrics import HostMetrics, outcome_name

log = logging.getLogger(__name__)

#: Of a model's name, which a client chooses, in the log.
MAX_NAME = 256


@dataclass(slots=True)
class RequestRecord:
    """The canonical line. Never a prompt, never a key."""

    request_id: str
    engine_request_id: str
    key_id: str
    model: str
    #: The short name of an engine route, `generate`, or `unknown`.
    route: str
    #: The HTTP status, 0 if there was none.
    status: int
    outcome: auth_pb2.Outcome
    #: Of the error table. Empty if it ended well.
    reason: str
    meter: UsageMeter
    ttft_s: float | None
    duration_s: float
    #: The edge worker that asked.
    edge: str

    def write(self, metrics: HostMetrics) -> None:
        meter = self.meter
        metrics.request_ended(self.route, self.outcome, self.reason, meter, self.ttft_s, self.duration_s)
        log_fields(
            log,
            "request",
            {
                "request_id": self.request_id,
                "engine_request_id": self.engine_request_id,
                "key_id": self.key_id,
                "route": self.route,
                "model": self.model[:MAX_NAME],
                "status": self.status or None,
                "ttft_ms": None if self.ttft_s is None else round(self.ttft_s * 1e3, 1),
                "duration_ms": round(self.duration_s * 1e3, 1),
                "prompt_tokens": meter.prompt_tokens,
                "completion_tokens": meter.completion_tokens,
                "cached_tokens": meter.cached_tokens,
                "outcome": outcome_name(self.outcome),
                "reason": self.reason,
                "edge": self.edge,
            },
        )

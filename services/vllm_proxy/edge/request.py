"""What was asked, and the one line that the log has about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm_proxy.common.engine_routes import EngineRoute
from vllm_proxy.common.logging import log_fields
from vllm_proxy.edge.errors import HeaderList

if TYPE_CHECKING:
    from vllm_proxy.edge.request_trace import RequestTrace

log = logging.getLogger("vllm_proxy.edge.requests")

#: `reason` of a request that ended well.
NO_REASON = "none"
CLIENT_GONE = "CLIENT_GONE"
CLIENT_CLOSED_REQUEST = 499


@dataclass(slots=True)
class RequestFacts:
    """What was asked, as the rest of the edge needs it."""

    request_id: str
    route: EngineRoute
    #: The engine's path.
    path: str
    query: bytes
    #: The headers that the engine gets.
    headers: list[tuple[bytes, bytes]]
    #: What the host is told.
    traceparent: str
    started_at: float
    model: str | None = None
    #: Of the host that holds the stored response that it needs; see common/response_ids.py.
    holder_tag: str = ""
    #: How long the auth service took to answer.
    admission_s: float = 0.0
    key_id: str = ""
    user: str = ""
    priority: int = 0
    reserved_tokens: int = 0
    #: Which limit refused it, and whose: key, user, global, model:PATTERN.
    limit: str = ""
    limit_scope: str = ""
    #: `x-request-id` and `x-ratelimit-*`, on every answer.
    answer_headers: HeaderList = field(default_factory=list)
    #: If it is traced.
    trace: RequestTrace | None = None


def log_request(
    request: RequestFacts,
    status: int,
    duration_s: float,
    *,
    reason: str,
    ttft_s: float | None = None,
    host: str = "",
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
    cached_tokens: int = 0,
    retry_after_s: float | None = None,
    attempt: int = 0,
) -> None:
    """The canonical line of a request."""
    log_fields(
        log,
        "request",
        {
            "request_id": request.request_id,
            "key_id": request.key_id,
            "user": request.user,
            "route": request.route.name,
            "model": request.model,
            "host": host,
            "status": status,
            "ttft_ms": None if ttft_s is None else round(ttft_s * 1000, 2),
            "duration_ms": round(duration_s * 1000, 2),
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "completion_tokens": completion_tokens,
            "reserved_tokens": request.reserved_tokens,
            "reason": "" if reason == NO_REASON else reason,
            "limit": request.limit,
            "limit_scope": request.limit_scope,
            "retry_after_s": retry_after_s,
            "attempt": attempt,
        },
    )

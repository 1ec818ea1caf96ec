"""`GET /v1/usage`: a key's own view, for whoever holds it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Security
from pydantic import BaseModel, ConfigDict, Field

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable
from vllm_proxy.common.views import key_view, limits_view, moment, usage_row
from vllm_proxy.edge.credentials import api_key_sha256, client_is_local
from vllm_proxy.edge.routes.authorization import BEARER
from vllm_proxy.edge.routes.calls import answer_of, call_metadata
from vllm_proxy.edge.routes.time_range import From, To, unix_ms

_GROUPS = ("day", "model")


class RateState(BaseModel):
    """null: unlimited."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    limit: float | None
    remaining: int | None
    """What would pass now."""
    reset_ms: int | None
    """Milliseconds until all of it is there again, if nothing else comes."""


class ConcurrencyState(BaseModel):
    limit: int | None
    running: int


class QuotaState(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    limit: int | None
    """Tokens; null: unlimited."""
    period: Literal["total", "day", "month"] | None
    used: int | None
    reserved: int
    """Tokens that running requests hold."""
    remaining: int | None
    resets_at: datetime | None


class OwnUsage(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["usage"] = "usage"
    id: str
    """The key's id; the admins know it by that."""
    prefix: str
    name: str
    user: str
    expires_at: datetime | None
    models: list[str] | None
    """Patterns of what it may use; null: everything."""
    max_response_tokens: int | None
    requests_per_second: RateState
    tokens_per_minute: RateState
    concurrency: ConcurrencyState
    quota: QuotaState
    start: Annotated[datetime, Field(serialization_alias="from")]
    end: Annotated[datetime, Field(serialization_alias="to")]
    data: list[dict[str, Any]]
    """By `day` (UTC) and `model`, the oldest first."""


def own_usage_router(auth_service: auth_pb2_grpc.AuthServiceStub, call_timeout_s: float) -> APIRouter:
    router = APIRouter(tags=["usage"], dependencies=[Security(BEARER)])

    @router.get("/v1/usage", summary="This key's limits, what is left of them, and its tokens by day and model")
    async def own_usage(request: Request, start: From = None, end: To = None) -> OwnUsage:
        headers: dict[bytes, bytes] = dict(request.scope["headers"])
        message = auth_pb2.GetOwnUsageRequest(
            api_key_sha256=api_key_sha256(headers),
            client_is_local=client_is_local(request.scope, headers),
            from_ms=unix_ms(start),
            to_ms=unix_ms(end),
        )
        call = auth_service.GetOwnUsage(message, timeout=call_timeout_s, metadata=call_metadata(request))
        return _view(await answer_of(call, AuthUnavailable))

    return router


def _view(answer: auth_pb2.GetOwnUsageResponse) -> OwnUsage:
    key, limits = key_view(answer.key), limits_view(answer.limits)
    concurrent = limits.get("concurrent")
    return OwnUsage(
        **{field: key[field] for field in ("id", "prefix", "name", "user", "expires_at", "models")},
        max_response_tokens=_whole(limits.get("max_response_tokens")),
        requests_per_second=_state(limits.get("qps"), answer.requests),
        tokens_per_minute=_state(limits.get("tokens_per_minute"), answer.tokens),
        concurrency=ConcurrencyState(limit=_whole(concurrent), running=key["running"]),
        quota=QuotaState(
            limit=key["quota"],
            period=key["quota_period"],
            used=key["quota_used"],
            reserved=key["reserved_tokens"],
            remaining=max(0, answer.quota_remaining) if answer.HasField("quota_remaining") else None,
            resets_at=key["quota_resets_at"],
        ),
        start=moment(answer.from_ms),
        end=moment(answer.to_ms),
        data=[usage_row(row, _GROUPS) for row in answer.rows],
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _state(limit: float | None, state: auth_pb2.RateLimitState) -> RateState:
    if limit is None and not state.limit:
        return RateState(limit=None, remaining=None, reset_ms=None)
    # A user's or everybody's limit may be the one that counts.
    return RateState(limit=limit or state.limit, remaining=state.remaining, reset_ms=state.reset_ms)

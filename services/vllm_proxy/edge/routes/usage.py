"""`GET /admin/usage` for operators, as JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable, UnprocessableRequest
from vllm_proxy.common.views import USAGE_COUNTS, USAGE_GROUPS, moment, usage_row
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.routes.authorization import requires
from vllm_proxy.edge.routes.calls import answer_of, call_metadata
from vllm_proxy.edge.routes.time_range import From, To, unix_ms

MAX_PAGE = 10_000
_CSV = "text/csv"


class UsageReport(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    start: Annotated[datetime, Field(serialization_alias="from")]
    """The bounds, rounded outwards to whole hours (UTC); `to` is exclusive."""
    end: Annotated[datetime, Field(serialization_alias="to")]
    group_by: list[str]
    data: list[dict[str, Any]]
    """The groups, then `requests`, `prompt_tokens` (cached ones included), `cached_tokens`, `completion_tokens`,
    `total_tokens`, and `charged_tokens` as quotas count them."""
    next_page_token: str | None
    """For the next page; null: there is none."""


def usage_router(auth: AuthClient, auth_service: auth_pb2_grpc.AuthServiceStub, call_timeout_s: float) -> APIRouter:
    router = APIRouter(tags=["usage"], dependencies=[Depends(requires(auth, auth_pb2.OPERATION_ADMIN))])

    @router.get(
        "/admin/usage",
        summary="Tokens and requests by key, user, model, base_model, adapter, hour, day; JSON or CSV",
        response_model=UsageReport,
        responses={200: {"content": {_CSV: {}}}},
    )
    async def usage(
        request: Request,
        group_by: Annotated[
            list[str] | None, Query(description=f"Any of {', '.join(USAGE_GROUPS)}; none: one sum. `a,b` or repeated.")
        ] = None,
        start: From = None,
        end: To = None,
        key: Annotated[str, Query(max_length=64, description="Only this key id's.")] = "",
        user: Annotated[str, Query(max_length=128, description="Only this user's.")] = "",
        model: Annotated[str, Query(max_length=256, description="Only this model's or adapter's.")] = "",
        format: Annotated[
            Literal["json", "csv"] | None, Query(description="Default: what `Accept` asks for, else JSON.")
        ] = None,
        page_size: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rows of JSON; CSV has them all.")] = 1000,
        page_token: Annotated[str, Query(max_length=4096, description="`next_page_token` of the page before.")] = "",
    ) -> Response | UsageReport:
        groups = groups_of(group_by or [])
        query = auth_pb2.QueryUsageRequest(
            from_ms=unix_ms(start),
            to_ms=unix_ms(end),
            group_by=[USAGE_GROUPS[group][0] for group in groups],
            key_id=key,
            user=user,
            model=model,
            page_size=page_size,
            page_token=page_token,
        )

        async def page() -> auth_pb2.QueryUsageResponse:
            call = auth_service.QueryUsage(query, timeout=call_timeout_s, metadata=call_metadata(request))
            return await answer_of(call, AuthUnavailable)

        wants_csv = format == "csv" or (format is None and _CSV in request.headers.get("accept", ""))
        if wants_csv:
            query.page_size = MAX_PAGE
        first = await page()
        if not wants_csv:
            return UsageReport(
                start=moment(first.from_ms),
                end=moment(first.to_ms),
                group_by=groups,
                data=[usage_row(row, groups) for row in first.rows],
                next_page_token=first.next_page_token or None,
            )

        async def pages() -> AsyncIterator[str]:
            answer = first
            yield _csv([[*groups, *USAGE_COUNTS]])
            while True:
                yield _csv([list(usage_row(row, groups).values()) for row in answer.rows])
                if not answer.next_page_token:
                    return
                query.page_token = answer.next_page_token
                answer = await page()

        return StreamingResponse(
            pages(), media_type=_CSV, headers={"content-disposition": 'attachment; filename="usage.csv"'}
        )

    return router


def groups_of(values: list[str]) -> list[str]:
    """In the order that was asked for. Raises UnprocessableRequest."""
    groups = [name.strip() for value in values for name in value.split(",") if name.strip()]
    for name in groups:
        if name not in USAGE_GROUPS or groups.count(name) > 1:
            fault = "stands twice" if name in USAGE_GROUPS else f"must be one of {', '.join(USAGE_GROUPS)}"
            raise UnprocessableRequest(f"group_by: {name[:40]!r} {fault}.", metadata={"param": "group_by"})
    if "day" in groups and "hour" in groups:
        raise UnprocessableRequest("group_by: take either day or hour.", metadata={"param": "group_by"})
    return groups


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue()

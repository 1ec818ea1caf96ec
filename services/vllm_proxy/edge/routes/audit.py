"""`GET /admin/audit`: who administered what, the newest first."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable
from vllm_proxy.common.views import audit_line
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.routes.authorization import requires
from vllm_proxy.edge.routes.calls import answer_of, call_metadata
from vllm_proxy.edge.routes.time_range import From, To, unix_ms

MAX_PAGE = 1000


class AuditLine(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    at: datetime
    user: str
    """The user of the key that was used, or `cli:` and a name on the machine itself."""
    key_id: str
    client_address: str
    action: str
    target: str
    outcome: str
    """`ok`, or the reason why it failed."""
    detail: str
    request_id: str


class AuditPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[AuditLine]
    next_page_token: str | None


def audit_router(auth: AuthClient, auth_service: auth_pb2_grpc.AuthServiceStub, call_timeout_s: float) -> APIRouter:
    router = APIRouter(tags=["audit"], dependencies=[Depends(requires(auth, auth_pb2.OPERATION_ADMIN))])

    @router.get("/admin/audit", summary="Administrative actions page by page, the newest first")
    async def audit(
        request: Request,
        actor: Annotated[str, Query(max_length=256, description="Only this user's, or this key id's.")] = "",
        action: Annotated[str, Query(max_length=256, description="Only this one, or `key.` for all of keys.")] = "",
        target: Annotated[str, Query(max_length=256, description="Only on this key id or adapter.")] = "",
        start: From = None,
        end: To = None,
        page_size: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Lines on a page.")] = 100,
        page_token: Annotated[str, Query(max_length=256, description="`next_page_token` of the page before.")] = "",
    ) -> AuditPage:
        message = auth_pb2.ListAuditLogRequest(
            page_size=page_size,
            page_token=page_token,
            actor=actor,
            action=action,
            target=target,
            from_ms=unix_ms(start),
            to_ms=unix_ms(end),
        )
        call = auth_service.ListAuditLog(message, timeout=call_timeout_s, metadata=call_metadata(request))
        answer = await answer_of(call, AuthUnavailable)
        lines = [AuditLine.model_validate(audit_line(entry)) for entry in answer.entries]
        return AuditPage(data=lines, next_page_token=answer.next_page_token or None)

    return router

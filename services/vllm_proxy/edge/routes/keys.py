"""`/admin/keys`: makes, lists, changes, rotates and revokes API keys. The auth service decides and remembers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from google.protobuf.field_mask_pb2 import FieldMask

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable
from vllm_proxy.common.views import key_view
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.routes.authorization import actor_of, requires
from vllm_proxy.edge.routes.calls import answer_of, call_metadata
from vllm_proxy.edge.routes.key_models import (
    KeyChanges,
    KeyList,
    KeyView,
    NewKey,
    NewKeyView,
    Rotation,
    spec_of,
)

MAX_PAGE = 1000


def keys_router(auth: AuthClient, auth_service: auth_pb2_grpc.AuthServiceStub, call_timeout_s: float) -> APIRouter:
    router = APIRouter(
        prefix="/admin/keys", tags=["keys"], dependencies=[Depends(requires(auth, auth_pb2.OPERATION_ADMIN))]
    )

    async def call(method: Any, message: Any, request: Request) -> Any:
        return await answer_of(
            method(message, timeout=call_timeout_s, metadata=call_metadata(request)), AuthUnavailable
        )

    @router.post("", summary="Makes a key and shows it once", status_code=201, response_model=NewKeyView)
    async def create(body: NewKey, request: Request, response: Response) -> Any:
        spec, _ = spec_of(body)
        message = auth_pb2.CreateKeyRequest(spec=spec, actor=actor_of(request))
        answer = await call(auth_service.CreateKey, message, request)
        _keep_from_caches(response)
        return {**key_view(answer.key), "key": answer.secret}

    @router.get("", summary="Lists keys page by page: declared ones, then made ones from the oldest on")
    async def list_keys(
        request: Request,
        user: Annotated[str, Query(max_length=128, description="Only this user's keys.")] = "",
        show_revoked: Annotated[bool, Query(description="Whether revoked keys are listed too.")] = False,
        page_size: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Keys on a page.")] = 100,
        page_token: Annotated[str, Query(max_length=256, description="`next_page_token` of the page before.")] = "",
    ) -> KeyList:
        message = auth_pb2.ListKeysRequest(
            user=user, show_revoked=show_revoked, page_size=page_size, page_token=page_token
        )
        answer = await call(auth_service.ListKeys, message, request)
        return KeyList(
            data=[KeyView(**key_view(key)) for key in answer.keys], next_page_token=answer.next_page_token or None
        )

    @router.get("/{key_id}", summary="One key", response_model=KeyView)
    async def get(key_id: str, request: Request) -> Any:
        answer = await call(auth_service.GetKey, auth_pb2.GetKeyRequest(key_id=key_id), request)
        return key_view(answer.key)

    @router.patch(
        "/{key_id}",
        summary="Changes a key: fields that are left out stay, null clears; in force for the next request",
        response_model=KeyView,
    )
    async def update(key_id: str, body: KeyChanges, request: Request) -> Any:
        spec, paths = spec_of(body)
        message = auth_pb2.UpdateKeyRequest(
            key_id=key_id, spec=spec, update_mask=FieldMask(paths=paths), actor=actor_of(request)
        )
        answer = await call(auth_service.UpdateKey, message, request)
        return key_view(answer.key)

    @router.delete(
        "/{key_id}",
        summary="Revokes a key for good: refused from the next request on; what runs may end, what it used stays known",
        response_model=KeyView,
    )
    async def delete(key_id: str, request: Request) -> Any:
        message = auth_pb2.DeleteKeyRequest(key_id=key_id, actor=actor_of(request))
        answer = await call(auth_service.DeleteKey, message, request)
        return key_view(answer.key)

    @router.post(
        "/{key_id}/rotate",
        summary="Gives a key a new secret, shown once; the old one stays good for an overlap",
        response_model=NewKeyView,
    )
    async def rotate(key_id: str, request: Request, response: Response, body: Rotation | None = None) -> Any:
        overlap_s = body.overlap_s if body is not None else None
        message = auth_pb2.RotateKeyRequest(
            key_id=key_id, overlap_ms=None if overlap_s is None else round(overlap_s * 1000), actor=actor_of(request)
        )
        answer = await call(auth_service.RotateKey, message, request)
        _keep_from_caches(response)
        return {**key_view(answer.key), "key": answer.secret}

    return router


def _keep_from_caches(response: Response) -> None:
    response.headers["cache-control"] = "no-store"

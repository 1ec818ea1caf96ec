"""`GET /v1/models`: the engines' own model cards, merged over all hosts."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
from fastapi import APIRouter, Depends, Request, Response

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.model_patterns import patterns_of
from vllm_proxy.common.routing.table import ModelRow, RoutingTable
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.routes.authorization import requires


def models_router(table: RoutingTable, auth: AuthClient) -> APIRouter:
    router = APIRouter(dependencies=[Depends(requires(auth, auth_pb2.OPERATION_READ))])

    @router.get("/v1/models", summary="The models and adapters that the key may ask for")
    @router.get("/models", include_in_schema=False)
    async def models(request: Request) -> Response:
        rows: Iterable[ModelRow] = table.models()
        admission: auth_pb2.AdmitResponse = request.state.admission
        if admission.HasField("models"):
            allowed = patterns_of(tuple(admission.models.patterns))
            rows = (row for row in rows if allowed.match(row.name) is not None)
        cards = b",".join(_card(row) for row in rows)
        return Response(b'{"object":"list","data":[' + cards + b"]}", media_type="application/json")

    return router


def _card(row: ModelRow) -> bytes:
    if row.card_json:
        return row.card_json
    return orjson.dumps(
        {"id": row.name, "object": "model", "created": 0, "owned_by": "vllm-proxy", "parent": row.base or None}
    )

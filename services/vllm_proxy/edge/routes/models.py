"""`GET /v1/models`: the engines' own model cards, merged over all hosts; and one of them by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import orjson
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.errors import ModelNotFound
from vllm_proxy.common.model_patterns import patterns_of
from vllm_proxy.common.routing.table import ModelRow, RoutingTable
from vllm_proxy.edge.admission import AuthClient
from vllm_proxy.edge.routes.authorization import requires

#: Its keys may see where a model's files are.
ADMIN = "admin"


class ModelView(BaseModel):
    """The engine's own card; its other fields are there too."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    id: str
    """What a request names."""
    object: Literal["model"]
    parent: str | None = None
    """An adapter's base model."""


class ModelViews(BaseModel):
    object: Literal["list"]
    data: list[ModelView]


def models_router(table: RoutingTable, auth: AuthClient) -> APIRouter:
    router = APIRouter(dependencies=[Depends(requires(auth, auth_pb2.OPERATION_READ))])

    @router.get("/v1/models", summary="The models and adapters that the key may ask for", response_model=ModelViews)
    @router.get("/models", summary="The same as `/v1/models`", response_model=ModelViews)
    async def models(request: Request) -> Response:
        admission: auth_pb2.AdmitResponse = request.state.admission
        cards = b",".join(_card(row, admission) for row in _allowed(table.models(), admission))
        return Response(b'{"object":"list","data":[' + cards + b"]}", media_type="application/json")

    @router.get("/v1/models/{model:path}", summary="One of them", response_model=ModelView)
    @router.get("/models/{model:path}", summary="The same as `/v1/models/{model}`", response_model=ModelView)
    async def model(model: str, request: Request) -> Response:
        admission: auth_pb2.AdmitResponse = request.state.admission
        row = table.row(model)
        if row is None or not list(_allowed([row], admission)):
            raise ModelNotFound(f"The model `{model[:256]}` does not exist.", metadata={"param": "model"})
        return Response(_card(row, admission), media_type="application/json")

    return router


def _allowed(rows: Iterable[ModelRow], admission: auth_pb2.AdmitResponse) -> Iterable[ModelRow]:
    if not admission.HasField("models"):
        return rows
    allowed = patterns_of(tuple(admission.models.patterns))
    return (row for row in rows if allowed.match(row.name) is not None)


def _card(row: ModelRow, admission: auth_pb2.AdmitResponse) -> bytes:
    """The engine's card. Its `root` is where the files are, which is the operator's business: others get the name."""
    if not row.card_json:
        return orjson.dumps(
            {"id": row.name, "object": "model", "created": 0, "owned_by": "vllm-proxy", "parent": row.base or None}
        )
    if admission.user == ADMIN:
        return row.card_json
    card = orjson.loads(row.card_json)
    if "root" in card:
        card["root"] = row.name
    return orjson.dumps(card)

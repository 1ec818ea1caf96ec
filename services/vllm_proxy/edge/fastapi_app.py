"""The FastAPI application: health, metrics, models, admin, the API's description. Its errors have OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Route

from vllm_proxy.common.errors import InternalError, InvalidRequest, ServiceError, UnprocessableRequest
from vllm_proxy.edge.api_description import describe
from vllm_proxy.edge.engine_documents import EngineDocument
from vllm_proxy.edge.engine_operations import operation_id
from vllm_proxy.edge.errors import error_response, unexpected


class ErrorObject(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    """One sentence for people."""
    type: str
    param: str | None
    """The parameter or field that is wrong, if one is."""
    code: str | None
    """For programs; of a refusal by a limit its name."""


class ErrorAnswer(BaseModel):
    """Every error, in OpenAI's shape."""

    error: ErrorObject


#: What the description says of every route; 422 is in the place of FastAPI's own.
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in ("4XX", 422, "5XX")}
_DESCRIPTION = "/openapi.json"


def build_api(routers: Iterable[APIRouter], documents: Callable[[], Awaitable[Sequence[EngineDocument]]]) -> FastAPI:
    """`documents` are what the engines say of their routes."""
    # Both of these are ours: FastAPI's own describe its routes only.
    app = FastAPI(
        title="vLLM Proxy",
        openapi_url=None,
        docs_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: operation_id(min(route.methods or ("",)), route.path_format),
    )
    for router in routers:
        app.include_router(router, responses=_ERRORS)
    described: dict[tuple[str, ...], bytes] = {}

    async def description(_request: Request) -> Response:
        found = await documents()
        key = tuple(document.incarnation for document in found)
        if key not in described:
            text = await asyncio.to_thread(lambda: orjson.dumps(describe(app.openapi(), found)))
            # Only the newest: engines come and go.
            described.clear()
            described[key] = text
        return Response(described[key], media_type="application/json")

    async def docs(_request: Request) -> Response:
        return get_swagger_ui_html(openapi_url=_DESCRIPTION, title=app.title)

    app.add_route(_DESCRIPTION, description, include_in_schema=False)
    app.add_route("/docs", docs, include_in_schema=False)

    @app.exception_handler(ServiceError)
    async def service_error(_request: Request, error: ServiceError) -> Response:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        faults = error.errors()
        first = faults[0] if faults else {"loc": (), "msg": "not valid", "type": ""}
        # The first part says where the parameter was looked for; of broken JSON the second is a position.
        where = "" if first["type"] == "json_invalid" else ".".join(str(part) for part in first["loc"][1:])
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return _response(UnprocessableRequest(message, metadata={"param": where} if where else None))

    @app.exception_handler(HTTPException)
    async def http_exception(_request: Request, error: HTTPException) -> Response:
        answer = InvalidRequest(str(error.detail)) if error.status_code < 500 else InternalError()
        response = _response(answer)
        response.status_code = error.status_code
        return response

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return _response(unexpected(error, request.headers.get("x-request-id", "")))

    return app


def routes_of(app: FastAPI, routers: Iterable[APIRouter]) -> Iterator[tuple[str, str]]:
    """The (method, path) pairs that the application answers. HEAD, which Starlette adds to GET, is left out."""
    for routes in (app.routes, *(router.routes for router in routers)):
        for route in routes:
            if isinstance(route, Route):
                for method in (route.methods or set()) - {"HEAD"}:
                    yield method, route.path


def _response(error: ServiceError) -> Response:
    status, headers, body = error_response(error)
    response = Response(body, status_code=status)
    response.raw_headers = headers
    return response

"""What routes share: calls to another service (errors rebuilt, the request id handed on), answers in plain text."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc.aio
from fastapi import Request

from vllm_proxy.common.errors import ServiceError
from vllm_proxy.common.ids import REQUEST_ID_METADATA, accept_request_id
from vllm_proxy.common.rpc.status import from_rpc_error

T = TypeVar("T")

#: Of a route that answers in plain text, with `response_class=Response`: another class would be said of its errors too.
PLAIN_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


async def answer_of(call: Awaitable[T], unreachable: type[ServiceError]) -> T:
    """Raises what the service raised, or `unreachable`."""
    try:
        return await call
    except grpc.aio.AioRpcError as e:
        raise from_rpc_error(e, unreachable) from None


def call_metadata(request: Request) -> Any:
    value = request.headers.get(REQUEST_ID_METADATA)
    return ((REQUEST_ID_METADATA, accept_request_id(value.encode("latin-1") if value else None)),)

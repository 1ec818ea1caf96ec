"""What every incoming call passes: the shared token, the error mapping, one log line per unary call."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from vllm_proxy.common.errors import InternalError, PermissionDenied, ServiceError
from vllm_proxy.common.ids import REQUEST_ID_METADATA, TOKEN_METADATA
from vllm_proxy.common.rpc.status import to_status

log = logging.getLogger(__name__)

_OPEN_TO_ALL = ("/grpc.health.v1.Health/",)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns a ServiceError into its Status; anything unexpected into INTERNAL with an id that the log explains."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _guard(handler.stream_stream, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard(handler.unary_stream, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _guard(handler.stream_unary, method), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _guard(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
        )


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets only callers in that know the shared token. Health checks are open."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

        async def refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await context.abort_with_status(
                rpc_status.to_status(to_status(PermissionDenied("The internal token is missing or wrong.")))
            )

        # Every kind of call is refused as a stream: a unary handler would first wait for a message.
        self._refuse = grpc.stream_stream_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if not handler_call_details.method.startswith(_OPEN_TO_ALL):
            shown = dict(handler_call_details.invocation_metadata).get(TOKEN_METADATA, "")
            if not hmac.compare_digest(shown.encode() if isinstance(shown, str) else shown, self._token):
                return self._refuse
        return await continuation(handler_call_details)


def _guard(behavior: Any, method: str) -> Any:
    if inspect.isasyncgenfunction(behavior):

        async def guarded_generator(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async for item in behavior(request, context):
                    yield item
            except Exception as e:
                await _fail(e, method, context)

        return guarded_generator

    unary = True

    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.monotonic()
        try:
            result = behavior(request, context)
            return await result if inspect.isawaitable(result) else result
        except Exception as e:
            await _fail(e, method, context)
        finally:
            if unary and log.isEnabledFor(logging.DEBUG):
                log.debug("call", extra={"method": method, "duration_ms": round((time.monotonic() - started) * 1e3, 2)})

    return guarded


async def _fail(error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)):
        raise error
    if not isinstance(error, ServiceError):
        error_id = secrets.token_hex(4)
        metadata = dict(context.invocation_metadata() or ())
        log.error(
            "unexpected error",
            exc_info=error,
            extra={"error_id": error_id, "method": method, "request_id": metadata.get(REQUEST_ID_METADATA, "")},
        )
        error = InternalError(f"The service met an unexpected fault (error id {error_id}).")
    await context.abort_with_status(rpc_status.to_status(to_status(error)))

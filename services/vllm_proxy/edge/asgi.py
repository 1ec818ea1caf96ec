"""The front door: an allowlist by exact method and path, then the hot endpoint or the FastAPI application.

Paths are compared as the client wrote them, so that no spelling (`//`, `%2e`, a slash at the end) finds a way round
the list.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from itertools import chain

from vllm_proxy.common.errors import InternalError, MethodNotAllowed, RouteNotFound, ServiceError
from vllm_proxy.common.ids import accept_request_id
from vllm_proxy.common.routes import EDGE_ROUTES
from vllm_proxy.edge.errors import HeadersTooLarge
from vllm_proxy.edge.inference import InferenceEndpoint, send_error
from vllm_proxy.edge.response_writer import AsgiApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_ENGINE_ROUTES = {(method, path.encode()): route for (method, path), route in EDGE_ROUTES.items()}


class EdgeApp:
    """The ASGI application that the server calls."""

    def __init__(
        self,
        inference: InferenceEndpoint,
        api: AsgiApp,
        api_routes: Iterable[tuple[str, str]],
        max_header_bytes: int,
    ) -> None:
        """`api` answers the (method, path) pairs in `api_routes`."""
        self._inference = inference
        self._api = api
        self._api_routes = {(method, path.encode()) for method, path in api_routes}
        self._methods: dict[bytes, list[str]] = {}
        for method, path in (*_ENGINE_ROUTES, *self._api_routes):
            self._methods.setdefault(path, []).append(method)
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # Websockets are not offered; the server closes them.
        key = (scope["method"], scope.get("raw_path") or scope["path"].encode())
        route = _ENGINE_ROUTES.get(key)
        try:
            if sum(map(len, chain.from_iterable(scope["headers"]))) > self._max_header_bytes:
                raise HeadersTooLarge
            if route is not None:
                await self._inference(route, scope, receive, send)
            elif key in self._api_routes:
                await self._call_api(scope, receive, send)
            else:
                raise self._no_route(*key)
        except ServiceError as e:
            extra = [(b"x-request-id", _request_id(scope))]
            if isinstance(e, MethodNotAllowed):
                extra.append((b"allow", ", ".join(sorted(self._methods[key[1]])).encode()))
            await send_error(send, e, extra)

    async def _call_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        request_id = _request_id(scope)

        async def tagging_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        try:
            await self._api(scope, receive, tagging_send)
        except Exception:
            error_id = secrets.token_hex(4)
            log.exception("unexpected error", extra={"error_id": error_id, "request_id": request_id.decode()})
            if not started:
                raise InternalError(f"The service met an unexpected fault (error id {error_id}).") from None

    def _no_route(self, method: str, path: bytes) -> ServiceError:
        shown = path[:200].decode("ascii", "replace")
        if path in self._methods:
            return MethodNotAllowed(f"{shown} does not take {method}.")
        return RouteNotFound(f"Unknown request URL: {method} {shown}.")


def _request_id(scope: Scope) -> bytes:
    return accept_request_id(dict(scope["headers"]).get(b"x-request-id")).encode()

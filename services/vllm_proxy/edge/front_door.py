"""The front door: an allowlist by exact method and path, then the hot endpoint or the FastAPI application.

Paths are compared as the client wrote them, so that no spelling (`//`, `%2e`, a slash at the end) finds a way round
the list.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from vllm_proxy.common.engine_routes import EDGE_ROUTES, engine_path, error_shape, path_pattern
from vllm_proxy.common.errors import HeadersTooLarge, MethodNotAllowed, RequestTooLarge, RouteNotFound, ServiceError
from vllm_proxy.common.ids import accept_request_id
from vllm_proxy.edge.errors import unexpected
from vllm_proxy.edge.inference import InferenceEndpoint, send_error
from vllm_proxy.edge.response_writer import AsgiApp, Message, Receive, Scope, Send

#: FastAPI reads a body before it looks at the key.
MAX_API_BODY_BYTES = 64 * 1024
_NAME = b"{model:path}"
#: What GET answers, HEAD answers too, without the body, which the server leaves out.
_READS = {"HEAD": "GET"}


class EdgeApp:
    """The ASGI application that the server calls."""

    def __init__(
        self,
        inference: InferenceEndpoint,
        api: AsgiApp,
        api_routes: Iterable[tuple[str, str]],
        max_header_bytes: int,
    ) -> None:
        """`api` answers the (method, path) pairs in `api_routes`. A path may have `{parameter}`s."""
        self._inference = inference
        self._api = api
        self._api_routes = {(method, path.encode()) for method, path in api_routes}
        self._methods: dict[bytes, list[str]] = {}
        for method, path in self._api_routes:
            self._methods.setdefault(path, []).append(method)
        self._templates = [(path_pattern(path.decode()), path) for path in self._methods if b"{" in path]
        #: Paths that end in a model's name, which may hold slashes. A name is looked up in the table, nowhere else.
        self._named = tuple(path.removesuffix(_NAME) for path in self._methods if path.endswith(_NAME))
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # Websockets are not offered; the server closes them.
        key = (scope["method"], scope.get("raw_path") or scope["path"].encode())
        # As it was written; anything but ASCII is in no route.
        path = key[1].decode("latin-1")
        route = EDGE_ROUTES.find(key[0], path)
        if route is None:
            key = (key[0], self._template_of(key[1]))
        try:
            if sum(map(len, chain.from_iterable(scope["headers"]))) > self._max_header_bytes:
                raise HeadersTooLarge
            if route is not None:
                await self._inference(route, engine_path(route, path), scope, receive, send)
            elif (_READS.get(key[0], key[0]), key[1]) in self._api_routes:
                await self._call_api(scope, receive, send)
            elif path.endswith("/") and not path.startswith("/admin/") and self._allowed(key[1][:-1]):
                await _redirect(scope, send, key[1][:-1])
            else:
                raise self._no_route(*key)
        except ServiceError as e:
            extra = [(b"x-request-id", _request_id(scope))]
            if isinstance(e, MethodNotAllowed):
                extra.append((b"allow", ", ".join(self._allowed(key[1])).encode()))
            await send_error(send, e, extra, error_shape(path))

    async def _call_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        request_id = _request_id(scope)
        room = MAX_API_BODY_BYTES
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > room:
            raise _api_body_too_large()

        async def limited_receive() -> Message:
            nonlocal room
            message = await receive()
            room -= len(message.get("body", b""))
            if room < 0:
                raise _api_body_too_large()
            return message

        async def tagging_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        try:
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
            await self._api(scope, limited_receive, tagging_send)
        except Exception as e:
            # Starlette answers unexpected errors (see api.py) and lets them through to here as well.
            if not started:
                raise unexpected(e, request_id.decode()) from None

    def _allowed(self, path: bytes) -> list[str]:
        return sorted({*EDGE_ROUTES.methods(path.decode("latin-1")), *self._methods.get(self._template_of(path), ())})

    def _template_of(self, path: bytes) -> bytes:
        """The route's path that this one is written for, else itself."""
        if path in self._methods:
            return path
        text = path.decode("latin-1")
        named = (prefix + _NAME for prefix in self._named if path.startswith(prefix) and path != prefix)
        return next((template for pattern, template in self._templates if pattern.fullmatch(text)), next(named, path))

    def _no_route(self, method: str, path: bytes) -> ServiceError:
        shown = path[:200].decode("ascii", "replace")
        if self._allowed(path):
            return MethodNotAllowed(f"{shown} does not take {method}.")
        return RouteNotFound(f"Unknown request URL: {method} {shown}.")


def _request_id(scope: Scope) -> bytes:
    return accept_request_id(dict(scope["headers"]).get(b"x-request-id")).encode()


def _api_body_too_large() -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {MAX_API_BODY_BYTES} bytes.")


async def _redirect(scope: Scope, send: Send, path: bytes) -> None:
    """As the engine's own server, for a path with a slash too many at its end."""
    query = scope["query_string"]
    headers = [
        (b"location", path + (b"?" + query if query else b"")),
        (b"content-length", b"0"),
        (b"x-request-id", _request_id(scope)),
    ]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})

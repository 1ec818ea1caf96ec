"""The front door: an allowlist by exact method and path, then the hot endpoint or the FastAPI application.

Paths are compared as the client wrote them, so that no spelling (`//`, `%2e`, a slash at the end) finds a way round
the list.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_proxy.common.engine_routes import EDGE_ROUTES, error_shape, path_pattern
from vllm_proxy.common.errors import MethodNotAllowed, RouteNotFound, ServiceError
from vllm_proxy.common.ids import accept_request_id
from vllm_proxy.edge.asgi_call import AsgiApp, AsgiCall
from vllm_proxy.edge.errors import HeaderList
from vllm_proxy.edge.exchange import Spawn
from vllm_proxy.edge.http_request import HttpRequest
from vllm_proxy.edge.inference import InferenceEndpoint

#: FastAPI reads a body before it looks at the key.
MAX_API_BODY_BYTES = 64 * 1024
_NAME = "{model:path}"
#: What GET answers, HEAD answers too, without the body, which the server leaves out.
_READS = {"HEAD": "GET"}


class FrontDoor:
    """The server's Handler."""

    def __init__(
        self, inference: InferenceEndpoint, api: AsgiApp, api_routes: Iterable[tuple[str, str]], spawn: Spawn
    ) -> None:
        """`api` answers the (method, path) pairs in `api_routes`. A path may have `{parameter}`s."""
        self._inference = inference
        self._api = api
        self._api_routes = set(api_routes)
        self._spawn = spawn
        self._methods: dict[str, list[str]] = {}
        for method, path in self._api_routes:
            self._methods.setdefault(path, []).append(method)
        self._templates = [(path_pattern(path), path) for path in self._methods if "{" in path]
        #: Paths that end in a model's name, which may hold slashes. A name is looked up in the table, nowhere else.
        self._named = tuple(path.removesuffix(_NAME) for path in self._methods if path.endswith(_NAME))

    def body_limit_bytes(self, request: HttpRequest) -> int:
        """Raises RouteNotFound, MethodNotAllowed, InvalidApiKey."""
        method, path = request.method, request.path
        if EDGE_ROUTES.find(method, path) is not None:
            return self._inference.body_limit_bytes(request)
        if (_READS.get(method, method), self._template_of(path)) in self._api_routes:
            return MAX_API_BODY_BYTES
        if self._has_slash_too_many(path):
            return self._inference.max_body_bytes
        if self._allowed(path):
            raise MethodNotAllowed(f"{_shown(path)} does not take {method}.")
        raise RouteNotFound(f"Unknown request URL: {method} {_shown(path)}.")

    def handle(self, request: HttpRequest) -> None:
        route = EDGE_ROUTES.find(request.method, request.path)
        if route is not None:
            self._inference.handle(request, route)
        elif self._has_slash_too_many(request.path):
            _redirect(request)
        else:
            self._spawn(AsgiCall(request, _request_id(request)).run(self._api), "api")

    def refuse(self, request: HttpRequest, error: ServiceError) -> None:
        route = EDGE_ROUTES.find(request.method, request.path)
        if route is not None:
            self._inference.refuse(request, route, error)
            return
        extra: HeaderList = [(b"x-request-id", _request_id(request))]
        if isinstance(error, MethodNotAllowed):
            extra.append((b"allow", ", ".join(self._allowed(request.path)).encode()))
        request.response.send_error(error, extra, error_shape(request.path))

    def _allowed(self, path: str) -> list[str]:
        return sorted({*EDGE_ROUTES.methods(path), *self._methods.get(self._template_of(path), ())})

    def _template_of(self, path: str) -> str:
        """The route's path that this one is written for, else itself."""
        if path in self._methods:
            return path
        named = (prefix + _NAME for prefix in self._named if path.startswith(prefix) and path != prefix)
        return next((template for pattern, template in self._templates if pattern.fullmatch(path)), next(named, path))

    def _has_slash_too_many(self, path: str) -> bool:
        return (
            path.endswith("/")
            and self._template_of(path) == path
            and not path.startswith("/admin/")
            and bool(self._allowed(path[:-1]))
        )


def _redirect(request: HttpRequest) -> None:
    """As the engine's own server."""
    path = request.path[:-1].encode("latin-1")
    headers = [
        (b"location", path + (b"?" + request.query if request.query else b"")),
        (b"content-length", b"0"),
        (b"x-request-id", _request_id(request)),
    ]
    request.response.send(307, headers, b"")


def _shown(path: str) -> str:
    return path[:200].encode("latin-1").decode("ascii", "replace")


def _request_id(request: HttpRequest) -> bytes:
    return accept_request_id(request.headers.get(b"x-request-id")).encode()

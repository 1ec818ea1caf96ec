"""Cross-origin requests of web pages, for the origins that the configuration names (`edge.cors_origins`)."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_proxy.common.errors import ServiceError
from vllm_proxy.edge.http_request import HttpRequest
from vllm_proxy.edge.http_server import Handler

_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
#: Asked for by OpenAI's and Anthropic's own clients in a browser, if the page does not say.
_HEADERS = b"authorization, content-type, x-api-key, anthropic-version, x-request-id"
_EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, server-timing, x-should-retry, x-ratelimit-limit-requests, "
    b"x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_MAX_AGE_S = b"600"


class Cors:
    """A Handler before the front door. A page of another origin gets its answer without the headers that would let it
    read it. Keys travel in headers, so no credentials (cookies) are ever allowed."""

    def __init__(self, handler: Handler, origins: Sequence[str]) -> None:
        """`*` stands for every origin."""
        self._handler = handler
        self._any = "*" in origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)

    def body_limit_bytes(self, request: HttpRequest) -> int:
        origin = request.headers.get(b"origin")
        if origin is not None and (self._any or origin in self._origins):
            allowed = b"*" if self._any else origin
            request.response.extra_headers = [(b"access-control-allow-origin", allowed), (b"vary", b"Origin")]
            if _is_preflight(request):
                return 0
            request.response.extra_headers.append((b"access-control-expose-headers", _EXPOSED))
        return self._handler.body_limit_bytes(request)

    def handle(self, request: HttpRequest) -> None:
        if request.response.extra_headers and _is_preflight(request):
            asked = request.headers.get(b"access-control-request-headers", _HEADERS)
            headers = [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", asked),
                (b"access-control-max-age", _MAX_AGE_S),
            ]
            request.response.send(204, headers, b"")
        else:
            self._handler.handle(request)

    def refuse(self, request: HttpRequest, error: ServiceError) -> None:
        self._handler.refuse(request, error)


def _is_preflight(request: HttpRequest) -> bool:
    return request.method == "OPTIONS" and b"access-control-request-method" in request.headers

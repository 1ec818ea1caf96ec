"""Cross-origin requests of web pages, for the origins that the configuration names (`edge.cors_origins`)."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_proxy.edge.response_writer import AsgiApp, Message, Receive, Scope, Send

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
    """Wraps the edge's application. A page of another origin gets its answer without the headers that would let it
    read it. Keys travel in headers, so no credentials (cookies) are ever allowed."""

    def __init__(self, app: AsgiApp, origins: Sequence[str]) -> None:
        """`*` stands for every origin."""
        self._app = app
        self._any = "*" in origins
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope.get("headers", ()))
        origin = headers.get(b"origin")
        if origin is None or not (self._any or origin in self._origins):
            await self._app(scope, receive, send)
            return
        allowed = [(b"access-control-allow-origin", b"*" if self._any else origin), (b"vary", b"Origin")]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            asked = headers.get(b"access-control-request-headers", _HEADERS)
            allowed += [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", asked),
                (b"access-control-max-age", _MAX_AGE_S),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": allowed})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exposed = (b"access-control-expose-headers", _EXPOSED)
                message = {**message, "headers": [*message["headers"], *allowed, exposed]}
            await send(message)

        await self._app(scope, receive, send_allowed)

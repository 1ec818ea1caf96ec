"""Where the gateway's answer differs from the engine's own on purpose: each with its reason."""

from __future__ import annotations

from collections.abc import Mapping

_METHOD = "a wrong method is refused at the edge, in the shape of the route's API instead of FastAPI's"
_ROUTE = "an unknown route is refused at the edge, in OpenAI's shape instead of FastAPI's"

#: By the ask's name: what the gateway itself refuses.
REFUSED: Mapping[str, str] = {
    "responses: in the background": "it would go on when its lease is settled, and nobody would pay for it",
}

#: By the ask's name: the status is the engine's all the same.
EXCEPTIONS: Mapping[str, str] = {
    **{
        f"{method} {path}": _METHOD
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize")
        for method in ("GET", "PUT")
    },
    "DELETE /v1/responses/resp_x": _METHOD,
    **{f"POST {path}": _ROUTE for path in ("/", "/v1", "/v1/nothing", "/v1/chat", "/v1/chat/completions/x")},
}

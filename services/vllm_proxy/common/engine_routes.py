"""Which engine routes may be used through the gateway: an allowlist by exact method and path.

The edge checks it before anything else and the engine host checks it again. vLLM's application also carries
`/invocations`, `/inference/v1/*`, LoRA and sleep routes and more: closed unless they stand here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineRoute:
    """A route of the engine's own application."""

    method: str
    #: The engine's path.
    path: str
    #: A short name for metrics and logs.
    name: str


_ENGINE_ROUTES = (
    EngineRoute("POST", "/v1/chat/completions", "chat_completions"),
    EngineRoute("POST", "/v1/completions", "completions"),
)

#: (method, path at the host) -> route.
ENGINE_ROUTES: dict[tuple[str, str], EngineRoute] = {(r.method, r.path): r for r in _ENGINE_ROUTES}

#: (method, path at the edge) -> route; each stands with and without `/v1`.
EDGE_ROUTES: dict[tuple[str, str], EngineRoute] = {
    (r.method, path): r for r in _ENGINE_ROUTES for path in (r.path, r.path.removeprefix("/v1"))
}

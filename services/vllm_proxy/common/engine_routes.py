"""Which engine routes may be used through the gateway, and how: an allowlist by exact method and path.

The edge checks it before anything else and the engine host checks it again. An engine's application also carries
`/invocations`, `/inference/v1/*`, LoRA and sleep routes and more: closed unless they stand here. A route that the
engine behind does not have answers with that engine's own 404.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto


class Work(Enum):
    """What a request costs, and so what admission reserves for it. Each one opens a lease and counts as a request."""

    #: Makes tokens: the prompt and the response budget.
    GENERATE = auto()
    #: Only reads a prompt (embeddings, scores): the prompt.
    POOL = auto()
    #: No tokens at all (tokenizing, a stored response).
    LOOK_UP = auto()


class ModelIn(Enum):
    """Where a request names its model."""

    #: The field `model` of a JSON body.
    BODY = auto()
    #: The field `model` of a multipart form.
    FORM = auto()
    NOWHERE = auto()


class ErrorShape(Enum):
    OPENAI = auto()
    ANTHROPIC = auto()


@dataclass(frozen=True, slots=True)
class EngineRoute:
    """A route of the engine's own application."""

    method: str
    #: The engine's path. `{name}` stands for one parameter.
    path: str
    #: A short name for metrics and logs.
    name: str
    work: Work = Work.GENERATE
    model_in: ModelIn = ModelIn.BODY
    errors: ErrorShape = ErrorShape.OPENAI
    #: Whether the edge answers it without `/v1` as well.
    bare: bool = False
    #: The fields of the body that limit the tokens of an answer; the engine takes the first that is set.
    limits: tuple[str, ...] = ()

    @property
    def of_response(self) -> bool:
        """Whether its parameter is the id of a stored response."""
        return "{response_id}" in self.path


def _get(path: str, name: str) -> EngineRoute:
    return EngineRoute("GET", path, name, Work.LOOK_UP, ModelIn.NOWHERE)


def _post(
    path: str,
    name: str,
    work: Work = Work.GENERATE,
    model_in: ModelIn = ModelIn.BODY,
    limits: tuple[str, ...] = (),
) -> EngineRoute:
    return EngineRoute("POST", path, name, work, model_in, limits=limits)


_CHAT_LIMITS = ("max_completion_tokens", "max_tokens")


ENGINE_ROUTES = (
    EngineRoute("POST", "/v1/chat/completions", "chat_completions", bare=True, limits=_CHAT_LIMITS),
    EngineRoute("POST", "/v1/completions", "completions", bare=True, limits=("max_tokens",)),
    _post("/v1/chat/completions/batch", "chat_completions_batch", limits=_CHAT_LIMITS),
    _post("/v1/responses", "responses", limits=("max_output_tokens",)),
    _get("/v1/responses/{response_id}", "stored_response"),
    _post("/v1/responses/{response_id}/cancel", "cancel_response", Work.LOOK_UP, ModelIn.NOWHERE),
    EngineRoute("POST", "/v1/messages", "messages", errors=ErrorShape.ANTHROPIC, limits=("max_tokens",)),
    EngineRoute("POST", "/v1/messages/count_tokens", "count_tokens", Work.LOOK_UP, errors=ErrorShape.ANTHROPIC),
    _post("/v1/embeddings", "embeddings", Work.POOL),
    _post("/v2/embed", "embed", Work.POOL),
    _post("/pooling", "pooling", Work.POOL),
    _post("/classify", "classify", Work.POOL),
    _post("/v1/classify", "classify", Work.POOL),
    _post("/score", "score", Work.POOL),
    _post("/v1/score", "score", Work.POOL),
    _post("/rerank", "rerank", Work.POOL),
    _post("/v1/rerank", "rerank", Work.POOL),
    _post("/v2/rerank", "rerank", Work.POOL),
    _post("/generative_scoring", "generative_scoring", Work.POOL),
    _post("/v1/systemone", "systemone", Work.POOL),
    _post("/v1/audio/transcriptions", "transcriptions", model_in=ModelIn.FORM),
    _post("/v1/audio/translations", "translations", model_in=ModelIn.FORM),
    _post("/tokenize", "tokenize", Work.LOOK_UP),
    _post("/v1/tokenize", "tokenize", Work.LOOK_UP),
    _post("/detokenize", "detokenize", Work.LOOK_UP),
    _post("/v1/detokenize", "detokenize", Work.LOOK_UP),
    _get("/version", "version"),
)

#: What may stand for a parameter of a path: an id, and nothing that could be read in two ways.
_PARAMETER = "[A-Za-z0-9_-]{1,128}"


def path_pattern(path: str) -> re.Pattern[str]:
    """What a path with `{parameter}`s stands for."""
    return re.compile(_PARAMETER.join(re.escape(piece) for piece in re.split(r"\{\w+\}", path)), re.ASCII)


class RouteTable:
    """Finds routes by exact method and path."""

    def __init__(self, rows: Iterable[tuple[str, EngineRoute]]) -> None:
        """A row is a path and the route that it stands for."""
        self._exact: dict[tuple[str, str], EngineRoute] = {}
        self._patterns: list[tuple[re.Pattern[str], EngineRoute]] = []
        for path, route in rows:
            if "{" in path:
                self._patterns.append((path_pattern(path), route))
            else:
                self._exact[route.method, path] = route

    def find(self, method: str, path: str) -> EngineRoute | None:
        route = self._exact.get((method, path))
        if route is not None:
            return route
        return next((r for p, r in self._patterns if r.method == method and p.fullmatch(path)), None)

    def methods(self, path: str) -> list[str]:
        """The methods that a path takes. Empty: it is no route."""
        exact = [method for method, known in self._exact if known == path]
        return sorted({*exact, *(route.method for pattern, route in self._patterns if pattern.fullmatch(path))})


#: By the path at the host.
HOST_ROUTES = RouteTable((route.path, route) for route in ENGINE_ROUTES)


def edge_paths(route: EngineRoute) -> tuple[str, ...]:
    """What the edge calls it."""
    return (route.path, route.path.removeprefix("/v1")) if route.bare else (route.path,)


#: By the path at the edge.
EDGE_ROUTES = RouteTable((path, route) for route in ENGINE_ROUTES for path in edge_paths(route))


def engine_path(route: EngineRoute, path: str) -> str:
    """What the engine calls the path that a client asked for."""
    return path if "{" in route.path else route.path


def error_shape(path: str) -> ErrorShape:
    """The shape of an error of ours at this path, whatever the method."""
    methods = EDGE_ROUTES.methods(path)
    route = EDGE_ROUTES.find(methods[0], path) if methods else None
    return route.errors if route is not None else ErrorShape.OPENAI

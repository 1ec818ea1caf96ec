"""The API's OpenAPI document: the edge's own routes, as FastAPI describes them, and the engines' behind it.

What an engine takes at a route is in its own document, if it has one: then its schemas stand here, under the name of
their host. Otherwise engine_operations says what is known.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vllm_proxy.common.engine_routes import ENGINE_ROUTES, EngineRoute, ErrorShape, ModelIn, edge_paths
from vllm_proxy.common.errors import ServiceError, subclasses
from vllm_proxy.edge.engine_documents import EngineDocument
from vllm_proxy.edge.engine_operations import operation
from vllm_proxy.edge.routes.authorization import BEARER

log = logging.getLogger(__name__)

_SCHEMAS = "#/components/schemas/"
_REQUEST_ID = {"description": "Yours if it was harmless, else made here.", "required": True}
_HEADERS = {
    "x-request-id": {**_REQUEST_ID, "schema": {"type": "string"}},
}
_WAIT_HEADERS = {
    "retry-after": {"description": "Seconds after which it is worth trying again.", "schema": {"type": "integer"}},
    "x-should-retry": {"description": "`false`: waiting does not help.", "schema": {"type": "string"}},
    "x-ratelimit-reason": {"description": "The limit that was met.", "schema": {"type": "string"}},
}
_RATE_HEADERS = {
    f"x-ratelimit-{what}-{of}": {"schema": {"type": kind}}
    for what, kind in (("limit", "integer"), ("remaining", "integer"), ("reset", "string"))
    for of in ("requests", "tokens")
}
#: An engine's errors pass as they are.
_SCHEMAS_OF_ERRORS: dict[str, Any] = {
    "EngineError": {
        "type": "object",
        "description": "The engine's own error, or its web framework's.",
        "anyOf": [{"required": ["error"]}, {"required": ["detail"]}],
    },
    "AnthropicError": {
        "type": "object",
        "description": "An error in Anthropic's shape.",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}


def describe(own: Mapping[str, Any], documents: Iterable[EngineDocument] = ()) -> dict[str, Any]:
    """`own` is FastAPI's document of the edge's routes; it is left as it is."""
    components = own["components"]
    schemas: dict[str, Any] = {**components["schemas"], **_SCHEMAS_OF_ERRORS}
    paths = {path: {method: _of_ours(o) for method, o in item.items()} for path, item in own["paths"].items()}
    known = list(documents)
    for route in ENGINE_ROUTES:
        for path in edge_paths(route):
            described = operation(path, route)
            document = next((d for d in known if _operation_in(d, route)), None)
            if document is not None:
                try:
                    _take_over(described, document, route, schemas)
                except (KeyError, TypeError, AttributeError) as e:
                    log.warning("a host's description of a route makes no sense", extra={"host": document.host})
                    log.debug("the fault", exc_info=e)
                    known.remove(document)
                    described = operation(path, route)
            described["security"] = [{BEARER.scheme_name: []}]
            described["responses"] |= _engine_errors(route)
            _add_headers(described, _RATE_HEADERS)
            paths.setdefault(path, {})[route.method.lower()] = described
    return {
        **own,
        "info": {**own["info"], "description": _introduction()},
        "paths": paths,
        "components": {**components, "schemas": schemas},
    }


def _of_ours(described: Mapping[str, Any]) -> dict[str, Any]:
    ours = {**described, "responses": {status: {**answer} for status, answer in described["responses"].items()}}
    _add_headers(ours, {})
    return ours


def _add_headers(described: dict[str, Any], more: Mapping[str, Any]) -> None:
    for status, answer in described["responses"].items():
        waiting = _WAIT_HEADERS if status[0] in "45" else {}
        answer["headers"] = {**answer.get("headers", {}), **_HEADERS, **more, **waiting}


def _engine_errors(route: EngineRoute) -> dict[str, Any]:
    ours = "AnthropicError" if route.errors is ErrorShape.ANTHROPIC else "ErrorAnswer"
    schema = {"anyOf": [{"$ref": _SCHEMAS + name} for name in (ours, "EngineError")]}
    content = {"application/json": {"schema": schema}}
    return {
        "4XX": {"description": "Refused, by the gateway or the engine", "content": content},
        "5XX": {"description": "Nothing could serve it, or what served it failed", "content": content},
    }


def _operation_in(document: EngineDocument, route: EngineRoute) -> Any:
    return document.openapi.get("paths", {}).get(route.path, {}).get(route.method.lower())


def _take_over(
    described: dict[str, Any], document: EngineDocument, route: EngineRoute, schemas: dict[str, Any]
) -> None:
    """What the engine takes and answers at a route, with the schemas that this names."""
    engines = _operation_in(document, route)
    taken: dict[str, Any] = {}
    if "requestBody" in engines and route.model_in is not ModelIn.NOWHERE:
        contents = engines["requestBody"]["content"]
        # A form's body is described once, whatever its encoding; ours is always multipart.
        media = "multipart/form-data" if route.model_in is ModelIn.FORM else "application/json"
        schema = contents[media]["schema"] if media in contents else next(iter(contents.values()))["schema"]
        taken["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    if "parameters" in engines:
        taken["parameters"] = [p for p in engines["parameters"] if p["in"] in ("path", "query")]
    prefix = f"{document.host}."
    found = document.openapi.get("components", {}).get("schemas", {})
    copies: dict[str, Any] = {}
    waiting = set(_references(taken))
    while waiting:
        name = waiting.pop()
        if prefix + name not in schemas and name not in copies:
            copies[name] = found[name]
            waiting.update(_references(found[name]))
    described |= _renamed(taken, prefix)
    schemas |= {prefix + name: _renamed(schema, prefix) for name, schema in copies.items()}


def _references(node: Any) -> Iterator[str]:
    """The names of the schemas that it refers to."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref" and isinstance(value, str):
                yield value.removeprefix(_SCHEMAS)
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _renamed(node: Any, prefix: str) -> Any:
    """A copy whose references lead to the prefixed names. A discriminator's mapping names schemas as well."""
    if isinstance(node, dict):
        return {key: _renamed(value, prefix) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed(value, prefix) for value in node]
    if isinstance(node, str) and node.startswith(_SCHEMAS):
        return _SCHEMAS + prefix + node.removeprefix(_SCHEMAS)
    return node


def _introduction() -> str:
    """With every error of ours, from their table."""
    errors: list[type[ServiceError]] = [ServiceError, *subclasses()]
    rows = {(error.http_status, error.openai_code or "", error.default_message) for error in errors}
    return "\n".join(
        (
            "What is tagged `engine` is answered by the engine behind: its routes, its fields, its errors.",
            "The gateway's own errors:",
            "",
            "| status | code | |",
            "|---|---|---|",
            *(f"| {status} | {f'`{code}`' if code else ''} | {message} |" for status, code, message in sorted(rows)),
            "",
            "Of a refusal by a limit the code is the limit's name. Where GET is answered, HEAD is too.",
        )
    )

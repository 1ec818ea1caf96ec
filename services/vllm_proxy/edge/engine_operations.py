"""What the API's description says of the engine's routes: each row of the table as an OpenAPI operation.

The bodies are the engine's own affair. Described here is what every engine of that kind takes; whatever else a body has
passes through.
"""

from __future__ import annotations

import re
from typing import Any

from vllm_proxy.common.engine_routes import EngineRoute, ModelIn, Work

Schema = dict[str, Any]

TAG = "engine"
_TEXTS: Schema = {"anyOf": [{"type": "string"}, {"type": "array"}]}
_LIST: Schema = {"type": "array"}
_MESSAGE: Schema = {"type": "object", "properties": {"role": {"type": "string"}}, "required": ["role"]}
_MESSAGES: Schema = {"type": "array", "items": _MESSAGE}
_STREAM: Schema = {"type": "boolean", "description": "Whether the answer comes as server-sent events."}
_MODEL: Schema = {"type": "string", "description": "A model, an adapter, an alias, or `base:adapter`."}
_LIMIT: Schema = {"type": ["integer", "null"], "description": "The longest answer, in tokens."}
_FILE: Schema = {"type": "string", "format": "binary", "description": "The sound file."}

#: By the name of a route: a line for people, and the fields that are known here. An exclamation mark: it is needed.
_OPERATIONS: dict[str, tuple[str, dict[str, Schema]]] = {
    "chat_completions": ("Answers a conversation", {"messages!": _MESSAGES, "stream": _STREAM}),
    "completions": ("Continues a prompt", {"prompt": _TEXTS, "stream": _STREAM}),
    "chat_completions_batch": (
        "Answers several conversations",
        {"messages!": {"type": "array", "items": _MESSAGES}},
    ),
    "responses": ("Makes a response", {"input!": _TEXTS, "stream": _STREAM}),
    "stored_response": ("A stored response of this key", {}),
    "cancel_response": ("Cancels a response of this key", {}),
    "messages": ("Anthropic's Messages", {"messages!": _MESSAGES, "stream": _STREAM}),
    "count_tokens": ("Counts the tokens of Anthropic's Messages", {"messages!": _MESSAGES}),
    "embeddings": ("Embeds texts", {"input": _TEXTS, "messages": _LIST}),
    "embed": ("Embeds texts and images, as Cohere's API", {"texts": _LIST, "images": _LIST, "inputs": _LIST}),
    "pooling": ("A pooling model's raw output", {"input": _TEXTS, "messages": _LIST}),
    "classify": ("Classifies texts", {"input": _TEXTS, "messages": _LIST}),
    "score": ("Scores pairs of texts", {}),
    "rerank": ("Orders documents by a query", {"query!": {}, "documents!": {}}),
    "generative_scoring": ("Scores items by the probabilities of label tokens", {"query!": {}, "items!": {}}),
    "systemone": ("Answers questions about a state by probabilities", {"state!": {}, "questions!": {}}),
    "transcriptions": ("Writes down what is said", {"file!": _FILE}),
    "translations": ("Translates what is said", {"file!": _FILE}),
    "tokenize": ("The tokens of a prompt or conversation", {"prompt": {"type": "string"}, "messages": _LIST}),
    "detokenize": ("The text of tokens", {"tokens!": {"type": "array", "items": {"type": "integer"}}}),
    "version": ("The engine's version", {}),
}


def operation_id(method: str, path: str) -> str:
    return method.lower() + re.sub("[^a-z0-9]+", "_", path.lower()).rstrip("_")


def operation(path: str, route: EngineRoute) -> dict[str, Any]:
    """Without its errors. `path` is the edge's."""
    summary, fields = _OPERATIONS[route.name]
    described: dict[str, Any] = {
        "tags": [TAG],
        "summary": summary,
        "operationId": operation_id(route.method, path),
        "responses": {"200": {"description": "The engine's answer", "content": _answers(route, fields)}},
    }
    if path != route.path:
        described["description"] = f"The same as `{route.path}`."
    if names := re.findall(r"\{(\w+)\}", path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.model_in is not ModelIn.NOWHERE:
        media = "multipart/form-data" if route.model_in is ModelIn.FORM else "application/json"
        described["requestBody"] = {"required": True, "content": {media: {"schema": _body(route, fields)}}}
    return described


def _body(route: EngineRoute, fields: dict[str, Schema]) -> Schema:
    known = {"model": _MODEL, **{name.rstrip("!"): schema for name, schema in fields.items()}}
    return {
        "type": "object",
        "properties": known | dict.fromkeys(route.limits, _LIMIT),
        "required": [name[:-1] for name in fields if name.endswith("!")],
        "additionalProperties": True,
        "description": "Further fields are the engine's; they reach it as they are.",
    }


def _answers(route: EngineRoute, fields: dict[str, Schema]) -> dict[str, Any]:
    answers: dict[str, Any] = {"application/json": {"schema": {}}}
    if "stream" in fields or route.model_in is ModelIn.FORM or (route.of_response and route.method == "GET"):
        answers["text/event-stream"] = {"schema": {}}
    if route.model_in is ModelIn.FORM:
        answers["text/plain"] = {"schema": {"type": "string"}}
    if route.work is Work.POOL:
        answers["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return answers

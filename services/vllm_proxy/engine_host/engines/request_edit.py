"""What a request's body says that the adapter must know, and the one edit it makes: a stream tells its usage.

The body is otherwise the client's, byte for byte: a second `stream_options` at its end, which wins over an earlier one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import orjson

_FORCED = {"include_usage": True, "continuous_usage_stats": True}
#: Strings that pydantic, which both engines read requests with, takes for true.
_TRUE = frozenset({"true", "1", "on", "t", "y", "yes"})


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """`body` is what the engine gets. `model` is empty if the body names none or is no JSON object."""

    body: bytes
    model: str = ""
    streams: bool = False
    #: What the client itself asked for.
    wants_usage: bool = False
    wants_running_usage: bool = False
    #: Answers to each prompt.
    choices: int = 1
    #: The body's fields. None if it is no JSON object.
    fields: frozenset[str] | None = None
    #: The client's own `priority`, 0 if it has none; None if it is not a number.
    priority: int | None = None


def with_field(request: EngineRequest, name: str, value: str | int) -> EngineRequest:
    """The request with one more field, which wins over an earlier one of its name."""
    fields, lenient = _read(request.body)
    if lenient:
        body = json.dumps({**fields, name: value}).encode()
    else:
        end = request.body.rindex(b"}")
        body = b"%s,%s:%s}" % (request.body[:end], orjson.dumps(name), orjson.dumps(value))  # it has a model: not empty
    return replace(request, body=body)


def edit(body: bytes, *, tells_usage: bool = True) -> EngineRequest:
    """A body that no JSON reader takes is left alone: the engine says what is wrong with it. `tells_usage` false: of a
    route whose streams cannot be made to."""
    fields, lenient = _read(body)
    if not isinstance(fields, dict):
        return EngineRequest(body)
    model = fields.get("model")
    name = model if isinstance(model, str) else ""
    given_priority = fields.get("priority") or 0
    priority = given_priority if isinstance(given_priority, int) else None
    if not tells_usage or not is_true(fields.get("stream")):
        return EngineRequest(body, name, fields=frozenset(fields), priority=priority)
    given = fields.get("stream_options")
    if given is not None and not isinstance(given, dict):
        return EngineRequest(body, name, fields=frozenset(fields), priority=priority)
    options = given or {}
    usage = is_true(options.get("include_usage"))
    running = usage and is_true(options.get("continuous_usage_stats"))
    n = fields.get("n")
    choices = n if isinstance(n, int) and n > 0 else 1
    if not (usage and running):
        body = _force(body, fields, lenient)
    return EngineRequest(body, name, True, usage, running, choices, frozenset(fields), priority)


def is_true(value: Any) -> bool:
    """As pydantic reads a bool."""
    if isinstance(value, str):
        return value.lower() in _TRUE
    return isinstance(value, (bool, int, float)) and value == 1


def _read(body: bytes) -> tuple[Any, bool]:
    """The fields, and whether only Python's own reader took them, as the engines' does: NaN, UTF-16 and the like."""
    try:
        return orjson.loads(body), False
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body), True
    except (ValueError, RecursionError):
        return None, False


def _force(body: bytes, fields: dict[str, Any], lenient: bool) -> bytes:
    options = {**(fields.get("stream_options") or {}), **_FORCED}
    if lenient:
        return json.dumps({**fields, "stream_options": options}).encode()
    end = body.rindex(b"}")
    return b'%s,"stream_options":%s}' % (body[:end], orjson.dumps(options))  # never an empty object: it says `stream`

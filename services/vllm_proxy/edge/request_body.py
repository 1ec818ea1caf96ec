"""Peeks at the few fields of a request's body that admission and routing need.

The body itself is forwarded untouched: its schema is the engine's.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import msgspec

from vllm_proxy.common.engine_routes import Work

#: What an inline image, sound or video is estimated at, instead of its base64 text.
TOKENS_PER_MEDIA = 1024
_MEDIA = b";base64,"
#: A longer model name is none: no engine has it, and it would fill messages and logs.
MAX_MODEL_BYTES = 256
MAX_NUMBER_BYTES = 64
#: What is read into Python objects at most. Of a larger body only bytes are counted, so that the loop never stalls.
MAX_BUILT_BYTES = 256 * 1024
MAX_UINT32 = 2**32 - 1
#: What limits an answer on one route or another, the newer names first.
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class BodyPeek(NamedTuple):
    """What the body says, as far as it can be read. `model` is None if it names none."""

    model: str | None = None
    #: Answers that are asked for.
    choices: int = 1
    #: All answers together. None: the request sets no limit.
    response_tokens: int | None = None
    #: What is known of the prompt: token ids, and TOKENS_PER_MEDIA for each image and the like.
    prompt_tokens: int = 0
    #: Its text, as it stands in the JSON.
    prompt_bytes: int = 0
    #: A stored response that this request goes on from.
    previous_response_id: str | None = None


class _Fields(msgspec.Struct):
    """Raw, so that one field of a wrong type hides no other; everything else is skipped, not built."""

    model: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    n: msgspec.Raw = msgspec.Raw()
    best_of: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    previous_response_id: msgspec.Raw = msgspec.Raw()


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_string = msgspec.json.Decoder(str).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def peek(body: bytes, work: Work = Work.GENERATE, limits: tuple[str, ...] = _LIMITS) -> BodyPeek:
    """Reads what it can; a body that no JSON reader takes gives a BodyPeek of defaults. `limits` are the fields that
    limit an answer, by their precedence."""
    found = _peek(body, work, limits)
    return found if work is Work.GENERATE else found._replace(choices=1, response_tokens=0)


def _peek(body: bytes, work: Work, limits: tuple[str, ...]) -> BodyPeek:
    try:
        fields = _decode_fields(body)
    except _UNREADABLE:
        if len(body) > MAX_BUILT_BYTES:
            return BodyPeek()
        try:
            fields = _decode_leniently(body)
        except (*_UNREADABLE, ValueError):
            return BodyPeek()
    if work is not Work.GENERATE:
        tokens, size = _read_only(body, fields, work)
        return BodyPeek(_string(fields.model), prompt_tokens=tokens, prompt_bytes=size)
    prompts, prompt_tokens, prompt_bytes = _prompts(bytes(fields.prompt)) if fields.prompt else (1, 0, 0)
    messages = bytes(fields.messages)
    conversations = _count_lists(messages) if messages.startswith(b"[") and messages[1:64].lstrip()[:1] == b"[" else 1
    choices = prompts * conversations
    if fields.n or fields.best_of:
        choices *= max(_count(fields.n) or 1, _count(fields.best_of) or 1)
    given = [count for field in limits if (raw := getattr(fields, field)) and (count := _count(raw)) is not None]
    # Some engines take 0 as not given.
    per_choice = next((count for count in given if count), given[0] if given else None)
    for more in (messages, fields.input, fields.tools, fields.system, fields.instructions):
        if more:
            tokens, size = _measure(bytes(more))
            prompt_tokens += tokens
            prompt_bytes += size
    return BodyPeek(
        model=_string(fields.model),
        choices=min(choices, MAX_UINT32),
        response_tokens=None if per_choice is None else min(per_choice * choices, MAX_UINT32),
        prompt_tokens=min(prompt_tokens, MAX_UINT32),
        prompt_bytes=prompt_bytes,
        previous_response_id=_string(fields.previous_response_id),
    )


def _read_only(body: bytes, fields: _Fields, work: Work) -> tuple[int, int]:
    """The known tokens and the text of a request that makes none: all of it counts, whatever its fields are called."""
    if work is Work.LOOK_UP:
        return 0, 0
    given = bytes(fields.input)
    return _prompts(given)[1:] if given.startswith(b"[") else _measure(body)


def _decode_leniently(body: bytes) -> _Fields:
    """For what Python's own reader takes beyond JSON (NaN, Infinity), since engines use it too."""
    data = json.loads(body)
    if not isinstance(data, dict):
        raise ValueError
    kept = {name: _finite(data[name]) for name in _Fields.__struct_fields__ if name in data}
    return _decode_fields(json.dumps(kept).encode())


def _finite(value: Any) -> Any:
    """The same without the floats that JSON cannot say."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _string(raw: msgspec.Raw) -> str | None:
    if not raw or len(raw) > MAX_MODEL_BYTES:
        return None
    try:
        return _decode_string(raw) or None
    except _UNREADABLE:
        return None


def _count(raw: msgspec.Raw) -> int | None:
    """A whole number, also where it is written `5.0` or `"5"`, as the engines read it. Negative ones count as 0."""
    if not raw or len(raw) > MAX_NUMBER_BYTES:
        return None
    text = bytes(raw).strip(b'"')
    try:
        return max(0, int(text))
    except ValueError:
        pass
    try:
        value = float(text)
        return max(0, int(value)) if math.isfinite(value) else None
    except ValueError:
        return None


def _prompts(raw: bytes) -> tuple[int, int, int]:
    """How many prompts a `prompt` holds (text, token ids, or a list of either), their known tokens together, and the
    bytes of their text."""
    if not raw.startswith(b"["):
        return 1, *_measure(raw)
    first = raw[1:64].lstrip()[:1]
    if first == b"]":
        return 1, 0, 0
    if first == b'"':
        return _count_strings(raw), *_measure(raw)
    tokens = raw.count(b",") + 1
    return (raw.count(b"[") - 1 if first == b"[" else 1), tokens, 0


def _count_strings(raw: bytes) -> int:
    if len(raw) > MAX_BUILT_BYTES:
        # Between strings only: inside one, a quote has a backslash before it.
        return raw.count(b'","') + raw.count(b'", "') + 1
    try:
        return len(_decode_list(raw))
    except msgspec.MsgspecError:
        return 1


def _count_lists(raw: bytes) -> int:
    if len(raw) > MAX_BUILT_BYTES:
        return raw.count(b"],[") + raw.count(b"], [") + 1
    try:
        return max(1, len(_decode_list(raw)))
    except msgspec.MsgspecError:
        return 1


def _measure(raw: bytes) -> tuple[int, int]:
    """What media in it count as, and the bytes of the rest."""
    size, media = len(raw), 0
    start = raw.find(_MEDIA)
    while start >= 0:
        end = raw.find(b'"', start)
        end = end if end >= 0 else len(raw)
        size -= end - start
        media += 1
        start = raw.find(_MEDIA, end)
    return media * TOKENS_PER_MEDIA, size

"""What the simulator says: words that depend on the model's name and a seed only, and the JSON around them.

Everything per token is a concatenation of bytes made beforehand.
"""

from __future__ import annotations

import functools
import time
import zlib
from typing import Any

import orjson

#: In every answer.
FINGERPRINT = "sim-1"

_WORDS = (
    *("token", "batch", "step", "cache", "prompt", "slot", "queue", "rank", "layer", "head", "block"),
    *("page", "draft", "beam", "logit", "tensor", "kernel", "stream", "prefix", "suffix", "budget"),
    *("window", "credit", "frame", "lease", "ledger", "route", "host", "edge", "shard", "replica"),
)
#: Every so many tokens the model's name is said again, so that a mix-up shows wherever it happens.
NAME_EVERY = 16
#: Tokens until the words repeat.
_PERIOD = NAME_EVERY * len(_WORDS)


@functools.lru_cache(maxsize=1024)
def vocabulary(model: str) -> tuple[bytes, ...]:
    """One period of tokens as the inside of JSON strings."""
    name = orjson.dumps(model)[1:-1]
    return tuple(
        b" " + (name if index % NAME_EVERY == 0 else _WORDS[index % len(_WORDS)].encode()) for index in range(_PERIOD)
    )


def opening(model: str) -> bytes:
    """The first token: it says that this is a simulation."""
    return b"[simulated by " + orjson.dumps(model)[1:-1] + b"]"


def token_text(model: str, seed: int, index: int) -> bytes:
    """Token `index` as the inside of a JSON string."""
    return opening(model) if index == 0 else vocabulary(model)[(seed + index) % _PERIOD]


def plain_token(model: str, seed: int, index: int) -> str:
    """Token `index` as text."""
    return str(orjson.loads(b'"' + token_text(model, seed, index) + b'"'))


def text(model: str, seed: int, tokens: int) -> str:
    """The whole text of so many tokens."""
    inside = b"".join(token_text(model, seed, index) for index in range(tokens))
    return str(orjson.loads(b'"' + inside + b'"'))


def seed_of(body: dict[str, Any], prompt: bytes) -> int:
    """The request's own seed, else one that the prompt decides."""
    seed = body.get("seed")
    return seed % _PERIOD if isinstance(seed, int) else zlib.crc32(prompt) % _PERIOD


class ChunkTemplate:
    """The bytes around each token of one streamed choice."""

    __slots__ = ("first", "prefix", "suffix", "tail")

    def __init__(self, answer_id: str, model: str, chat: bool, choice: int, created_s: int) -> None:
        envelope = _envelope(answer_id, "chat.completion.chunk" if chat else "text_completion", model, created_s)
        start = b'data: %s,"choices":[{"index":%d,' % (envelope, choice)
        end = b',"logprobs":null,"finish_reason":'
        #: Sent before the first token.
        self.first = start + b'"delta":{"role":"assistant","content":""}' + end + b"null}]}\n\n" if chat else b""
        self.prefix = start + (b'"delta":{"content":"' if chat else b'"text":"')
        self.suffix = (b'"}' if chat else b'"') + end + b"null}]}\n\n"
        self.tail = (b'"}' if chat else b'"') + end

    def last(self, finish_reason: str) -> bytes:
        """Stands after the last token in place of `suffix`."""
        return self.tail + b'"%s"}]}\n\n' % finish_reason.encode()


def usage_chunk(answer_id: str, model: str, chat: bool, created_s: int, usage: dict[str, int]) -> bytes:
    envelope = _envelope(answer_id, "chat.completion.chunk" if chat else "text_completion", model, created_s)
    return b'data: %s,"choices":[],"usage":%s}\n\n' % (envelope, orjson.dumps(usage))


def usage_member(prompt_tokens: int, completion_tokens: int) -> bytes:
    """At the end of a chunk that tells the usage so far."""
    return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
        prompt_tokens,
        prompt_tokens + completion_tokens,
        completion_tokens,
    )


def whole_answer(
    answer_id: str, model: str, chat: bool, created_s: int, choices: list[tuple[str, str]], usage: dict[str, int]
) -> bytes:
    """`choices` are texts and finish reasons."""
    rows = [
        {
            "index": index,
            **({"message": {"role": "assistant", "content": said}} if chat else {"text": said}),
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        for index, (said, finish_reason) in enumerate(choices)
    ]
    envelope = _envelope(answer_id, "chat.completion" if chat else "text_completion", model, created_s)
    return b'%s,"choices":%s,"usage":%s}' % (envelope, orjson.dumps(rows), orjson.dumps(usage))


def error(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """As vLLM shapes it."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}})


def model_card(name: str, base: str, max_model_len: int) -> bytes:
    return orjson.dumps(
        {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "sim",
            "root": base or name,
            "parent": base or None,
            "max_model_len": max_model_len,
        }
    )


def _envelope(answer_id: str, kind: str, model: str, created_s: int) -> bytes:
    return b'{"id":"%s","object":"%s","created":%d,"model":%s,"system_fingerprint":"%s"' % (
        answer_id.encode(),
        kind.encode(),
        created_s,
        orjson.dumps(model),
        FINGERPRINT.encode(),
    )

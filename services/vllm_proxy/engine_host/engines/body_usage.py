"""The `usage` object of an answer that comes as one JSON document, found while its pieces pass."""

from __future__ import annotations

import orjson

from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.sse_usage import count_whole

_USAGE = b'"usage":{'
#: An engine's usage object has a few numbers in it.
_MAX_USAGE_BYTES = 4096


class BodyUsage:
    """Feed it every piece. Nothing is kept but a few bytes; the first usage object counts.

    `"usage":{` with bare quotes cannot stand inside a JSON string.
    """

    __slots__ = ("_collected", "_found", "_meter")

    def __init__(self, meter: UsageMeter) -> None:
        self._meter = meter
        self._collected = b""
        self._found = False

    def feed(self, data: bytes) -> None:
        if self._found and not self._collected:
            return
        text = self._collected + data
        if not self._found:
            start = text.find(_USAGE)
            if start < 0:
                self._collected = text[-len(_USAGE) + 1 :]
                return
            self._found = True
            text = text[start + len(_USAGE) - 1 :]
        end = _end(text)
        if end < 0 and len(text) <= _MAX_USAGE_BYTES:
            self._collected = text
            return
        self._collected = b""
        if end > 0:
            try:
                usage = orjson.loads(text[:end])
            except orjson.JSONDecodeError:
                return
            count_whole(self._meter, usage)


def _end(text: bytes) -> int:
    depth = 0
    for position, byte in enumerate(text[:_MAX_USAGE_BYTES]):
        if byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if not depth:
                return position + 1
    return -1

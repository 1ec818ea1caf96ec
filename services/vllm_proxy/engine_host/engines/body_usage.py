"""The `usage` objects of an answer that is passed on as it is, found while its pieces pass: in one JSON document, or
in a stream whose usage cannot be made to run along."""

from __future__ import annotations

import contextlib

import orjson

from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.sse_usage import count_whole, object_end

_USAGE = b'"usage":{'
#: An engine's usage object has a few numbers in it.
_MAX_USAGE_BYTES = 4096


class BodyUsage:
    """Feed it every piece. Nothing is kept but a few bytes; of several usage objects the largest figures count.

    `"usage":{` with bare quotes cannot stand inside a JSON string.
    """

    __slots__ = ("_kept", "_meter")

    def __init__(self, meter: UsageMeter) -> None:
        self._meter = meter
        self._kept = b""

    def feed(self, data: bytes) -> None:
        text = self._kept + data if self._kept else data
        at = 0
        while (found := text.find(_USAGE, at)) >= 0:
            start = found + len(_USAGE) - 1
            end = object_end(text, start)
            if end < 0:
                if len(text) - start > _MAX_USAGE_BYTES:
                    at = start
                    continue
                self._kept = text[found:]
                return
            with contextlib.suppress(orjson.JSONDecodeError):
                count_whole(self._meter, orjson.loads(text[start:end]))
            at = end
        self._kept = text[max(at, len(text) - len(_USAGE) + 1) :]

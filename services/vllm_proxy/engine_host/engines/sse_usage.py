"""Tokens of a streamed answer, read from the running usage that the engine was made to put into every chunk, and that
usage taken out again where the client did not ask for it.

Everything is a search for bytes in whole SSE events; only the few bytes of a usage object are parsed. `,"usage":{`
with bare quotes cannot stand inside a JSON string, so it is what it looks like.
"""

from __future__ import annotations

import orjson

from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.http_dialects import HttpDialect

_EVENT_END = b"\n\n"
_USAGE = b',"usage":{'
_NO_CHOICES = b'"choices":[]'
_INDEX = b'"choices":[{"index":'
_FINISHED = b'"finish_reason":"'
_FINGERPRINT = b',"system_fingerprint":"'
#: An event that does not end within so many bytes is passed on as it is.
_MAX_EVENT_BYTES = 8 * 1024 * 1024


class Fingerprint:
    """An engine's `system_fingerprint` member as it stands in its chunks, once one was seen. The same for all."""

    __slots__ = ("member",)

    def __init__(self) -> None:
        self.member: bytes | None = None


class StreamUsage:
    """One answer. `feed` takes what came and returns what the client gets; `finish` returns what is left.

    `choices` is how many answers each prompt was asked for: it tells to which prompt a choice belongs.
    """

    __slots__ = (
        "_choices",
        "_completion",
        "_dialect",
        "_fingerprint",
        "_held",
        "_hide_chunks",
        "_hide_last",
        "_meter",
        "_no_usage",
        "_pending",
        "_prompts",
    )

    def __init__(
        self,
        meter: UsageMeter,
        dialect: HttpDialect,
        fingerprint: Fingerprint,
        *,
        hide_chunks: bool,
        hide_last: bool,
        choices: int = 1,
        is_text: bool = False,
    ) -> None:
        """`is_text`: of a text completion, not of a chat. `hide_chunks`: the client did not ask for continuous usage;
        `hide_last`: nor for any."""
        self._meter = meter
        self._dialect = dialect
        self._fingerprint = fingerprint
        self._hide_chunks = hide_chunks
        self._hide_last = hide_last
        self._choices = max(choices, 1)
        self._no_usage = dialect.no_usage_in_text if is_text else b""
        self._pending = b""
        #: Events that wait for the fingerprint, which the engine tells at the end only.
        self._held: list[bytes] = []
        #: Prompt -> its tokens, and choice -> its tokens.
        self._prompts: dict[int, int] = {}
        self._completion: dict[int, int] = {}

    def feed(self, data: bytes) -> bytes:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        if not data.endswith(_EVENT_END):
            whole, end, rest = data.rpartition(_EVENT_END)
            if len(rest) <= _MAX_EVENT_BYTES:
                self._pending = rest
                data = whole + end
            if not data:
                return b""
        if data.count(_EVENT_END) == 1:
            return self._event(data)
        return b"".join([self._event(event + _EVENT_END) for event in data[:-2].split(_EVENT_END)])

    def finish(self) -> bytes:
        """What is left of an answer that ended: an event that was cut off, and what was held."""
        rest = self._let_go(self._fingerprint.member or b"") + self._pending
        self._pending = b""
        return rest

    def _event(self, event: bytes) -> bytes:
        start = event.rfind(_USAGE)
        if start < 0:
            if self._held and self._fingerprint.member is None:
                self._held.append(event)
                return self.finish() if event.startswith(b"data: [DONE]") else b""
            return event
        end = object_end(event, start + len(_USAGE) - 1)
        if end < 0:
            return event
        usage = orjson.loads(event[start + len(_USAGE) - 1 : end])
        if _NO_CHOICES in event:
            self._count_all(usage)
            return self._release(event, end) if self._hide_last else event
        self._count(event, usage)
        if not self._hide_chunks:
            return event
        return self._without(event, start, end)

    def _without(self, event: bytes, start: int, end: int) -> bytes:
        if self._hide_last and self._dialect.fingerprint_without_usage and _FINISHED in event:
            member = self._fingerprint.member
            if member is not None:
                return event[:start] + member + event[end:]
        elif not self._held:
            return event[:start] + self._no_usage + event[end:]
        self._held.append(event)
        return b""

    def _release(self, last: bytes, usage_end: int) -> bytes:
        """Learns the fingerprint from the last chunk, which the client does not get, and lets go what waited for it."""
        if self._fingerprint.member is None:
            start = last.find(_FINGERPRINT, usage_end)
            end = last.find(b'"', start + len(_FINGERPRINT)) + 1
            self._fingerprint.member = last[start:end] if start >= 0 else b""
        return self._let_go(self._fingerprint.member)

    def _let_go(self, member: bytes) -> bytes:
        held, self._held = self._held, []
        return b"".join([self._unheld(event, member) for event in held])

    def _unheld(self, event: bytes, member: bytes) -> bytes:
        start = event.rfind(_USAGE)
        if start < 0:
            return event
        instead = member if _FINISHED in event else self._no_usage
        return event[:start] + instead + event[object_end(event, start + len(_USAGE) - 1) :]

    def _count(self, event: bytes, usage: dict[str, int]) -> None:
        choice = _choice_of(event) if self._dialect.usage_per_choice else 0
        produced = usage.get("completion_tokens") or 0
        before = self._completion.get(choice, 0)
        if produced > before:
            self._completion[choice] = produced
            self._meter.completion_tokens += produced - before
        prompt = choice // self._choices
        if prompt not in self._prompts:
            self._prompts[prompt] = tokens = usage.get("prompt_tokens") or 0
            self._meter.prompt_tokens += tokens

    def _count_all(self, usage: dict[str, object]) -> None:
        """The last chunk's usage is of the whole answer."""
        count_whole(self._meter, usage)


def count_whole(meter: UsageMeter, usage: dict[str, object]) -> None:
    """Puts an answer's own `usage` into its meter, in the words of any of the APIs. Figures only grow."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
    meter.prompt_tokens = max(meter.prompt_tokens, _tokens(usage, "prompt_tokens", "input_tokens"))
    meter.completion_tokens = max(meter.completion_tokens, _tokens(usage, "completion_tokens", "output_tokens"))
    if isinstance(cached, int):
        meter.cached_tokens = max(meter.cached_tokens, cached)


def _tokens(usage: dict[str, object], *names: str) -> int:
    return next((value for name in names if isinstance(value := usage.get(name), int)), 0)


def _choice_of(event: bytes) -> int:
    start = event.find(_INDEX) + len(_INDEX)
    digits = event[start : start + 8].partition(b",")[0]
    return int(digits) if start >= len(_INDEX) and digits.isdigit() else 0


def object_end(data: bytes, start: int) -> int:
    """The end of the JSON object that begins at `start` and holds no strings with braces; -1 if it is cut off."""
    end = data.find(b"}", start) + 1
    while end and data.count(b"{", start, end) != data.count(b"}", start, end):
        end = data.find(b"}", end) + 1
    return end or -1

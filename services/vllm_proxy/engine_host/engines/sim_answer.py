"""One simulated answer: its choices in the batch, and its way out.

`send` is driven from the step loop itself, so that a token costs no trip through the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import types
from collections.abc import Awaitable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, cast

from vllm_proxy.engine_host.engines import sim_text
from vllm_proxy.engine_host.engines.base import Send, UsageMeter, current_meter
from vllm_proxy.engine_host.engines.sim_batch import Sequence
from vllm_proxy.engine_host.engines.sim_journal import SimJournal

log = logging.getLogger(__name__)

SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
_JSON_HEADERS = [(b"content-type", b"application/json")]
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, checked."""

    model: str
    prompts: list[bytes]
    choices: int
    max_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool
    #: In every chunk too, that of its own choice. Only with include_usage.
    running_usage: bool
    seed: int
    priority: int
    chat: bool
    #: The `user` of the request, for the journal.
    label: str


class Answer:
    """One request's sequences and its way out: `send` is driven from the step loop itself.

    A `send` that waits is finished by a task; what is produced meanwhile is joined behind it.
    """

    def __init__(self, asked: Asked, answer_id: str, send: Send, journal: SimJournal | None = None) -> None:
        self._asked = asked
        self._id = answer_id
        self._send = send
        self._created_s = int(time.time())
        self._meter = current_meter.get() or UsageMeter()
        self._behind: list[bytes] = []
        self._complete = False
        self._failed = False
        self._sending: asyncio.Task[None] | None = None
        streamed = _CountedChoice if asked.include_usage and asked.running_usage else _StreamedChoice
        make = streamed if asked.stream else _WholeChoice
        self.sequences: list[_Choice] = [
            make(self, asked, prompt, number, shares_prompt=copy > 0)
            for number, (prompt, copy) in enumerate(itertools.product(asked.prompts, range(asked.choices)))
        ]
        self._unfinished = len(self.sequences)
        self._journal = journal
        self._number = journal.begin(asked.label, asked.model) if journal is not None else 0

    @property
    def meter(self) -> UsageMeter:
        return self._meter

    def template(self, number: int) -> sim_text.ChunkTemplate:
        return sim_text.ChunkTemplate(self._id, self._asked.model, self._asked.chat, number, self._created_s)

    def write(self, body: bytes) -> None:
        if self._sending is not None:
            self._behind.append(body)
        else:
            self._drive(self._send({"type": "http.response.body", "body": body, "more_body": True}))

    def choice_done(self, body: bytes) -> None:
        """The last bytes of one choice; the last choice ends the response."""
        self._unfinished -= 1
        if self._unfinished:
            if body:
                self.write(body)
            return
        self._complete = True
        if not self._asked.stream:
            self._drive(respond(self._send, 200, self._whole()))
            return
        body += self._trailer()
        if self._sending is not None:
            self._behind.append(body)
        else:
            self._drive(self._send({"type": "http.response.body", "body": body, "more_body": False}))

    def usage(self) -> dict[str, int]:
        prompt = sum(s.counted_prompt_tokens for s in self.sequences)
        produced = sum(s.produced for s in self.sequences)
        return {"prompt_tokens": prompt, "total_tokens": prompt + produced, "completion_tokens": produced}

    def record(self) -> dict[str, Any]:
        """The line of the journal."""
        return {"id": self._id, "model": self._asked.model, "complete": self._complete, **self.usage()}

    def journal(self) -> None:
        if self._journal is not None:
            prompt = sum(s.used_prompt_tokens for s in self.sequences)
            self._journal.count(self._number, prompt, sum(s.produced for s in self.sequences))

    async def close(self) -> None:
        if self._journal is not None:
            self.journal()
            self._journal.end(self._number)
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        # Each of them holds this object: no cycle is left for the garbage collector.
        self.sequences.clear()

    def _trailer(self) -> bytes:
        if not self._asked.include_usage:
            return _DONE
        asked = self._asked
        return sim_text.usage_chunk(self._id, asked.model, asked.chat, self._created_s, self.usage()) + _DONE

    def _whole(self) -> bytes:
        asked = self._asked
        said = [(sim_text.text(asked.model, asked.seed + s.number, s.produced), asked.finish_reason)
                for s in self.sequences]  # fmt: skip
        return sim_text.whole_answer(self._id, asked.model, asked.chat, self._created_s, said, self.usage())

    def _drive(self, awaitable: Awaitable[None]) -> None:
        """Runs a coroutine as far as it goes without waiting. A fault in it ends the response for its server."""
        sending = cast("Coroutine[Any, Any, None]", awaitable)
        if self._failed:
            sending.close()
            return
        try:
            waits_for = sending.send(None)
        except StopIteration:
            return
        except Exception as e:
            # The connection's fault, which its server has noticed too: a disconnect follows.
            log.debug("send failed", exc_info=e)
            self._failed = True
            return
        self._sending = asyncio.get_running_loop().create_task(self._finish(sending, waits_for))

    async def _finish(self, sending: Coroutine[Any, Any, None], waits_for: Any) -> None:
        await _resume(sending, waits_for)
        while self._behind:
            body = b"".join(self._behind)
            self._behind.clear()
            await self._send({"type": "http.response.body", "body": body, "more_body": not self._complete})
        self._sending = None


class _Choice(Sequence):
    __slots__ = ("_answer", "_seed", "number")

    def __init__(self, answer: Answer, asked: Asked, prompt: bytes, number: int, *, shares_prompt: bool) -> None:
        super().__init__(
            asked.model,
            count_tokens(prompt),
            asked.max_tokens,
            answer.meter,
            shares_prompt=shares_prompt,
            priority=asked.priority,
        )
        self._answer = answer
        self._seed = asked.seed + number
        self.number = number

    def journal(self) -> None:
        self._answer.journal()


class _WholeChoice(_Choice):
    __slots__ = ()

    def deliver(self, index: int, last: bool) -> None:
        if last:
            self._answer.choice_done(b"")


class _StreamedChoice(_Choice):
    __slots__ = ("_first", "_last", "_prefix", "_suffix", "_vocabulary")

    def __init__(self, answer: Answer, asked: Asked, prompt: bytes, number: int, *, shares_prompt: bool) -> None:
        super().__init__(answer, asked, prompt, number, shares_prompt=shares_prompt)
        template = answer.template(number)
        self._first = template.first + template.prefix + sim_text.opening(asked.model)
        self._prefix, self._suffix = template.prefix, template.suffix
        self._last = template.last(asked.finish_reason)
        self._vocabulary = sim_text.vocabulary(asked.model)

    def deliver(self, index: int, last: bool) -> None:
        words = self._vocabulary
        chunk = self._prefix + words[(self._seed + index) % len(words)] if index else self._first
        if last:
            self._answer.choice_done(self._finished(chunk + self._last))
        else:
            self._answer.write(self._finished(chunk + self._suffix))

    def _finished(self, events: bytes) -> bytes:
        return events


class _CountedChoice(_StreamedChoice):
    __slots__ = ()

    def _finished(self, events: bytes) -> bytes:
        usage = sim_text.usage_member(self.prompt_tokens, self.produced)
        return events.replace(b"]}\n\n", b"]" + usage + b"}\n\n")


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Goes on with a coroutine that was started outside a task and waits for `waits_for`."""
    try:
        yield waits_for
    except BaseException as e:
        try:
            waits_for = coroutine.throw(e)
        except StopIteration:
            return
        yield waits_for
    yield from coroutine.__await__()


async def respond(send: Send, status: int, body: bytes) -> None:
    headers = [*_JSON_HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def count_tokens(prompt: bytes) -> int:
    """A simulated tokenizer: four bytes a token."""
    return len(prompt) // 4 + 1

"""The simulator's OpenAI surface as a bare ASGI application: two ways to ask, streamed and not."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from vllm_proxy.engine_host.engines import sim_text
from vllm_proxy.engine_host.engines.base import Message, ModelCard, Receive, Scope, Send, UsageMeter, current_meter
from vllm_proxy.engine_host.engines.sim_batch import Batch
from vllm_proxy.engine_host.engines.sim_batch import Sequence as BatchSequence

log = logging.getLogger(__name__)

#: As short as a simulated model answers that was given no limit.
DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 128
JOURNAL_ENTRIES = 100_000

_JSON_HEADERS = [(b"content-type", b"application/json")]
_SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
_DONE = b"data: [DONE]\n\n"


class Refused(Exception):
    """An HTTP answer in the engine's error shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = sim_text.error(status, message, kind, param)


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
    seed: int
    chat: bool


class SimApp:
    """Calls are cheap: one task each, and none per token. `journal` has what was produced, newest last."""

    def __init__(
        self,
        batch: Batch,
        knows: Callable[[str], Awaitable[bool]],
        cards: Callable[[], Sequence[ModelCard]],
        max_model_len: int,
    ) -> None:
        """`knows` says whether a model name can be asked for."""
        self._batch = batch
        self._knows = knows
        self._cards = cards
        self._max_model_len = max_model_len
        self.journal: deque[dict[str, Any]] = deque(maxlen=JOURNAL_ENTRIES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        match scope["method"], scope["path"]:
            case "POST", "/v1/chat/completions":
                await self._answer(scope, receive, send, chat=True)
            case "POST", "/v1/completions":
                await self._answer(scope, receive, send, chat=False)
            case "GET", "/v1/models":
                rows = b",".join(card.card_json for card in self._cards())
                await _respond(send, 200, b'{"object":"list","data":[%s]}' % rows)
            case "GET", "/health":
                await _respond(send, 200, b"")
            case "GET", "/sim/journal":
                await _respond(send, 200, orjson.dumps(list(self.journal)))
            case _:
                await _respond(send, 404, orjson.dumps({"detail": "Not Found"}))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, chat: bool) -> None:
        try:
            asked = self._parse(await _body(receive), chat)
            if not await self._knows(asked.model):
                message = f"The model `{asked.model}` does not exist."
                raise Refused(404, message, "NotFoundError", "model")
        except Refused as e:
            await _respond(send, e.status, e.body)
            return
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1") or secrets.token_hex(16)
        answer = _Answer(asked, ("chatcmpl-" if chat else "cmpl-") + request_id, send)
        if asked.stream:
            await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        try:
            for sequence in answer.sequences:
                self._batch.add(sequence)
            # The server answers with a disconnect when the client left, and also once the response is complete.
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            for sequence in answer.sequences:
                self._batch.abort(sequence)
            await answer.close()
            self.journal.append(answer.record())

    def _parse(self, raw: bytes, chat: bool) -> Asked:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as e:
            raise Refused(400, f"There was an error parsing the body: {e}") from None
        if not isinstance(body, dict):
            raise Refused(400, "The body must be a JSON object.")
        prompts = _chat_prompts(body) if chat else _prompts(body)
        model = body.get("model")
        if not isinstance(model, str):
            raise Refused(400, "model: a string is needed.", param="model")
        limit = body.get("max_completion_tokens") if chat else None
        if limit is None:
            limit = body.get("max_tokens")
        max_tokens = _positive("max_tokens", limit, DEFAULT_MAX_TOKENS)
        longest = max(map(_count, prompts)) + max_tokens
        if longest > self._max_model_len or longest > self._batch.kv_cache_tokens:
            raise Refused(
                400, f"This model's maximum context length is {self._max_model_len} tokens, and {longest} are needed."
            )
        options = body.get("stream_options")
        return Asked(
            model=model,
            prompts=prompts,
            choices=_positive("n", body.get("n"), 1, MAX_CHOICES),
            max_tokens=max_tokens,
            finish_reason="stop" if limit is None else "length",
            stream=body.get("stream") is True,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            seed=sim_text.seed_of(body, prompts[0]),
            chat=chat,
        )


class _Answer:
    """One request's sequences and its way out: `send` is driven from the step loop itself.

    A `send` that waits is finished by a task; what is produced meanwhile is joined behind it.
    """

    def __init__(self, asked: Asked, answer_id: str, send: Send) -> None:
        self._asked = asked
        self._id = answer_id
        self._send = send
        self._created_s = int(time.time())
        self._meter = current_meter.get() or UsageMeter()
        self._behind: list[bytes] = []
        self._complete = False
        self._failed = False
        self._sending: asyncio.Task[None] | None = None
        make = _StreamedChoice if asked.stream else _WholeChoice
        self.sequences: list[_Choice] = [
            make(self, asked, prompt, number, shares_prompt=copy > 0)
            for number, (prompt, copy) in enumerate(itertools.product(asked.prompts, range(asked.choices)))
        ]
        self._unfinished = len(self.sequences)

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
            self._drive(_respond(self._send, 200, self._whole()))
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

    async def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

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


class _Choice(BatchSequence):
    __slots__ = ("_answer", "_seed", "number")

    def __init__(self, answer: _Answer, asked: Asked, prompt: bytes, number: int, *, shares_prompt: bool) -> None:
        super().__init__(asked.model, _count(prompt), asked.max_tokens, answer.meter, shares_prompt=shares_prompt)
        self._answer = answer
        self._seed = asked.seed + number
        self.number = number


class _WholeChoice(_Choice):
    __slots__ = ()

    def deliver(self, index: int, last: bool) -> None:
        if last:
            self._answer.choice_done(b"")


class _StreamedChoice(_Choice):
    __slots__ = ("_first", "_last", "_prefix", "_suffix", "_vocabulary")

    def __init__(self, answer: _Answer, asked: Asked, prompt: bytes, number: int, *, shares_prompt: bool) -> None:
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
            self._answer.choice_done(chunk + self._last)
        else:
            self._answer.write(chunk + self._suffix)


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Goes on with a coroutine that was started outside a task and waits for `waits_for`."""
    while True:
        try:
            value = yield waits_for
        except BaseException as e:
            step: Callable[[], Any] = lambda e=e: coroutine.throw(e)  # type: ignore[misc]  # noqa: E731
        else:
            step = lambda value=value: coroutine.send(value)  # type: ignore[misc]  # noqa: E731
        try:
            waits_for = step()
        except StopIteration:
            return


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The client left.")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [*_JSON_HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _count(prompt: bytes) -> int:
    """A simulated tokenizer: four bytes a token."""
    return len(prompt) // 4 + 1


def _positive(name: str, value: Any, default: int, most: int | None = None) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise Refused(400, f"{name} must be at least 1{f' and at most {most}' if most else ''}, got {value}.")
    return value


def _chat_prompts(body: dict[str, Any]) -> list[bytes]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages: a list with at least one message is needed.")
    texts: list[str] = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return ["\n".join(texts).encode()]


def _prompts(body: dict[str, Any]) -> list[bytes]:
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise Refused(400, "prompt: a string, token ids or a list of either is needed.")
    # Four bytes a token id, so that counting gives as many tokens as there are ids (and one).
    return [p.encode() if isinstance(p, str) else _ids_bytes(p) for p in prompts]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, int) and 0 <= i < 2**32 for i in value)


def _ids_bytes(ids: Any) -> bytes:
    if not _is_ids(ids):
        raise Refused(400, "prompt: a string, token ids or a list of either is needed.")
    return b"".join(i.to_bytes(4, "little") for i in ids)

"""The simulator's OpenAI surface as a bare ASGI application: two ways to ask, streamed and not."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from vllm_proxy.engine_host.engines import sim_text
from vllm_proxy.engine_host.engines.base import Message, ModelCard, Receive, Scope, Send
from vllm_proxy.engine_host.engines.sim_answer import SSE_HEADERS, Answer, Asked, count_tokens, respond
from vllm_proxy.engine_host.engines.sim_batch import Batch
from vllm_proxy.engine_host.engines.sim_journal import SimJournal

#: As short as a simulated model answers that was given no limit.
DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 128
JOURNAL_ENTRIES = 100_000


class Refused(Exception):
    """An HTTP answer in the engine's error shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = sim_text.error(status, message, kind, param)


class SimApp:
    """Calls are cheap: one task each, and none per token. `journal` has what was produced, newest last."""

    def __init__(
        self,
        batch: Batch,
        knows: Callable[[str], Awaitable[bool]],
        cards: Callable[[], Sequence[ModelCard]],
        max_model_len: int,
        journal: SimJournal | None = None,
    ) -> None:
        """`knows` says whether a model name can be asked for."""
        self._batch = batch
        self._knows = knows
        self._cards = cards
        self._max_model_len = max_model_len
        self._journal = journal
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
                await respond(send, 200, b'{"object":"list","data":[%s]}' % rows)
            case "GET", "/health":
                await respond(send, 200, b"")
            case "GET", "/sim/journal":
                await respond(send, 200, orjson.dumps(list(self.journal)))
            case _:
                await respond(send, 404, orjson.dumps({"detail": "Not Found"}))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, chat: bool) -> None:
        try:
            asked = self._parse(await _body(receive), chat)
            if not await self._knows(asked.model):
                message = f"The model `{asked.model}` does not exist."
                raise Refused(404, message, "NotFoundError", "model")
        except Refused as e:
            await respond(send, e.status, e.body)
            return
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1") or secrets.token_hex(16)
        answer = Answer(asked, ("chatcmpl-" if chat else "cmpl-") + request_id, send, self._journal)
        if asked.stream:
            await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        try:
            for sequence in answer.sequences:
                self._batch.add(sequence)
            # The server answers with a disconnect when the client left, and also once the response is complete.
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            for sequence in answer.sequences:
                self._batch.abort(sequence)
            self.journal.append(answer.record())
            await answer.close()

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
        longest = max(map(count_tokens, prompts)) + max_tokens
        if longest > self._max_model_len or longest > self._batch.kv_cache_tokens:
            raise Refused(
                400, f"This model's maximum context length is {self._max_model_len} tokens, and {longest} are needed."
            )
        stream = body.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise Refused(400, "stream: true or false is needed.", param="stream")
        options = body.get("stream_options")
        return Asked(
            model=model,
            prompts=prompts,
            choices=_positive("n", body.get("n"), 1, MAX_CHOICES),
            max_tokens=max_tokens,
            finish_reason="stop" if limit is None else "length",
            stream=stream is True,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            running_usage=isinstance(options, dict) and options.get("continuous_usage_stats") is True,
            seed=sim_text.seed_of(body, prompts[0]),
            priority=body["priority"] if isinstance(body.get("priority"), int) else 0,
            chat=chat,
            label=str(body.get("user", "")),
        )


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The client left.")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


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
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, "messages: each is an object with a role.", param="messages")
        content = message.get("content")
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

"""Typed generation over an engine's own text completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from vllm_proxy.common.errors import InvalidRequest, ModelNotFound
from vllm_proxy.engine_host.engines.base import AsgiApp, EngineDied, GeneratedText, GenerateParameters, Message
from vllm_proxy.engine_host.engines.http_dialects import HttpDialect

_PATH = "/v1/completions"


async def generate(
    app: AsgiApp, dialect: HttpDialect, parameters: GenerateParameters
) -> AsyncGenerator[GeneratedText, None]:
    """Asks `app`, which counts. Closing it ends the request in the engine."""
    given = {
        "max_tokens": parameters.max_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "seed": parameters.seed,
        "stop": list(parameters.stop) or None,
    }
    prompt = parameters.prompt
    body: dict[str, Any] = {
        "model": parameters.model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "stream": True,
        **{name: value for name, value in given.items() if value is not None},
    }
    if dialect.token_ids_option:
        body[dialect.token_ids_option] = True
    call = _Call(orjson.dumps(body), parameters.request_id)
    asking = asyncio.ensure_future(app(call.scope, call.receive, call.send))
    asking.add_done_callback(lambda _: call.messages.put_nowait(None))
    try:
        async for event in call.events():
            yield event
        await asking
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, EngineDied):
            await asking


class _Call:
    """One request as ASGI sees it."""

    def __init__(self, body: bytes, request_id: str) -> None:
        headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
        self.scope: Any = {
            "type": "http",
            "method": "POST",
            "path": _PATH,
            "query_string": b"",
            "headers": headers,
        }
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=0)
        self._body: bytes | None = body

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.get_running_loop().create_future()  # whoever reads leaves by cancellation
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        self.messages.put_nowait(message)

    async def events(self) -> AsyncGenerator[GeneratedText, None]:
        """Raises ModelNotFound, InvalidRequest for what the engine refuses."""
        status, pending = 0, b""
        while (message := await self.messages.get()) is not None:
            if message["type"] == "http.response.start":
                status = message["status"]
                continue
            pending += message.get("body", b"")
            if status != 200:
                continue
            *events, pending = pending.split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data != b"[DONE]":
                    for choice in orjson.loads(data).get("choices", ()):
                        yield _text(choice)
        if status and status != 200:
            raise _refusal(status, pending)


def _text(choice: dict[str, Any]) -> GeneratedText:
    return GeneratedText(choice.get("text") or "", choice.get("token_ids") or (), choice.get("finish_reason") or "")


def _refusal(status: int, body: bytes) -> Exception:
    try:
        message = str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = f"The engine answered {status}."
    return ModelNotFound(message) if status == 404 else InvalidRequest(message)

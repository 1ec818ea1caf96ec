"""An engine's HTTP surface as an ASGI application: one request to the engine, its answer back as it comes.

Bytes pass unparsed but for a stream's usage (sse_usage). While the host does not take more, nothing is read; when the
client leaves, the connection is closed, which ends the request in the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from vllm_proxy.common.errors import EngineFailed, InvalidRequest, ModelNotFound, ServiceError
from vllm_proxy.common.settings import PriorityOrder
from vllm_proxy.engine_host.engines.base import Receive, Scope, Send, UsageMeter, current_meter
from vllm_proxy.engine_host.engines.body_usage import BodyUsage
from vllm_proxy.engine_host.engines.http_dialects import HttpDialect
from vllm_proxy.engine_host.engines.http_pool import HttpPool
from vllm_proxy.engine_host.engines.priority import priority_for
from vllm_proxy.engine_host.engines.request_edit import EngineRequest, edit, with_field
from vllm_proxy.engine_host.engines.sse_usage import Fingerprint, StreamUsage

log = logging.getLogger(__name__)

#: Of a request's headers, what the engine is told.
_REQUEST_HEADERS = frozenset(
    {b"accept", b"content-type", b"user-agent", b"x-request-id", b"traceparent", b"tracestate"}
)
#: Of an answer's headers, what is between the engine and its host.
_DROPPED = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "date", "server", "set-cookie"),
    }
)
_EVENT_STREAM = "text/event-stream"
#: The routes whose streams can be made to tell their usage as they go.
_TEXT = "/v1/completions"
_TELLING = frozenset({"/v1/chat/completions", _TEXT})
#: The routes whose body may have a priority.
_PRIORITIZED = _TELLING | {"/v1/responses", "/v1/embeddings"}

#: Holds a model while it is asked, and gives the adapter that the body must name besides, if any. Raises ModelNotFound,
#: InvalidAdapter. `cancel` ends the request.
UseModel = Callable[[str, Callable[[], Any]], AbstractAsyncContextManager[str]]


class HttpApp:
    def __init__(
        self,
        pool: HttpPool,
        dialect: HttpDialect,
        use: UseModel,
        on_trouble: Callable[[], None],
        priority_order: PriorityOrder | None = None,
    ) -> None:
        """`on_trouble` is called when the engine seems to be gone. `priority_order`: see settings.EngineHttp."""
        self._pool = pool
        self._dialect = dialect
        self._use = use
        self._on_trouble = on_trouble
        self._priority_order = priority_order
        self.fingerprint = Fingerprint()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        body = await _read(receive)
        if body is None:
            return
        exchange = asyncio.ensure_future(self._exchange(scope, body, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((exchange, leaving), return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                exchange.result()
        finally:
            exchange.cancel()
            leaving.cancel()
            await asyncio.gather(exchange, leaving, return_exceptions=True)

    async def _exchange(self, scope: Scope, body: bytes, send: Send) -> None:
        path = scope["path"]
        request = edit(body, tells_usage=path in _TELLING) if body else EngineRequest(body)
        task = asyncio.current_task()
        assert task is not None
        cut_short = False

        def cut() -> None:
            nonlocal cut_short
            cut_short = True
            task.cancel()

        try:
            option = self._dialect.adapter_field
            if option and option in (request.fields or ()):
                raise InvalidRequest(f"{option} is not supported here: name the adapter as model.")
            if self._priority_order and path in _PRIORITIZED and request.priority is not None:
                priority = priority_for(request.priority, low_first=self._priority_order == "low_first")
                request = with_field(request, "priority", priority) if priority != request.priority else request
            async with self._use(request.model, cut) as adapter:
                await self._forward(scope, with_field(request, option, adapter) if adapter else request, send)
        except (ModelNotFound, InvalidRequest) as e:
            if path not in _TELLING:
                raise
            await _refuse(send, e)
        except asyncio.CancelledError:
            if cut_short:
                raise EngineFailed("The adapter was unloaded while it answered.") from None
            raise

    async def _forward(self, scope: Scope, request: EngineRequest, send: Send) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _REQUEST_HEADERS
        }
        meter = current_meter.get() or UsageMeter()
        query = scope.get("query_string", b"").decode("latin-1")
        try:
            async with self._pool.request(
                scope["method"], scope["path"], query=query, headers=headers, body=request.body
            ) as response:
                if response.status in (401, 403):
                    log.error(
                        "the engine refuses the host's key", extra={"url": self._pool.url, "status": response.status}
                    )
                    raise EngineFailed("The engine refuses its host's key.")
                await send(
                    {
                        "type": "http.response.start",
                        "status": response.status,
                        "headers": [
                            (name.lower().encode("latin-1"), value.encode("latin-1"))
                            for name, value in response.headers.items()
                            if name.lower() not in _DROPPED and not name.lower().startswith("access-control-")
                        ],
                    }
                )
                is_stream = response.headers.get("Content-Type", "").startswith(_EVENT_STREAM)
                if is_stream and scope["path"] in _TELLING:
                    await self._stream(response.content, request, scope["path"] == _TEXT, meter, send)
                else:
                    await _pass(response.content, meter, send)
        except Exception:
            self._on_trouble()
            raise

    async def _stream(self, content: Any, request: EngineRequest, is_text: bool, meter: UsageMeter, send: Send) -> None:
        usage = StreamUsage(
            meter,
            self._dialect,
            self.fingerprint,
            hide_chunks=not request.wants_running_usage,
            hide_last=not request.wants_usage,
            choices=request.choices,
            is_text=is_text,
        )
        ended = False
        while not ended:
            data = usage.feed(await content.readany())
            if ended := content.at_eof():
                data += usage.finish()
            if data or ended:
                await send({"type": "http.response.body", "body": data, "more_body": not ended})


async def _pass(content: Any, meter: UsageMeter, send: Send) -> None:
    usage = BodyUsage(meter)
    ended = False
    while not ended:
        data = await content.readany()
        usage.feed(data)
        ended = content.at_eof()
        await send({"type": "http.response.body", "body": data, "more_body": not ended})


async def _read(receive: Receive) -> bytes | None:
    """The request's body; None if the client left before it was there."""
    message = await receive()
    if message["type"] != "http.request":
        return None
    first: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return first
    pieces = [first]
    while message.get("more_body"):
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
    return b"".join(pieces)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, error: ServiceError) -> None:
    """In the shape of vLLM's errors."""
    unknown = isinstance(error, ModelNotFound)
    content = {
        "message": error.message,
        "type": "NotFoundError" if unknown else "BadRequestError",
        "param": "model" if unknown else None,
        "code": error.http_status,
    }
    body = orjson.dumps({"error": content})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""One request to an ASGI application: FastAPI's part of the edge."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from vllm_proxy.edge.errors import unexpected
from vllm_proxy.edge.http_request import HttpRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class AsgiCall:
    """A ResponseOwner. `run` is the whole life of it, as a task."""

    def __init__(self, request: HttpRequest, request_id: bytes) -> None:
        self._request = request
        self._request_id = request_id
        self._body: Message | None = {"type": "http.request", "body": request.body, "more_body": False}
        #: Set when the client has read, or the response is over.
        self._progress = asyncio.Event()
        request.response.owner = self

    async def run(self, app: AsgiApp) -> None:
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception as e:
            # Starlette answers unexpected errors (see fastapi_app.py) and lets them through to here as well.
            if not self._request.response.started:
                error = unexpected(e, self._request_id.decode())
                self._request.response.send_error(error, [(b"x-request-id", self._request_id)])
        if not self._request.response.closed and not self._request.response.finished:
            self._request.response.abandon()

    def _scope(self) -> Scope:
        request = self._request
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version,
            # The server leaves the body out.
            "method": "GET" if request.method == "HEAD" else request.method,
            "scheme": "http",
            "path": unquote(request.path),
            "raw_path": request.path.encode("latin-1"),
            "query_string": request.query,
            "root_path": "",
            "server": None,
            "state": {},
            **request.origin,
        }

    async def _receive(self) -> Message:
        message, self._body = self._body, None
        if message is not None:
            return message
        while not self._request.response.closed:
            await self._wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        response = self._request.response
        if message["type"] == "http.response.start":
            response.start(message["status"], [*message.get("headers", ()), (b"x-request-id", self._request_id)])
            return
        while response.waiting and not response.closed:
            await self._wait()
        if message.get("more_body", False):
            response.write(message.get("body", b""))
        else:
            response.finish(message.get("body", b""))

    async def _wait(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    # ResponseOwner

    def written(self, size_bytes: int) -> None:
        self._progress.set()

    def sent(self) -> None:
        self._progress.set()

    def client_left(self) -> None:
        self._progress.set()

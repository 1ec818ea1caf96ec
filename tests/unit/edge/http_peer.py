"""A client's side of the edge's HTTP server, without sockets: real connections on transports that are only a record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable
from typing import Any

import httpx

from vllm_proxy.common.errors import ServiceError
from vllm_proxy.edge.http_connection import HttpConnection
from vllm_proxy.edge.http_request import HttpRequest
from vllm_proxy.edge.http_server import Handler, HttpLimits, HttpServer

LIMITS = HttpLimits(
    max_head_bytes=1000, max_buffered_bytes=1000, receive_timeout_s=60, keep_alive_timeout_s=75, drain_idle_s=2
)


class Transport(asyncio.Transport):
    def __init__(self, peer: Any = ("127.0.0.1", 1)) -> None:
        super().__init__()
        self.peer = peer
        self.written = b""
        self.writes = 0
        self.closing = False
        self.aborted = False
        self.reading = True
        self.unsent_bytes = 0

    def write(self, data: Any) -> None:
        assert data, "a system call for nothing"
        if not self.closing:
            self.written += data
            self.writes += 1

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Keeping:
    """A Handler that keeps requests for the test to answer."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        #: What every request is refused with, if anything.
        self.refusal: ServiceError | None = None

    def body_limit_bytes(self, request: HttpRequest) -> int:
        if self.refusal is not None:
            raise self.refusal
        return 100

    def handle(self, request: HttpRequest) -> None:
        self.requests.append(request)

    def refuse(self, request: HttpRequest, error: ServiceError) -> None:
        request.response.send_error(error)


class Answer:
    """One response, taken apart."""

    def __init__(self, wire: bytes, *, has_body: bool = True) -> None:
        head, _, rest = wire.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split()[1])
        self.header_list = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        self.headers = dict(self.header_list)
        self.complete = False
        self.body = b""
        if not has_body or self.status == 204:
            self.complete, self.rest = True, rest
        elif b"content-length" in self.headers:
            size = int(self.headers[b"content-length"])
            self.body, self.rest = rest[:size], rest[size:]
            self.complete = len(self.body) == size
        elif self.headers.get(b"transfer-encoding") == b"chunked":
            while b"\r\n" in rest and not self.complete:
                size_text, _, rest = rest.partition(b"\r\n")
                size = int(size_text, 16)
                self.body += rest[:size]
                rest = rest[size:].removeprefix(b"\r\n")
                self.complete = size == 0
            self.rest = rest
        else:
            self.body, self.rest = rest, b""

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


class Client:
    """One client on one connection. `paused`: it does not read."""

    def __init__(
        self, handler: Handler | None = None, limits: HttpLimits = LIMITS, server: HttpServer | None = None
    ) -> None:
        self.kept = Keeping()
        self.now = 1000.0
        self.server = server or HttpServer(handler or self.kept, limits, lambda: self.now)
        self.connection = HttpConnection(self.server)
        self.transport = Transport()
        self.connection.connection_made(self.transport)
        self._paused = False

    def send(self, data: bytes) -> None:
        assert self.transport.reading
        self.connection.data_received(data)

    def get(self, path: str = "/", *lines: str, version: str = "1.1", method: str = "GET") -> None:
        self.send("\r\n".join([f"{method} {path} HTTP/{version}", "host: x", *lines, "", ""]).encode())

    def leave(self) -> None:
        self.connection.connection_lost(None)

    @property
    def paused(self) -> bool:
        return self._paused

    @paused.setter
    def paused(self, value: bool) -> None:
        self._paused = value
        if value:
            self.connection.pause_writing()
        else:
            self.connection.resume_writing()

    @property
    def request(self) -> HttpRequest:
        """The last one that the kept handler got."""
        return self.kept.requests[-1]

    @property
    def written(self) -> bytes:
        return self.transport.written

    @property
    def answer(self) -> Answer:
        return Answer(self.written)

    @property
    def answers(self) -> list[Answer]:
        found: list[Answer] = []
        rest = self.written
        while rest:
            found.append(Answer(rest))
            rest = found[-1].rest
        return found

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return self.answer.headers

    @property
    def body(self) -> bytes:
        return self.answer.body

    @property
    def complete(self) -> bool:
        return bool(self.written) and self.answer.complete

    @property
    def closed(self) -> bool:
        return self.transport.closing

    @property
    def aborted(self) -> bool:
        return self.transport.aborted


class HttpxTransport(httpx.AsyncBaseTransport):
    """Lets httpx talk to a server: a connection for each request."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        client = Client(server=self._server)
        head = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
        head += [name + b": " + value for name, value in request.headers.raw]
        client.send(b"\r\n".join([*head, b"", b""]))
        has_body = request.method != "HEAD"
        chunked = "transfer-encoding" in request.headers
        assert isinstance(request.stream, AsyncIterable)
        async for piece in request.stream:
            if piece:
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            client.send(b"0\r\n\r\n")
        async with asyncio.timeout(10):
            while not (client.written and Answer(client.written, has_body=has_body).complete):  # noqa: ASYNC110
                await asyncio.sleep(0)  # There is no event for what is only recorded.
        answer = Answer(client.written, has_body=has_body)
        client.leave()
        return httpx.Response(answer.status, headers=answer.header_list, content=answer.body)

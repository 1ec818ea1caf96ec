"""What the edge adds to uvicorn's connection, on a transport that is only a record."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from vllm_proxy.edge.http_protocol import EdgeHttpProtocol, connection_of, with_limits


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.closing = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data
        self.writes += 1

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 42

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Connection:
    """A server's side of one connection, and what its application was asked."""

    def __init__(self, head_timeout_s: float = 10) -> None:
        self.scopes: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.scopes.append(scope)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False, loop="none")
        config.load()
        self.state = ServerState()
        self.protocol: EdgeHttpProtocol = with_limits(1000, head_timeout_s)(
            config=config, server_state=self.state, app_state={}, _loop=asyncio.get_running_loop()
        )
        self.transport = Transport()
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    async def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)
        await asyncio.gather(*self.state.tasks)

    @property
    def status(self) -> int:
        return int(self.transport.written.split()[1])

    @property
    def error(self) -> Any:
        return json.loads(self.transport.written.partition(b"\r\n\r\n")[2])["error"]

    def lose(self) -> None:
        self.protocol.connection_lost(None)


async def test_requests_pass_and_know_their_connection() -> None:
    connection = Connection()
    await connection.feed(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert connection.status == 204
    (scope,) = connection.scopes
    known = connection_of(scope)
    assert known.unsent_bytes() == 42
    known.abort()
    assert connection.transport.aborted
    known.close()
    assert connection.transport.closing
    connection.lose()


async def test_corked_writes_leave_in_one_piece_and_in_order() -> None:
    connection = Connection()
    known = connection.protocol
    known.cork()
    await connection.feed(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert connection.transport.writes == 0
    known.uncork()
    assert (connection.transport.writes, connection.status) == (1, 204)
    known.uncork()
    assert connection.transport.writes == 1
    await connection.feed(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert len(connection.scopes) == 2
    known.cork()
    await connection.feed(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert connection.transport.closing
    assert connection.transport.written.count(b"HTTP/1.1 204") == 3, "closing holds nothing back"
    connection.lose()


async def test_endless_head_is_431() -> None:
    connection = Connection()
    await connection.feed(b"GET / HTTP/1.1\r\n")
    for _ in range(20):
        if not connection.transport.closing:
            await connection.feed(b"x-more: " + b"y" * 80 + b"\r\n")
    assert connection.status == 431
    assert connection.error["code"] == "headers_too_large"
    assert connection.transport.closing
    connection.lose()


async def test_one_endless_header_is_431() -> None:
    connection = Connection()
    await connection.feed(b"GET / HTTP/1.1\r\nx: ")
    await connection.feed(b"y" * 2000)
    assert connection.status == 431
    connection.lose()


async def test_head_in_pieces_is_well() -> None:
    connection = Connection()
    for piece in (b"GET / HT", b"TP/1.1\r\nho", b"st: x\r\n", b"\r\n"):
        await connection.feed(piece)
    assert connection.status == 204
    connection.lose()


async def test_head_that_never_ends_times_out() -> None:
    connection = Connection(head_timeout_s=0)
    await connection.feed(b"GET / HTTP/1.1\r\n")
    async with asyncio.timeout(5):
        while not connection.transport.closing:  # noqa: ASYNC110 - the loop's own timer is what is tested
            await asyncio.sleep(0)
    connection.lose()


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x00\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff"])
async def test_junk_is_400_in_openais_shape(junk: bytes) -> None:
    connection = Connection()
    await connection.feed(junk)
    assert connection.status == 400
    assert connection.error["type"] == "invalid_request_error"
    assert connection.transport.closing
    connection.lose()

"""The load: an HTTP/1.1 client on bare transports, cheap enough that it is never what is measured.

A process of its own (`python -m tests.load.generator`), driven by JSON lines: one command on standard input, one
answer on standard output. A streamed response is counted by its events (blank lines), never parsed.

    {"do": "start", "port", "path", "key", "body", "connections", "stream"}   -> {} once each has its first answer
    {"do": "count"}                                                           -> {"count", "failed", "at_s"}
    {"do": "stop"}                                                            -> {}
    {"do": "sample", "port", "path", "key", "body", "samples"}      -> {"first_byte_s": [], "whole_s": [], "failed"}
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import uvloop

EVENT_END = b"\n\n"
CHUNKS_END = b"0\r\n\r\n"
HEAD_END = b"\r\n\r\n"


class Exchange(asyncio.Protocol):
    """One connection that sends the same request again as soon as its answer is whole."""

    def __init__(self, request: bytes, on_end: Callable[[Exchange], None]) -> None:
        self._request = request
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._in_body = False
        self._body_left: int | None = None
        self._tail = b""
        #: Done with the first byte of the first body, or when there will be none.
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events = 0
        self.answers = 0
        self.failed = 0
        self.sent_at_s = 0.0
        self.first_byte_at_s = 0.0
        self.ended_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        assert self._transport is not None
        self.first_byte_at_s = 0.0
        self.sent_at_s = time.perf_counter()
        self._transport.write(self._request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._in_body or self._head:
            self.failed += 1
        self._has_begun()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            end = self._head.find(HEAD_END)
            if end < 0:
                return
            head, data, self._head = self._head[:end].lower(), self._head[end + 4 :], b""
            self._in_body = True
            if b" 200 " not in head[:16]:
                self.failed += 1
            self._body_left = _content_length(head)
            if not data:
                return
        if not self.first_byte_at_s:
            self.first_byte_at_s = time.perf_counter()
            self._has_begun()
        if self._body_left is not None:
            self._body_left -= len(data)
            if self._body_left <= 0:
                self._end()
            return
        self.events += data.count(EVENT_END)
        if self._tail.endswith(b"\n") and data.startswith(b"\n"):
            self.events += 1
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self._tail == CHUNKS_END:
            self._end()

    def _has_begun(self) -> None:
        if not self.began.done():
            self.began.set_result(None)

    def _end(self) -> None:
        self._in_body = False
        self._tail = b""
        self.answers += 1
        self.ended_at_s = time.perf_counter()
        self._on_end(self)


def _content_length(head: bytes) -> int | None:
    name = head.find(b"\r\ncontent-length:")
    if name < 0:
        return None
    return int(head[name + 17 :].split(b"\r\n", 1)[0])


def _request(command: dict[str, Any]) -> bytes:
    body = json.dumps(command["body"]).encode()
    lines = [
        f"POST {command['path']} HTTP/1.1",
        "host: bench",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    if command.get("key"):
        lines.append(f"authorization: Bearer {command['key']}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Generator:
    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []
        self._stream = False

    async def start(self, command: dict[str, Any]) -> dict[str, Any]:
        self._stream = command["stream"]
        self._exchanges = [
            await self._connect(command, lambda exchange: exchange.send()) for _ in range(command["connections"])
        ]
        for exchange in self._exchanges:
            exchange.send()
        async with asyncio.timeout(command.get("timeout_s", 60)):
            await asyncio.gather(*(exchange.began for exchange in self._exchanges))
        return {}

    def count(self) -> dict[str, Any]:
        """Events of streams, or whole answers."""
        counted = sum(e.events if self._stream else e.answers for e in self._exchanges)
        return {"count": counted, "failed": sum(e.failed for e in self._exchanges), "at_s": time.monotonic()}

    def stop(self) -> dict[str, Any]:
        for exchange in self._exchanges:
            exchange.close()
        self._exchanges = []
        return {}

    async def sample(self, command: dict[str, Any]) -> dict[str, Any]:
        """One request after the other on one connection."""
        loop = asyncio.get_running_loop()
        first_byte_s: list[float] = []
        whole_s: list[float] = []
        ended: asyncio.Future[None] = loop.create_future()
        exchange = await self._connect(command, lambda _: ended.set_result(None))
        for _ in range(command["samples"]):
            ended = loop.create_future()
            exchange.send()
            await ended
            first_byte_s.append(exchange.first_byte_at_s - exchange.sent_at_s)
            whole_s.append(exchange.ended_at_s - exchange.sent_at_s)
        failed = exchange.failed
        exchange.close()
        return {"first_byte_s": first_byte_s, "whole_s": whole_s, "failed": failed}

    async def _connect(self, command: dict[str, Any], on_end: Callable[[Exchange], None]) -> Exchange:
        request = _request(command)
        loop = asyncio.get_running_loop()
        _, exchange = await loop.create_connection(lambda: Exchange(request, on_end), "127.0.0.1", command["port"])
        return exchange

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["do"]:
            case "start":
                return await self.start(command)
            case "count":
                return self.count()
            case "stop":
                return self.stop()
            case "sample":
                return await self.sample(command)
        raise ValueError(command["do"])


async def main() -> None:
    generator = Generator()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await generator.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())

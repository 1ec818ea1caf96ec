"""An HTTP/1.1 client over a bare socket: tests can leave, stall or read slowly at any byte."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

READ_LIMIT_BYTES = 64 * 1024
DEFAULT_TIMEOUT_S = 30.0


class ResponseBroken(Exception):
    """The connection ended before the response did."""


@dataclass(slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = self.json()["error"]
        assert isinstance(error, dict)
        return error


@dataclass(slots=True)
class StreamOutcome:
    """What a client saw of one SSE stream."""

    status: int
    events: list[str] = field(default_factory=list)
    #: The response ended as HTTP says, whatever its events were.
    complete: bool = False

    @property
    def done(self) -> bool:
        return bool(self.events) and self.events[-1] == "[DONE]"

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def error(self) -> dict[str, Any] | None:
        errors = [chunk["error"] for chunk in self.chunks if "error" in chunk]
        return errors[-1] if errors else None

    @property
    def text(self) -> str:
        parts = []
        for chunk in self.chunks:
            for choice in chunk.get("choices", ()):
                parts.append(choice.get("delta", {}).get("content") or choice.get("text") or "")
        return "".join(parts)


class Connection:
    """One connection to an edge, one request at a time. Closing it in mid-response is a client that leaves."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(cls, port: int, *, receive_buffer_bytes: int | None = None) -> Self:
        """A small `receive_buffer_bytes` makes the kernel push back soon when this client does not read."""
        connecting = socket.socket()
        connecting.setblocking(False)
        if receive_buffer_bytes:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
        limit = receive_buffer_bytes or READ_LIMIT_BYTES
        reader, writer = await asyncio.open_connection(sock=connecting, limit=limit)
        return cls(reader, writer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """Whether the peer has closed it. Asks the kernel, as clients do before they use a connection again:
        this event loop may be behind."""
        descriptor = self._writer.get_extra_info("socket").fileno()
        return self._reader.at_eof() or descriptor < 0 or bool(select.select([descriptor], [], [], 0)[0])

    def close(self) -> None:
        """Leaves at once; what was not read is lost, the peer sees a reset."""
        self._writer.transport.abort()

    async def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Sends a request and reads the head of its response into `status` and `headers`."""
        await self.send_only(method, path, headers=headers, body=body)
        await self.read_head()

    async def send_only(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        lines = {"host": "edge", "content-length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        await self._writer.drain()

    async def read_head(self) -> None:
        head = await self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ResponseBroken if the connection ends before it is whole."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._until(b"\r\n")).split(b";")[0], 16):
                yield (await self._exactly(size + 2))[:-2]
            await self._until(b"\r\n")
        elif (length := self.headers.get("content-length")) is not None:
            if int(length):
                yield await self._exactly(int(length))
        else:
            while piece := await self._reader.read(READ_LIMIT_BYTES):
                yield piece

    async def events(self) -> AsyncIterator[str]:
        """The `data` of each server-sent event."""
        rest = b""
        async for piece in self.pieces():
            rest += piece
            *events, rest = rest.split(b"\n\n")
            for event in events:
                for line in event.splitlines():
                    if line.startswith(b"data:"):
                        yield line[5:].strip().decode()

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def _until(self, separator: bytes) -> bytes:
        try:
            return await self._reader.readuntil(separator)
        except (asyncio.IncompleteReadError, ConnectionError) as e:
            raise ResponseBroken(str(e)) from e

    async def _exactly(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError) as e:
            raise ResponseBroken(str(e)) from e


class Client:
    """Requests of one key to an edge, each on a connection of its own."""

    def __init__(self, port: int, key: str, model: str = "sim") -> None:
        self.port = port
        self.headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self.model = model

    def chat_body(self, *, max_tokens: int, stream: bool = True, **more: Any) -> bytes:
        messages = [{"role": "user", "content": "Say something."}]
        return json.dumps(
            {"model": self.model, "messages": messages, "max_tokens": max_tokens, "stream": stream, **more}
        ).encode()

    async def request(
        self, method: str, path: str, body: bytes | Mapping[str, Any] = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A whole exchange. `headers` are added to the key's."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        async with asyncio.timeout(DEFAULT_TIMEOUT_S), await Connection.open(self.port) as connection:
            await connection.send(method, path, headers={**self.headers, **(headers or {})}, body=body)
            return Answer(connection.status, connection.headers, await connection.body())

    async def chat(self, *, max_tokens: int = 1, **more: Any) -> Answer:
        """A chat completion in one piece."""
        body = self.chat_body(max_tokens=max_tokens, stream=False, **more)
        return await self.request("POST", "/v1/chat/completions", body)

    async def open_stream(self, *, max_tokens: int, receive_buffer_bytes: int | None = None, **more: Any) -> Connection:
        """A streamed chat completion whose head has been read; the caller reads on, or does not."""
        connection = await Connection.open(self.port, receive_buffer_bytes=receive_buffer_bytes)
        try:
            async with asyncio.timeout(DEFAULT_TIMEOUT_S):
                body = self.chat_body(max_tokens=max_tokens, **more)
                await connection.send("POST", "/v1/chat/completions", headers=self.headers, body=body)
        except BaseException:
            connection.close()
            raise
        return connection

    async def stream(self, *, max_tokens: int, timeout_s: float = DEFAULT_TIMEOUT_S, **more: Any) -> StreamOutcome:
        """A streamed chat completion read to its end, however it ends."""
        async with asyncio.timeout(timeout_s), await self.open_stream(max_tokens=max_tokens, **more) as connection:
            return await finish(connection)


async def finish(connection: Connection, outcome: StreamOutcome | None = None) -> StreamOutcome:
    """Reads a stream to its end, into `outcome` if it was begun elsewhere."""
    outcome = outcome or StreamOutcome(connection.status)
    try:
        async for event in connection.events():
            outcome.events.append(event)
        outcome.complete = True
    except ResponseBroken:
        pass
    return outcome

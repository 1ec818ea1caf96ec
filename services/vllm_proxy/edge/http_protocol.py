"""uvicorn's HTTP/1.1 connection with what it lacks: a limit on request heads, OpenAI-shaped faults, head and body in
one write, and a way to end a connection whose client does not read."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import struct
import termios
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vllm_proxy.common.errors import HeadersTooLarge, InvalidRequest, ServiceError
from vllm_proxy.edge.errors import error_response
from vllm_proxy.edge.response_writer import ClientConnection, Scope

log = logging.getLogger(__name__)

#: Where `connection_of` finds it in the ASGI scope's extensions.
_EXTENSION = "vllm_proxy.connection"


class CorkableTransport:
    """A transport whose writes can be held back for a moment, to leave in one piece.

    uvloop writes to the socket in every `write`, and uvicorn writes a response's head by itself: a system call, and a
    wake-up of the client, for nothing.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] = []
        #: The transport's own, while nothing is held: a token costs no call more.
        self.write = transport.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def cork(self) -> None:
        self.write = self._held.append  # type: ignore[assignment]

    def uncork(self) -> None:
        """Writes what was held. Safe to call without `cork`."""
        self.write = self._transport.write
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._transport.write(data)

    def close(self) -> None:
        self.uncork()
        self._transport.close()


class EdgeHttpProtocol(HttpToolsProtocol):
    """One connection; a ClientConnection for the requests on it. Make subclasses with `with_limits`."""

    max_head_bytes: ClassVar[int]
    head_timeout_s: ClassVar[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        #: Bytes of reads that left the head incomplete.
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._extensions = {_EXTENSION: self}

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        # Rare: a head that came in several reads.
        self._head_bytes += len(data)
        if self._head_bytes > self.max_head_bytes:
            self._refuse(HeadersTooLarge())
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_timed_out)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._corkable = corkable = CorkableTransport(transport)
        self.cork, self.uncork = corkable.cork, corkable.uncork
        super().connection_made(corkable)  # type: ignore[arg-type]  # it has what uvicorn uses

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]

    def on_headers_complete(self) -> None:
        self._end_of_head()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg))

    def _end_of_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, error: ServiceError) -> None:
        """Answers below ASGI, which only sees complete heads, and closes."""
        status, headers, body = error_response(error, [(b"connection", b"close")])
        if self.cycle is None or self.cycle.response_complete:
            head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self.transport.close()

    # ClientConnection

    def unsent_bytes(self) -> int:
        size: int = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            size += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
        return size

    def close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        self.transport.abort()


def with_limits(max_head_bytes: int, head_timeout_s: float) -> type[EdgeHttpProtocol]:
    """The protocol class for one server; uvicorn makes an instance for each connection."""
    return type(
        "EdgeHttpProtocol", (EdgeHttpProtocol,), {"max_head_bytes": max_head_bytes, "head_timeout_s": head_timeout_s}
    )


class _UnknownConnection:
    """For servers other than ours: the connection ends with the ASGI call."""

    def unsent_bytes(self) -> int:
        return 0

    def cork(self) -> None: ...

    def uncork(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


def connection_of(scope: Scope) -> ClientConnection:
    connection: ClientConnection | None = (scope.get("extensions") or {}).get(_EXTENSION)
    return connection if connection is not None else _UnknownConnection()

"""Writes one response to its client without ever awaiting it.

The caller is the demultiplexer of a host's stream, which serves every other request too. While the transport is open,
nearly always, bytes go to it at once. While it is paused they queue here and leave in one piece when the client has
read; the credit that the host was granted bounds that queue.
"""

from __future__ import annotations

import http
import logging
from typing import TYPE_CHECKING, Protocol

from vllm_proxy.common.engine_routes import ErrorShape
from vllm_proxy.common.errors import ServiceError
from vllm_proxy.edge.errors import HeaderList, error_response

if TYPE_CHECKING:
    from vllm_proxy.edge.http_connection import HttpConnection
    from vllm_proxy.edge.http_request import HttpRequest

log = logging.getLogger(__name__)

_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_STATUS_LINES = {n: f"HTTP/1.1 {n} {_PHRASES.get(n, '')}\r\n".encode() for n in range(200, 1000)}
_LAST_CHUNK = b"0\r\n\r\n"
_WITHOUT_BODY = frozenset((204, 304))
_UNBOUNDED = 1 << 62


class ResponseOwner(Protocol):
    """Who answers a request and hears what becomes of the answer. Nothing here may block or raise."""

    def written(self, size_bytes: int) -> None:
        """So many bytes of the body reached the transport."""

    def sent(self) -> None:
        """The last byte reached the transport."""

    def client_left(self) -> None:
        """The connection ended before that, or was ended because the response could not be written."""


class HttpResponse:
    """`start`, any `write`, one `finish`; or `send`, or `send_error`. The head leaves with the first bytes of the body.

    `finished`: nothing may be added. `closed`: it is over, and whatever is written is dropped: everything reached the
    transport, or the client is gone. The `owner` is told which, once, and let go.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_queue",
        "_queued_bytes",
        "_request",
        "_without_body",
        "body_left",
        "closed",
        "extra_headers",
        "finished",
        "limit_bytes",
        "owner",
        "progress",
        "started",
    )

    def __init__(self, connection: HttpConnection, request: HttpRequest) -> None:
        self._connection = connection
        self._request = request
        self.owner: ResponseOwner | None = None
        #: Go with every answer, errors included.
        self.extra_headers: HeaderList = []
        #: Bounds the queue, in case that a host sends more than its credit.
        self.limit_bytes = _UNBOUNDED
        self.started = False
        self.finished = False
        self.closed = False
        #: Counts how often the client made room after it had been behind.
        self.progress = 0
        #: What is still to come of a body whose length was announced; negative otherwise.
        self.body_left = -1
        self._head = b""
        self._chunked = False
        self._without_body = False
        #: What waits for the client to read.
        self._queue: list[bytes] = []
        self._queued_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether something waits for the client to read."""
        return bool(self._queue)

    def unsent_bytes(self) -> int:
        """Bytes that the client's side has not taken yet, the kernel's included. A drop is progress."""
        return self._connection.unsent_bytes()

    def start(self, status: int, headers: HeaderList) -> None:
        """Takes the head; `date`, `connection` and `transfer-encoding` are added here."""
        request = self._request
        self.started = True
        lines = [_STATUS_LINES[status], self._connection.date_line]
        for name, value in (*headers, *self.extra_headers) if self.extra_headers else headers:
            if name == b"content-length":
                if not value.isdigit():
                    continue
                self.body_left = int(value)
            lines += (name, b": ", value, b"\r\n")
        if request.method == "HEAD" or status in _WITHOUT_BODY:
            self._without_body = True
            self.body_left = -1
        elif self.body_left < 0:
            if request.http_version == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                # Only the connection's end can say where the body ends.
                request.keep_alive = False
        if not request.keep_alive:
            lines.append(b"connection: close\r\n")
        elif request.http_version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def write(self, data: bytes) -> None:
        """Adds bytes. The hot path: one call for each token of each streamed request."""
        if data and not (self.finished or self.closed):
            self._put(data)

    def finish(self, data: bytes = b"") -> None:
        """Adds the last bytes and ends the response."""
        if self.finished or self.closed:
            return
        if not self.started:
            self._break("no head")
            return
        if self.body_left > len(data):
            self._put(data)
            self._break("less than the announced length")
            return
        self.finished = True
        self._put(data)
        if not (self._queue or self.closed):
            self._end()

    def send(self, status: int, headers: HeaderList, body: bytes) -> None:
        """A whole response."""
        self.start(status, headers)
        self.finish(body)

    def send_error(
        self, error: ServiceError, extra: HeaderList | None = None, shape: ErrorShape = ErrorShape.OPENAI
    ) -> None:
        """A whole response that says what is wrong."""
        self.send(*error_response(error, extra, shape))

    def abandon(self) -> None:
        """Ends the connection after what was written: the answer stays visibly incomplete."""
        self._connection.close()
        self.lose_client()

    def abort(self) -> None:
        """Ends the connection at once; what was written may be lost."""
        self._connection.abort()
        self.lose_client()

    # From the connection.

    def flush(self) -> None:
        """The client has read."""
        if not self._queue:
            return
        self.progress += 1
        data, size = b"".join(self._queue), self._queued_bytes
        self._queue.clear()
        self._queued_bytes = 0
        self._connection.write(data)
        if self.owner is not None:
            self.owner.written(size)
        if self.finished and not self.closed:
            self._end()

    def lose_client(self) -> None:
        """The connection has ended."""
        if not self.closed:
            self.closed = True
            self._queue.clear()
            if (owner := self._take_owner()) is not None:
                owner.client_left()

    def _put(self, data: bytes) -> None:
        size = len(data)
        if self.body_left >= 0:
            if size > self.body_left:
                self._break("more than the announced length")
                return
            self.body_left -= size
        if self._chunked:
            wire = b"%x\r\n%b\r\n" % (size, data) if size else b""
            if self.finished:
                wire += _LAST_CHUNK
        else:
            wire = b"" if self._without_body else data
        if self._head:
            wire, self._head = self._head + wire, b""
        if self._queue or not self._connection.writable:
            self._queue.append(wire)
            self._queued_bytes += size
            if self._queued_bytes > self.limit_bytes:
                self._break("more than the credit")
        else:
            if wire:
                self._connection.write(wire)
            if self.owner is not None:
                self.owner.written(size)

    def _end(self) -> None:
        self.closed = True
        owner = self._take_owner()
        self._connection.response_ended(self._request)
        if owner is not None:
            owner.sent()

    def _break(self, fault: str) -> None:
        log.warning("response cannot be written", extra={"detail": f"the host sent {fault}"})
        self.abandon()

    def _take_owner(self) -> ResponseOwner | None:
        # Owner and response hold each other: no cycle is left for the garbage collector.
        owner, self.owner = self.owner, None
        return owner

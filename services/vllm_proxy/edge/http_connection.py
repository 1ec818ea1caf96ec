"""One client's HTTP/1.1 connection, parsed by httptools: requests in their order and within their limits.

Everything happens in callbacks of the transport: a request costs no task, no event and no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools

from vllm_proxy.common.errors import BodyTooSlow, HeadersTooLarge, InvalidRequest, ServiceError
from vllm_proxy.edge.errors import HeaderList, unexpected
from vllm_proxy.edge.http_request import HttpRequest

if TYPE_CHECKING:
    from vllm_proxy.edge.http_server import HttpServer

log = logging.getLogger(__name__)

#: Requests that a client may send ahead of its answers. No common client sends any.
MAX_PIPELINED = 32
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpConnection(asyncio.Protocol):
    """The requests on it are served one after the other; while one is, the next ones wait unread or in a queue."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self._client_host: str | None = None
        #: False while the client is behind with reading.
        self.writable = True
        self._target = b""
        self._header_list: HeaderList = []
        self._head_bytes = 0
        #: Bytes of reads that brought neither a whole head nor anything of a body.
        self._partial_bytes = 0
        self._in_head = False
        #: The request whose body is coming.
        self._receiving: HttpRequest | None = None
        #: The request that is being answered, or will be as soon as its body is there.
        self._current: HttpRequest | None = None
        self._pipelined: deque[HttpRequest] = deque()
        #: Nothing more is read.
        self._deaf = False
        #: When the client is late, by the server's clock; 0: it need not send anything.
        self._deadline = 0.0

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._client_host = peer[0] if isinstance(peer, tuple) else None
        self.write = self._transport.write
        self._deadline = self._server.clock() + self._server.limits.receive_timeout_s
        self._server.connections.add(self)
        if self._server.stopping:  # It was accepted before the listener closed.
            self.stop()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        received_before = self._receiving.received_bytes if self._receiving is not None else -1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here: the request was served as it is, and is the last.
            self._deaf = True
        except httptools.HttpParserError as e:
            if not self._deaf:
                self._refuse(InvalidRequest("Invalid HTTP request received."), e)
        if (self._in_head or self._receiving is not None) and not self._deaf:
            self._expect_more(len(data), received_before)

    def eof_received(self) -> None:
        """Whoever closes its side is gone: the transport closes too."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        self._deaf = True
        self._parser = None
        self._deadline = 0.0
        for request in (self._receiving, self._current, *self._pipelined):
            if request is not None:
                request.drop_body()
        if self._current is not None:
            self._current.response.lose_client()
        self._receiving = self._current = None
        self._pipelined.clear()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._current is not None:
            self._current.response.flush()

    # From the parser.

    def on_message_begin(self) -> None:
        self._in_head = True
        self._target = b""
        self._header_list = []
        self._head_bytes = self._partial_bytes = 0
        self._deadline = 0.0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._in_head:
            self._header_list.append((name.lower(), value))
        # Trailers say nothing that anybody here wants to know.

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._deaf:
            return
        self._partial_bytes = 0
        self._deadline = 0.0
        self._receiving = request = self._make_request()
        try:
            self._judge(request)
        except ServiceError as e:
            request.refusal = e
        if self._current is None:
            self._take_up(request)
        else:
            self._pipelined.append(request)
            self._transport.pause_reading()

    def on_body(self, piece: bytes) -> None:
        request = self._receiving
        if request is None:
            return
        if request.refusal is not None:
            request.received_bytes += len(piece)
            return
        try:
            request.add_body(piece)
        except ServiceError as e:
            self._give_up(request, e)

    def on_message_complete(self) -> None:
        request = self._receiving
        if request is None:
            return
        self._receiving = None
        self._deadline = 0.0
        request.complete = True
        if not request.keep_alive:
            self._deaf = True
        if request is self._current and request.refusal is None:
            self._serve(request)
        elif self._current is None:
            self._rest()

    # Requests.

    def _make_request(self) -> HttpRequest:
        parser, target = self._parser, self._target
        if target.startswith(b"/"):
            path, _, query = target.partition(b"?")
        else:
            path, query = _parsed(target)
        return HttpRequest(
            self,
            self._server.bodies,
            parser.get_method().decode("latin-1"),
            path.decode("latin-1"),
            query,
            parser.get_http_version(),
            self._header_list,
            self._client_host,
            # After an upgrade that did not happen nobody knows what the client speaks.
            parser.should_keep_alive() and not parser.should_upgrade() and not self._server.stopping,
        )

    def _judge(self, request: HttpRequest) -> None:
        """Raises the error that a head is refused with."""
        if len(self._target) + self._head_bytes > self._server.limits.max_head_bytes:
            raise HeadersTooLarge
        if len(self._pipelined) >= MAX_PIPELINED:
            request.keep_alive = False
            self._deaf = True
            raise InvalidRequest("Too many requests were sent ahead of their answers.")
        request.body_limit_bytes = self._server.handler.body_limit_bytes(request)
        request.check_announced_body()

    def _take_up(self, request: HttpRequest) -> None:
        self._current = request
        if request.refusal is not None:
            self._answer_refused(request)
        elif request.complete:
            self._serve(request)
        elif request.http_version == "1.1" and request.headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(_CONTINUE)

    def _serve(self, request: HttpRequest) -> None:
        try:
            self._server.handler.handle(request)
        except Exception as e:
            error = unexpected(e, "")
            if request.response.started:
                self.close()
            else:
                request.response.send_error(error)

    def _give_up(self, request: HttpRequest, error: ServiceError) -> None:
        """Refuses a request whose body was coming, in its turn."""
        request.drop_body()
        request.refusal = error
        if request is self._current:
            self._answer_refused(request)

    def _answer_refused(self, request: HttpRequest) -> None:
        assert request.refusal is not None
        if not request.complete and b"expect" in request.headers:
            # It may or may not send the body now, so what comes next cannot be told.
            request.keep_alive = False
        self._server.handler.refuse(request, request.refusal)

    def response_ended(self, request: HttpRequest) -> None:
        """The last byte of the current request's answer reached the transport."""
        request.drop_body()
        self._current = None
        if not request.keep_alive:
            self.close()
        elif self._pipelined:
            # Not at once: whoever ended this response is in the middle of its own work.
            asyncio.get_running_loop().call_soon(self._next)
        elif self._receiving is None:
            self._rest()

    def _next(self) -> None:
        if self._current is None and self._pipelined and not self._transport.is_closing():
            request = self._pipelined.popleft()
            if not self._pipelined and not self._deaf:
                self._transport.resume_reading()
            self._take_up(request)

    # Limits.

    def _expect_more(self, size: int, received_before: int) -> None:
        """A read has left a head or a body incomplete, which is rare."""
        request, limits = self._receiving, self._server.limits
        if request is None or request.received_bytes == received_before:
            # Nothing of a body, so a part of a head or of trailers.
            self._partial_bytes += size
            if self._partial_bytes > limits.max_head_bytes:
                self._refuse(HeadersTooLarge())
                return
        if not self._deadline:
            self._deadline = self._server.clock() + limits.receive_timeout_s

    def _rest(self) -> None:
        """Nothing is asked. What the client has sent meanwhile is still on its way."""
        limits = self._server.limits
        patience_s = limits.drain_idle_s if self._server.stopping else limits.keep_alive_timeout_s
        if patience_s:
            self._deadline = self._server.clock() + patience_s
        else:
            self.close()

    def sweep(self, now: float) -> None:
        """Checks the deadline."""
        if not self._deadline or now < self._deadline:
            return
        request = self._receiving
        if request is None or request is not self._current or request.refusal is not None:
            # An idle client, one that does not come to an end, or one whose answer is out already.
            if not self._queued_bytes(termios.FIONREAD):  # A request that has come is answered.
                self._end_idle()
        else:
            request.keep_alive = False
            self._give_up(request, BodyTooSlow())

    def _end_idle(self) -> None:
        """Closes at once: what the client sends until a loop's turn later would be lost."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._transport.is_closing():
            with socket.socket(fileno=os.dup(sock.fileno())) as same, contextlib.suppress(OSError):
                same.shutdown(socket.SHUT_WR)
        self.close()

    def _refuse(self, error: ServiceError, cause: Exception | None = None) -> None:
        """The client does not speak HTTP as it should. It gets an answer if none is on its way, and nothing more."""
        log.debug("connection refused", exc_info=cause, extra={"reason": error.reason})
        self._deaf = True
        request = self._receiving
        if request is not None and request.refusal is None:
            request.keep_alive = False
            self._give_up(request, error)
        elif request is not None:
            self.close()
        elif self._current is not None:
            last = self._pipelined[-1] if self._pipelined else self._current
            last.keep_alive = False
        else:
            self._current = HttpRequest(self, self._server.bodies, "", "", b"", "1.1", [], self._client_host, False)
            self._server.handler.refuse(self._current, error)

    # For the response and the server.

    @property
    def date_line(self) -> bytes:
        return self._server.date_line

    def stop(self) -> None:
        """Closes after the next answer whose head can still say so. A client that was promised the connection, or is
        about to use it, has `drain_idle_s` to do so."""
        last = self._pipelined[-1] if self._pipelined else self._current
        if last is not None:
            last.keep_alive = last.keep_alive and last.response.started
        elif not self._in_head:
            self._rest()

    def unsent_bytes(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size + self._queued_bytes(termios.TIOCOUTQ)

    def _queued_bytes(self, which: int) -> int:
        """What the kernel holds: FIONREAD of the client's bytes, TIOCOUTQ of ours."""
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._transport.is_closing():
            return 0
        size: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), which, b"\0" * 4))[0]
        return size

    def close(self) -> None:
        """After what was written."""
        self._deaf = True
        if not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        self._deaf = True
        self._transport.abort()


def _parsed(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target that is a whole URL (or `*`, which has neither)."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return target, b""
    return url.path or b"", url.query or b""

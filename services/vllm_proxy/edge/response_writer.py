"""Writes one response to its client without ever awaiting it.

The caller is the demultiplexer of a host's stream, which serves every other request too. An ASGI `send` that
returns at once (the transport is open: nearly always) is stepped in place. One that has to wait is finished by a
task of this response, and what comes meanwhile queues behind it and goes out in one piece; the credit that the host
was granted bounds that queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol

from vllm_proxy.edge.errors import HeaderList
from vllm_proxy.edge.stepping import Suspended

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Send = Callable[[Message], Coroutine[Any, Any, None]]
Receive = Callable[[], Coroutine[Any, Any, Message]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class ClientConnection(Protocol):
    """What ASGI does not tell about the connection under it."""

    def unsent_bytes(self) -> int:
        """Bytes that the client's side has not taken yet, the kernel's included. A drop is progress."""

    def cork(self) -> None:
        """Holds writes back until `uncork`, which must follow in the same turn of the event loop."""

    def uncork(self) -> None: ...

    def close(self) -> None:
        """Ends the connection after what was written."""

    def abort(self) -> None:
        """Ends the connection at once; what was written may be lost."""


class ResponseWriter:
    """States: open; `finished` (nothing may be added); `complete` (the last byte was handed to the transport);
    `closed` (what is written is dropped). `on_written(bytes)` reports each piece that reached the transport,
    `on_complete()` the end, `on_broken()` that the server refused a message, after which it is closed."""

    def __init__(
        self,
        send: Send,
        spawn: Spawn,
        on_written: Callable[[int], None],
        on_complete: Callable[[], None],
        on_broken: Callable[[], None],
        limit_bytes: int,
    ) -> None:
        """`limit_bytes` bounds the queue, in case that the host sends more than its credit."""
        self._send = send
        self._spawn = spawn
        self._on_written = on_written
        self._on_complete = on_complete
        self._on_broken = on_broken
        self._limit_bytes = limit_bytes
        #: True while `write` must not send by itself: a send waits, or the response is over.
        self._busy = False
        self._head: Message | None = None
        self._queue: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.queued_bytes = 0
        self.started = False
        self.finished = False
        self.complete = False
        self.closed = False
        #: A send waits for the client to read.
        self.suspended = False
        #: Counts sends that ended while the client was behind; a change is progress.
        self.progress = 0

    def start(self, status: int, headers: HeaderList) -> None:
        self.started = True
        message: Message = {"type": "http.response.start", "status": status, "headers": headers}
        if self._busy:
            self._head = message
        else:
            self._step(message, 0)

    def write(self, data: bytes) -> None:
        """Adds bytes. The hot path: one call for each token of each streamed request."""
        if self._busy:
            if not (self.closed or self.finished):
                self._queue.append(data)
                self.queued_bytes += len(data)
                if self.queued_bytes > self._limit_bytes:
                    self._broken(BufferError("the host sent more than its credit"))
            return
        coroutine = self._send({"type": "http.response.body", "body": data, "more_body": True})
        try:
            waiting_for = coroutine.send(None)
        except StopIteration:
            self._on_written(len(data))
        except Exception as e:
            self._broken(e)
        else:
            self._suspend(Suspended(coroutine, waiting_for), len(data), last=False)

    def finish(self, data: bytes = b"") -> None:
        """Adds the last bytes and ends the response."""
        if self.finished or self.closed:
            return
        self.finished = True
        if self._busy:
            if data:
                self._queue.append(data)
                self.queued_bytes += len(data)
            return
        self._step({"type": "http.response.body", "body": data, "more_body": False}, len(data))
        if not self._busy:
            self._completed()

    def close(self) -> None:
        """Drops what is queued and whatever is written from now on: the client is gone."""
        self.closed = True
        self._busy = True
        self.suspended = False
        self._queue.clear()
        self.queued_bytes = 0
        if self._task is not None:
            self._task.cancel()

    def _step(self, message: Message, size: int) -> None:
        coroutine = self._send(message)
        try:
            waiting_for = coroutine.send(None)
        except StopIteration:
            if size:
                self._on_written(size)
        except Exception as e:
            self._broken(e)
        else:
            self._suspend(Suspended(coroutine, waiting_for), size, last=message.get("more_body") is False)

    def _suspend(self, rest: Suspended[None], size: int, last: bool) -> None:
        self._busy = True
        self.suspended = True
        self._task = self._spawn(self._catch_up(rest, size, last), "response")

    async def _catch_up(self, rest: Suspended[None], size: int, last: bool) -> None:
        """Finishes the send that waits and sends what has queued, until nothing is left."""
        try:
            await rest
            while True:
                self.progress += 1
                if size:
                    self._on_written(size)
                if last:
                    break
                if self._head is not None:
                    message, self._head, size = self._head, None, 0
                elif self._queue or self.finished:
                    data = b"".join(self._queue)
                    self._queue.clear()
                    self.queued_bytes = 0
                    last, size = self.finished, len(data)
                    message = {"type": "http.response.body", "body": data, "more_body": not last}
                else:
                    break
                await self._send(message)
        except Exception as e:
            self._broken(e)
            return
        finally:
            self._task = None
        if self.closed:
            return
        self.suspended = False
        if self.finished:
            self._completed()
        else:
            self._busy = False

    def _completed(self) -> None:
        if not self.complete and not self.closed:
            self.complete = True
            self._busy = True
            self._on_complete()

    def _broken(self, error: Exception) -> None:
        log.warning("response cannot be written", extra={"detail": repr(error)})
        self.close()
        self._on_broken()

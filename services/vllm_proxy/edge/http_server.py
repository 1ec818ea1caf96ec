"""The edge's HTTP server: what its connections share, their deadlines, and their end at a stop."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vllm_proxy.common.errors import ServiceError
from vllm_proxy.edge.http_connection import HttpConnection
from vllm_proxy.edge.http_request import BodyBudget, HttpRequest

LISTEN_BACKLOG = 2048


class Handler(Protocol):
    """What answers requests: each through its `response`, now or later. Called on the event loop; must not block."""

    def body_limit_bytes(self, request: HttpRequest) -> int:
        """How much body a request may have, seen by its head. Raises what it is refused with before it has sent it."""

    def handle(self, request: HttpRequest) -> None:
        """Serves a request whose body is complete."""

    def refuse(self, request: HttpRequest, error: ServiceError) -> None:
        """Answers with an error, at once."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    max_head_bytes: int
    #: Of all request bodies together.
    max_buffered_bytes: int
    #: How long a client may take to send a head, and again to send a body.
    receive_timeout_s: float
    keep_alive_timeout_s: float
    #: The same at a stop.
    drain_idle_s: float


class HttpServer:
    """Make it, `start` it on a listening socket, `sweep` it about once a second, `stop` it."""

    def __init__(self, handler: Handler, limits: HttpLimits, clock: Callable[[], float]) -> None:
        self.handler = handler
        self.limits = limits
        self.clock = clock
        self.bodies = BodyBudget(limits.max_buffered_bytes)
        self.connections: set[HttpConnection] = set()
        self.date_line = _date_line()
        self.stopping = False
        self._listening: asyncio.Server | None = None
        self._none_left = asyncio.Event()

    async def start(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: HttpConnection(self), sock=listener, backlog=LISTEN_BACKLOG)

    def sweep(self, now: float) -> None:
        """Closes the connections of clients that are late: one pass instead of a timer for each."""
        self.date_line = _date_line()
        for connection in tuple(self.connections):
            connection.sweep(now)

    async def stop(self, timeout_s: float) -> bool:
        """Takes no new connections, and no request on those that know of it; waits so long for all to end. Returns
        whether they have. `sweep` must go on meanwhile."""
        if not self.stopping:
            self.stopping = True
            if self._listening is not None:
                self._listening.close()
            for connection in tuple(self.connections):
                connection.stop()
            # What was accepted makes its connection in the loop's next turn.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.connections:
                    self._none_left.clear()
                    await self._none_left.wait()
        return not self.connections

    def abort(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()

    def forget(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._none_left.set()


def _date_line() -> bytes:
    return f"date: {email.utils.formatdate(time.time(), usegmt=True)}\r\n".encode()

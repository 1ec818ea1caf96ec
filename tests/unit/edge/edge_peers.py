"""The other sides of an edge worker, scripted: an auth service, a host, a session."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio
from tests.unit.edge.http_peer import Client

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.api.engine.v1 import engine_pb2, engine_pb2_grpc
from vllm_proxy.common.engine_routes import EDGE_ROUTES
from vllm_proxy.common.routing.table import RoutingTable
from vllm_proxy.common.settings import LoadedSettings, Settings
from vllm_proxy.edge.config import EdgeConfig
from vllm_proxy.edge.engine_documents import EngineDocument
from vllm_proxy.edge.exchange import Exchange, ExchangeContext
from vllm_proxy.edge.metrics import EdgeMetrics
from vllm_proxy.edge.request import RequestFacts

DEADLINE_S = 10.0
_route = EDGE_ROUTES.find("POST", "/v1/chat/completions")
assert _route is not None
CHAT = _route


async def no_documents() -> list[EngineDocument]:
    """Engines that say nothing of their routes."""
    return []


def edge_config(**edge: Any) -> EdgeConfig:
    return EdgeConfig.from_settings(LoadedSettings(Settings(edge=edge), None, None))  # type: ignore[arg-type]


async def eventually(condition: Callable[[], Any]) -> None:
    """Gives the loop turns until `condition` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - there is no event for what a peer has read
            await asyncio.sleep(0)


@contextmanager
def socket_address() -> Iterator[str]:
    """A Unix socket's address that is short enough for the kernel wherever pytest keeps its folders."""
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        yield f"unix:{folder}/peer.sock"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedSession:
    """A HostSession that records what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = f"{name}-1"
        self.connected = True
        self.started: list[tuple[Any, engine_pb2.RequestEnvelope, bytes, int]] = []
        self.granted: list[tuple[int, int]] = []
        self.cancelled: list[int] = []
        self.acked: list[int] = []
        self.forgotten: list[int] = []

    def start(self, sink: Any, body: bytes, credit_bytes: int) -> int:
        envelope = engine_pb2.RequestEnvelope()
        sink.fill(envelope)
        self.started.append((sink, envelope, body, credit_bytes))
        return len(self.started)

    def grant(self, stream_id: int, credit_bytes: int) -> None:
        self.granted.append((stream_id, credit_bytes))

    def cancel(self, stream_id: int) -> None:
        self.cancelled.append(stream_id)

    def ack(self, stream_id: int) -> None:
        self.acked.append(stream_id)

    def forget(self, stream_id: int) -> None:
        self.forgotten.append(stream_id)


class ScriptedHosts:
    def __init__(self, *sessions: ScriptedSession) -> None:
        self.table = RoutingTable()
        self.sessions = list(sessions)
        self.bases = {"m": "m"}
        self.engine_returns = 0
        self._changed = asyncio.Event()

    def engine_of(self, session: ScriptedSession) -> tuple[str, int]:
        return session.incarnation, self.engine_returns

    def pick(self, model: str | None, exclude: Any = ()) -> ScriptedSession | None:
        return next((s for s in self.sessions if s.connected and s.name not in exclude), None)

    def base_of(self, model: str, host: str) -> str:
        return self.bases.get(model) or ("base" if host else "")

    async def wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def changed(self) -> None:
        self._changed.set()


class Book:
    """The settling side of an AuthClient."""

    def __init__(self) -> None:
        self.settlements: list[Any] = []

    def settle(self, settlement: Any) -> None:
        self.settlements.append(settlement)

    def make_durable(self) -> None:
        for settlement in self.settlements:
            settlement.on_durable()


class Bench:
    """One request in an edge whose surroundings are scripted."""

    def __init__(self, *names: str, **edge: Any) -> None:
        self.sessions = [ScriptedSession(name) for name in names]
        self.hosts = ScriptedHosts(*self.sessions)
        self.book = Book()
        self.clock = Clock()
        self.client = Client()
        self.tasks: set[asyncio.Task[None]] = set()
        self.context = ExchangeContext(
            config=edge_config(**edge),
            hosts=self.hosts,  # type: ignore[arg-type]
            auth=self.book,  # type: ignore[arg-type]
            metrics=EdgeMetrics(),
            spawn=self._spawn,
            clock=self.clock,
        )
        request = RequestFacts(
            request_id="req-1",
            route=CHAT,
            path=CHAT.path,
            query=b"",
            headers=[(b"content-type", b"application/json")],
            traceparent="",
            started_at=self.clock.now,
            model="m",
            answer_headers=[(b"x-request-id", b"req-1")],
        )
        self.client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        self.exchange = Exchange(self.context, request, "lease-1", self.client.request)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def stream(self, *pieces: bytes) -> None:
        """The host begins an event stream and sends pieces."""
        self.exchange.head(200, [(b"content-type", b"text/event-stream"), (b"server", b"uvicorn")])
        for count, piece in enumerate(pieces, 1):
            self.exchange.deliver(piece, 7, count, True)

    def end(self, **fields: Any) -> None:
        usage = auth_pb2.TokenUsage(prompt_tokens=7, completion_tokens=fields.pop("completion_tokens", 3))
        self.exchange.ended(engine_pb2.EndFrame(stream_id=1, usage=usage, **fields))


class AuthPeer(auth_pb2_grpc.AuthServiceServicer):
    """An auth service that keeps what it read and answers when the test says so."""

    def __init__(self) -> None:
        self.read: list[auth_pb2.SessionRequest] = []
        self.sessions = 0
        self._context: Any = None
        self._broken = asyncio.Event()

    async def Session(self, _request: Any, context: Any) -> None:
        self.sessions += 1
        self._context = context
        self._broken = broken = asyncio.Event()
        await context.write(auth_pb2.SessionResponse(lease_ttl_ms=30_000))

        async def reading() -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                self.read.append(message)

        reader = asyncio.create_task(reading())
        breaker = asyncio.create_task(broken.wait())
        await asyncio.wait({reader, breaker}, return_when=asyncio.FIRST_COMPLETED)
        for task in (reader, breaker):
            task.cancel()
        await asyncio.gather(reader, breaker, return_exceptions=True)

    async def answer(self, **fields: Any) -> None:
        await self._context.write(auth_pb2.SessionResponse(**fields))

    def break_session(self) -> None:
        self._broken.set()

    @property
    def admits(self) -> list[auth_pb2.AdmitRequest]:
        return [admit for message in self.read for admit in message.admits]

    @property
    def settles(self) -> list[auth_pb2.SettleRequest]:
        return [settle for message in self.read for settle in message.settles]


class EnginePeer(engine_pb2_grpc.EngineServiceServicer):
    """An engine host's session, scripted the same way."""

    def __init__(self) -> None:
        self.read: list[engine_pb2.SessionRequest] = []
        self.sessions = 0
        self.ended = 0
        self._context: Any = None
        self._broken = asyncio.Event()
        # The edge may have read a message before its write is over here, and gRPC takes one write at a time.
        self._writing = asyncio.Lock()

    async def Session(self, _request: Any, context: Any) -> None:
        self.sessions += 1
        self._context = context
        self._broken = broken = asyncio.Event()
        welcome = engine_pb2.SessionWelcome(host="h", incarnation=f"h-{self.sessions}")
        async with self._writing:
            await context.write(engine_pb2.SessionResponse(welcome=welcome))

        async def reading() -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                self.read.append(message)

        reader = asyncio.create_task(reading())
        breaker = asyncio.create_task(broken.wait())
        await asyncio.wait({reader, breaker}, return_when=asyncio.FIRST_COMPLETED)
        for task in (reader, breaker):
            task.cancel()
        await asyncio.gather(reader, breaker, return_exceptions=True)
        self.ended += 1

    async def say(self, **fields: Any) -> None:
        async with self._writing:
            await self._context.write(engine_pb2.SessionResponse(**fields))

    def break_session(self) -> None:
        self._broken.set()

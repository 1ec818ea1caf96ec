"""A whole engine host in this process over Unix sockets, with the test as its edge and a fake auth service.

`ScriptedEngine` does what its test says; the simulator stands in where timing or counting matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import orjson
from tests.support.wait import eventually

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.api.engine.v1 import engine_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2, router_pb2_grpc
from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.common.lifecycle import StopSignal
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import LoadedSettings, Settings
from vllm_proxy.engine_host.config import host_config
from vllm_proxy.engine_host.engines.base import (
    AdapterLimits,
    AsgiApp,
    Engine,
    EngineDied,
    EngineLoad,
    GeneratedText,
    GenerateParameters,
    ModelCard,
    Receive,
    Scope,
    Send,
)
from vllm_proxy.engine_host.server import HostService

HOST = "h1"
DEADLINE_S = 10.0
PLENTY = 1 << 24


class ScriptedEngine:
    """An engine whose application is a function of the test."""

    kind = "scripted"
    version = "0"
    supports_lora = False

    def __init__(self, app: AsgiApp) -> None:
        self.app = app
        self.stopped = False
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        await self.may_start.wait()
        if self.death.done():
            raise EngineDied(self.death.result())

    async def stop(self) -> None:
        self.stopped = True

    async def wait_dead(self) -> str:
        return await asyncio.shield(self.death)

    def base_models(self) -> Sequence[str]:
        return ("m",)

    async def model_cards(self) -> Sequence[ModelCard]:
        return (ModelCard("m", b'{"id":"m"}'),)

    def load(self) -> EngineLoad:
        return EngineLoad()

    async def generate(self, parameters: GenerateParameters) -> AsyncIterator[GeneratedText]:
        yield GeneratedText(str(parameters.prompt))
        await asyncio.Event().wait()

    def adapter_limits(self) -> AdapterLimits:
        return AdapterLimits(max_rank=8)

    async def load_adapter(self, name: str, path: Path) -> None:
        raise InvalidRequest

    async def remove_adapter(self, name: str) -> None:
        raise InvalidRequest

    async def pin_adapter(self, name: str) -> None:
        raise InvalidRequest


class FakeAuth(auth_pb2_grpc.AuthServiceServicer):
    """Acknowledges settlements unless `silent`; can be stopped and started again on the same address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.settled: list[auth_pb2.SettleRequest] = []
        self.hellos: list[auth_pb2.SessionHello] = []
        self.silent = False
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Session(self, request_iterator: Any, context: Any) -> None:
        await context.write(auth_pb2.SessionResponse(lease_ttl_ms=30_000))
        while (message := await context.read()) is not grpc.aio.EOF:
            if message.HasField("hello"):
                self.hellos.append(message.hello)
            self.settled += message.settles
            if message.settles and not self.silent:
                answers = [auth_pb2.SettleResponse(seq=s.seq, applied=True) for s in message.settles]
                await context.write(auth_pb2.SessionResponse(settles=answers))


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Remembers what hosts report."""

    def __init__(self, address: str) -> None:
        self.reports: list[router_pb2.Host] = []
        self._server = grpc.aio.server()
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(address)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Register(self, request_iterator: Any, context: Any) -> None:
        await context.write(router_pb2.RegisterResponse(heartbeat_ms=1000))
        while (message := await context.read()) is not grpc.aio.EOF:
            self.reports.append(message.host)

    def states(self) -> list[str]:
        """The states in the order they were reported, each once."""
        names = [router_pb2.HostState.Name(report.state).removeprefix("HOST_STATE_") for report in self.reports]
        return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


@dataclass
class Answer:
    """What one request got."""

    head: pb.HeadFrame | None = None
    data: bytes = b""
    end: pb.EndFrame | None = None
    counts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return orjson.loads(self.data)


class Edge:
    """One session, read as it comes. `leave` breaks it."""

    def __init__(self, address: str, settings: Settings, edge_id: str = "edge-1") -> None:
        self._channel = open_channel(address, settings.grpc)
        self._edge_id = edge_id
        self.answers: dict[int, Answer] = {}
        self.messages: list[pb.SessionResponse] = []
        self.welcome: pb.SessionWelcome | None = None
        self.finished = False
        self._next_id = 0

    async def open(self) -> None:
        stub = engine_pb2_grpc.EngineServiceStub(self._channel)
        self.call = stub.Session(wait_for_ready=True)
        await self.call.write(pb.SessionRequest(hello=pb.SessionHello(edge_id=self._edge_id)))
        self.welcome = (await self.call.read()).welcome
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        # A call that this side cancelled reads as a CancelledError.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                self.messages.append(message)
                for head in message.heads:
                    self.answers[head.stream_id].head = head
                columns = (message.data_stream_ids, message.data, message.data_prompt_tokens)
                for stream_id, data, prompt, completion in zip(*columns, message.data_completion_tokens, strict=True):
                    self.answers[stream_id].data += data
                    self.answers[stream_id].counts.append((prompt, completion))
                for end in message.ends:
                    assert self.answers[end.stream_id].end is None, "one end for each request"
                    self.answers[end.stream_id].end = end
        self.finished = True

    def frame(self, body: Any = b"", *, credit_bytes: int = PLENTY, complete: bool = True, **envelope: Any) -> Any:
        """A StartFrame of a new stream, to put into `send`."""
        self._next_id += 1
        self.answers[self._next_id] = Answer()
        fields = {"request_id": f"r{self._next_id}", "method": "POST", "path": "/v1/chat/completions", "attempt": 1}
        return pb.StartFrame(
            stream_id=self._next_id,
            envelope=pb.RequestEnvelope(**{**fields, **envelope}),
            body=body if isinstance(body, bytes) else orjson.dumps(body),
            body_complete=complete,
            credit_bytes=credit_bytes,
        )

    async def start(self, body: Any = b"", **options: Any) -> int:
        frame = self.frame(body, **options)
        await self.send(starts=[frame])
        return int(frame.stream_id)

    async def send(self, **fields: Any) -> None:
        await self.call.write(pb.SessionRequest(**fields))

    async def ended(self, *stream_ids: int) -> list[Answer]:
        """Waits for their ends."""
        answers = [self.answers[stream_id] for stream_id in stream_ids]
        await eventually(lambda: all(a.end is not None for a in answers), f"ends of {stream_ids}", DEADLINE_S)
        return answers

    async def leave(self) -> None:
        self.call.cancel()
        await self._reader
        await self._channel.close()


class Rig:
    """A host service and what stands around it. Use as an async context manager."""

    def __init__(self, engine: Callable[[], Engine] | None = None, **settings: Any) -> None:
        self._folder = Path(tempfile.mkdtemp(dir="/tmp"))
        defaults: dict[str, Any] = {
            "engine_hosts": {HOST: {"engine": "sim", "address": f"unix:{self._folder}/h"}},
            "auth": {"address": f"unix:{self._folder}/a"},
            "router": {"address": f"unix:{self._folder}/r"},
            "sim": {"step_ms": 2, "prefill_tokens_per_s": 1e6},
            "grpc": {"reconnect_max_s": 0.2},
        }
        for key, value in settings.items():
            defaults[key] = {**defaults.get(key, {}), **value}
        self.settings = Settings.model_validate(defaults)
        self._loaded = LoadedSettings(self.settings, self._folder / "config.yaml", self._folder)
        self._make_engine = engine
        self.auth = FakeAuth(self.settings.auth.address)
        self.router = FakeRouter(self.settings.router.address)
        self.stop = StopSignal()
        self._edges: list[Edge] = []

    async def __aenter__(self) -> Rig:
        config = host_config(self._loaded, HOST)
        self.service = HostService(self._loaded, config, self._make_engine() if self._make_engine else None)
        await self.auth.start()
        await self.router.start()
        self.exit = asyncio.create_task(self.service.run(self.stop))
        self.channel = open_channel(config.address, self.settings.grpc)
        self.stub = engine_pb2_grpc.EngineServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder)
            stack.push_async_callback(self.auth.stop)
            stack.push_async_callback(self.router.stop)
            stack.push_async_callback(asyncio.wait, (self.exit,))
            stack.callback(self.stop.request)
            stack.push_async_callback(self.channel.close)
            for edge in self._edges:
                stack.push_async_callback(edge.leave)

    async def serving(self) -> Rig:
        await eventually(lambda: self.service.host.state_name == "SERVING", "serving", DEADLINE_S)
        return self

    async def edge(self, edge_id: str = "edge-1") -> Edge:
        edge = Edge(self.service.host.address, self.settings, edge_id)
        await edge.open()
        self._edges.append(edge)
        return edge


async def respond(send: Send, *pieces: bytes) -> None:
    """A whole 200 answer in pieces."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """Begins an answer and ends with its client."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await until_disconnect(receive)


def chat(model: str = "sim", *, max_tokens: int = 4, stream: bool = True, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Count the tokens of this."}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": stream, **more}

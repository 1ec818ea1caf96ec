"""The gRPC server that every service stands on, over a real Unix socket in this process."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.errors import AdapterExists, AdapterNotFound, InternalError, NoCapacity, PermissionDenied
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE, ConfigError, Grpc

SERVICE = pb.DESCRIPTOR.services_by_name["RouterService"].full_name
TOKEN = "a-shared-secret"


class Failing(router_pb2_grpc.RouterServiceServicer):
    """Each kind of call fails, in a way that its request chooses."""

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        if request.adapter.name == "taken":
            raise AdapterExists("taken is loaded.", metadata={"adapter": "taken"})
        if request.adapter.name == "full":
            raise NoCapacity("Full.", retry_after_s=2.5)
        if request.adapter.name == "broken":
            raise ValueError("a secret detail")
        return pb.LoadAdapterResponse(hosts=["a"])

    async def WatchTable(self, request: pb.WatchTableRequest, context: Any) -> AsyncIterator[pb.WatchTableResponse]:
        yield pb.WatchTableResponse(version=1)
        if request.edge_id == "broken":
            raise ValueError("a secret detail")
        raise AdapterNotFound("Gone.")

    async def Register(self, request_iterator: Any, context: Any) -> None:
        await context.write(pb.RegisterResponse(heartbeat_ms=1))
        async for request in request_iterator:
            raise AdapterNotFound(request.host.name)


class Wire:
    def __init__(self, server: RpcServer, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel
        self.router = router_pb2_grpc.RouterServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def load(self, name: str) -> pb.LoadAdapterResponse:
        answer: pb.LoadAdapterResponse = await self.router.LoadAdapter(
            pb.LoadAdapterRequest(adapter=pb.AdapterSpec(name=name)), timeout=5
        )
        return answer


Open = Callable[[], Awaitable[Wire]]


@pytest.fixture
async def open_wire() -> AsyncIterator[Open]:
    """Starts a server and a channel to it. The token that both know is the environment's at that moment."""
    folder = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder)

        async def open_one() -> Wire:
            settings = Grpc()
            server = RpcServer(f"unix:{folder}/run/s.sock", settings, [SERVICE])
            router_pb2_grpc.add_RouterServiceServicer_to_server(Failing(), server.server)
            address = await server.listen()
            stack.push_async_callback(server.stop, 0)
            return Wire(server, await stack.enter_async_context(open_channel(address, settings)))

        yield open_one


async def test_a_service_error_arrives_as_itself(open_wire: Open) -> None:
    wire = await open_wire()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.load("taken")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    error = from_rpc_error(caught.value)
    assert type(error) is AdapterExists
    assert (error.message, error.metadata) == ("taken is loaded.", {"adapter": "taken"})


async def test_how_long_to_wait_arrives_too(open_wire: Open) -> None:
    wire = await open_wire()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.load("full")
    assert from_rpc_error(caught.value).retry_after_s == 2.5


async def test_an_unexpected_error_shows_an_id_and_the_log_explains_it(
    open_wire: Open, caplog: pytest.LogCaptureFixture
) -> None:
    wire = await open_wire()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.load("broken")
    error = from_rpc_error(caught.value)
    assert type(error) is InternalError
    assert "secret" not in error.message
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.__dict__["error_id"] in error.message
    assert record.__dict__["method"].endswith("/LoadAdapter")
    assert record.exc_info is not None and "a secret detail" in str(record.exc_info[1])


@pytest.mark.parametrize(("edge_id", "kind"), [("edge", AdapterNotFound), ("broken", InternalError)])
async def test_a_server_stream_that_fails_says_why_after_what_it_sent(
    open_wire: Open, edge_id: str, kind: type[Exception]
) -> None:
    wire = await open_wire()
    call = wire.router.WatchTable(pb.WatchTableRequest(edge_id=edge_id), timeout=5)
    assert (await call.read()).version == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert type(from_rpc_error(caught.value)) is kind


async def test_a_bidirectional_stream_that_fails_says_why(open_wire: Open) -> None:
    wire = await open_wire()
    call = wire.router.Register(timeout=5)
    assert (await call.read()).heartbeat_ms == 1
    await call.write(pb.RegisterRequest(host=pb.Host(name="h")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = from_rpc_error(caught.value)
    assert type(error) is AdapterNotFound and error.message == "h"


async def test_health_follows_the_service(open_wire: Open) -> None:
    wire = await open_wire()
    states = health_pb2.HealthCheckResponse

    async def status(service: str) -> Any:
        return (await wire.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status

    for name in ("", SERVICE):
        assert await status(name) == states.NOT_SERVING
    await wire.server.set_serving(True)
    for name in ("", SERVICE):
        assert await status(name) == states.SERVING


async def test_reflection_names_the_service(open_wire: Open) -> None:
    wire = await open_wire()
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    call = stub.ServerReflectionInfo(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    await call.done_writing()
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


class TestToken:
    async def test_a_caller_that_knows_it_is_let_in(self, open_wire: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(INTERNAL_TOKEN_VARIABLE, TOKEN)
        wire = await open_wire()
        assert (await wire.load("fine")).hosts == ["a"]
        assert (await wire.router.WatchTable(pb.WatchTableRequest(), timeout=5).read()).version == 1
        assert (await wire.router.Register(timeout=5).read()).heartbeat_ms == 1

    @pytest.mark.parametrize("shown", [None, "wrong", "a-shared-secre", "a-shared-secret2"])
    async def test_any_other_is_refused_but_for_health(
        self, open_wire: Open, monkeypatch: pytest.MonkeyPatch, shown: str | None
    ) -> None:
        monkeypatch.setenv(INTERNAL_TOKEN_VARIABLE, TOKEN)
        wire = await open_wire()
        monkeypatch.delenv(INTERNAL_TOKEN_VARIABLE)
        if shown:
            monkeypatch.setenv(INTERNAL_TOKEN_VARIABLE, shown)
        async with open_channel(wire.server.address, Grpc()) as channel:
            stranger = Wire(wire.server, channel)
            for call in (
                stranger.load("fine"),
                stranger.router.WatchTable(pb.WatchTableRequest(), timeout=5).read(),
                stranger.router.Register(timeout=5).read(),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert type(from_rpc_error(caught.value)) is PermissionDenied
            await stranger.health.Check(health_pb2.HealthCheckRequest(), timeout=5)

    @pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
    def test_a_listener_that_others_reach_needs_one(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(INTERNAL_TOKEN_VARIABLE, raising=False)
        with pytest.raises(ConfigError, match=INTERNAL_TOKEN_VARIABLE):
            RpcServer(address, Grpc(), [SERVICE])

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import ConfigError, Grpc

LISTEN_FOREVER = """
import asyncio, sys
from vllm_proxy.common.rpc.server import RpcServer
from vllm_proxy.common.settings import Grpc

async def main():
    await RpcServer(sys.argv[1], Grpc(), []).listen()
    print("listening", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def address() -> Iterator[str]:
    # A Unix socket's path may have 107 bytes; pytest's own folders can be longer.
    folder = tempfile.mkdtemp(prefix="rpc-")
    yield f"unix:{folder}/s.sock"
    shutil.rmtree(folder)


async def listening(address: str) -> RpcServer:
    server = RpcServer(address, Grpc(), [])
    await server.listen()
    return server


async def test_a_second_server_does_not_take_the_socket_of_the_first(address: str) -> None:
    first = await listening(address)
    try:
        with pytest.raises(ConfigError) as caught:
            await listening(address)
        assert str(caught.value) == f"{address} is in use by another process"
        async with open_channel(address, Grpc()) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    finally:
        await first.stop(0)


async def test_a_server_that_has_stopped_leaves_its_socket_to_the_next(address: str) -> None:
    await (await listening(address)).stop(0)
    await (await listening(address)).stop(0)


async def test_so_does_one_that_was_killed(address: str) -> None:
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", LISTEN_FOREVER, address, stdout=PIPE)
    assert first.stdout is not None
    try:
        assert await first.stdout.readline() == b"listening\n"
        with pytest.raises(ConfigError, match="is in use by another process"):
            await listening(address)
    finally:
        first.kill()
        await first.wait()
    await (await listening(address)).stop(0)

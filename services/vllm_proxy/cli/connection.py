"""The way to the services: by gRPC at the addresses of the configuration, with the internal token if there is one."""

from __future__ import annotations

import getpass
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.errors import RouterUnavailable
from vllm_proxy.common.ids import new_request_id
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import LoadedSettings


class Connection:
    """A context manager."""

    def __init__(self, loaded: LoadedSettings) -> None:
        self.loaded = loaded
        self._settings = loaded.settings
        self._stack = AsyncExitStack()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.auth: auth_pb2_grpc.AuthServiceStub
        self.router: router_pb2_grpc.RouterServiceStub

    async def __aenter__(self) -> Self:
        self.auth = auth_pb2_grpc.AuthServiceStub(self.channel(self._settings.auth.address))
        self.router = router_pb2_grpc.RouterServiceStub(self.channel(self._settings.router.address))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = channel = open_channel(address, self._settings.grpc)
            self._stack.push_async_callback(channel.close)
        return self._channels[address]

    async def ask(self, method: Any, message: Any) -> Any:
        return await method(message, timeout=self._settings.grpc.call_timeout_s)

    async def ask_router(self, method: Any, message: Any, timeout_s: float | None = None) -> Any:
        """Raises what the router raised, RouterUnavailable if it cannot be asked."""
        try:
            return await method(message, timeout=timeout_s or self._settings.grpc.call_timeout_s)
        except grpc.aio.AioRpcError as e:
            raise from_rpc_error(e, RouterUnavailable) from None

    @staticmethod
    def actor() -> auth_pb2.Actor:
        """Who is at the keyboard, for the audit log."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a user id without a name
            name = "unknown"
        return auth_pb2.Actor(user=f"cli:{name}", client_address="local", request_id=new_request_id())

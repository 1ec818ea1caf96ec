"""The way to the services: by gRPC at the addresses of the configuration, with the internal token if there is one."""

from __future__ import annotations

import getpass
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.ids import new_request_id
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import Settings


class Connection:
    """A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.auth: auth_pb2_grpc.AuthServiceStub

    async def __aenter__(self) -> Self:
        channel = open_channel(self._settings.auth.address, self._settings.grpc)
        self._stack.push_async_callback(channel.close)
        self.auth = auth_pb2_grpc.AuthServiceStub(channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def ask(self, method: Any, message: Any) -> Any:
        return await method(message, timeout=self._settings.grpc.call_timeout_s)

    @staticmethod
    def actor() -> auth_pb2.Actor:
        """Who is at the keyboard, for the audit log."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):  # a user id without a name
            name = "unknown"
        return auth_pb2.Actor(user=f"cli:{name}", client_address="local", request_id=new_request_id())

"""Builds a service's gRPC server: errors, token, health and reflection included."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from vllm_proxy.common.rpc.address import is_local, is_unix, prepare_unix
from vllm_proxy.common.rpc.interceptors import ErrorInterceptor, TokenInterceptor
from vllm_proxy.common.rpc.tls import server_credentials
from vllm_proxy.common.settings import INTERNAL_TOKEN_VARIABLE, ConfigError, Grpc


class RpcServer:
    """A grpc.aio server and its health. Add servicers to `server`, then `listen`, then `set_serving`."""

    def __init__(self, address: str, settings: Grpc, service_names: Sequence[str]) -> None:
        """`service_names` are the full proto names, for health and reflection. Raises ConfigError if `address` can
        be reached from elsewhere and neither a shared token nor TLS keeps strangers out."""
        self.address = address
        self._lock: int | None = None
        self._names = tuple(service_names)
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if token := os.environ.get(INTERNAL_TOKEN_VARIABLE):
            interceptors.append(TokenInterceptor(token))
        elif not is_local(address) and settings.tls.certificate is None:
            raise ConfigError(
                f"{address} can be reached from other machines: set {INTERNAL_TOKEN_VARIABLE} to the same secret for "
                "every service, or grpc.tls, or listen on loopback or a Unix socket"
            )
        self._tls = settings.tls if settings.tls.certificate is not None and not is_unix(address) else None
        interceptors.append(ErrorInterceptor())
        self.server = grpc.aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection(
            (*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME),
            self.server,
        )

    async def listen(self) -> str:
        """Binds and starts, NOT_SERVING. Returns the address, its port filled in if it was 0. Raises ConfigError if
        another process listens on this Unix socket, or the files of grpc.tls cannot be used."""
        await self.set_serving(False)
        if is_unix(self.address):
            prepare_unix(self.address)
            self._lock = _lock_socket(self.address)
        if self._tls is not None:
            port = self.server.add_secure_port(self.address, server_credentials(self._tls))
        else:
            port = self.server.add_insecure_port(self.address)
        if not is_unix(self.address):
            self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self.server.start()
        return self.address

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        await self.set_serving(False)
        await self.server.stop(grace_s)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock_socket(address: str) -> int:
    """gRPC removes a socket that is there before it binds, also one that somebody listens on. The kernel frees the
    lock when the process ends."""
    handle = os.open(f"{address.removeprefix('unix:')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(f"{address} is in use by another process") from None
    return handle

"""The engine's own HTTP application on its own port, loopback only: what the engine's own server would offer there.

Nobody counts or limits here, and only an engine started with `--api-key` authenticates. The LoRA routes (native_lora)
go through the host's registry, so that there is one truth about adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterator, Sequence
from typing import Protocol

import uvicorn

from vllm_proxy.common.settings import ConfigError
from vllm_proxy.engine_host.engines.base import AsgiApp
from vllm_proxy.engine_host.lora.registry import AdapterRegistry
from vllm_proxy.engine_host.native_lora import VLLM_ROUTES, LoraRoutes, with_lora_routes

log = logging.getLogger(__name__)

_GRACE_S = 5


class Stop(Protocol):
    """A StopSignal or an asyncio.Event."""

    async def wait(self) -> object: ...


async def serve(
    app: AsgiApp,
    registry: AdapterRegistry | None,
    host: str,
    port: int,
    stop: Stop,
    api_keys: Sequence[str] = (),
    lora_routes: LoraRoutes = VLLM_ROUTES,
) -> None:
    """Serves until `stop`. `registry` None: the engine takes no adapters. `api_keys`: the engine's own, if it has any.

    Raises ConfigError if `host` is not loopback or the port cannot be had."""
    sockets = listen(host, port)
    config = uvicorn.Config(
        with_lora_routes(app, registry, api_keys, lora_routes) if registry is not None else app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
        # Both as vLLM's own server.
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=4 * 1024 * 1024,
    )
    server = _Server(config)
    log.info("native port open", extra={"host": host, "port": sockets[0].getsockname()[1]})
    serving = asyncio.create_task(server.serve(sockets=sockets), name="native http")
    stopping = asyncio.create_task(stop.wait(), name="native http stop")
    try:
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        stopping.cancel()
        serving.cancel()
        for listener in sockets:
            listener.close()


class _Server(uvicorn.Server):
    """Signals are the host's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> list[socket.socket]:
    """A listener on each loopback address of `host`. Port 0: one that the system chooses. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as e:
        raise ConfigError(f"the engine's own port: {host}: {e.strerror or e}") from None
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        raise ConfigError(f"the engine's own port: {host} is not loopback; it has no keys and no limits")
    sockets: list[socket.socket] = []
    try:
        for address in sorted(addresses, key=lambda a: ":" in a):
            listener = _bind(address, port, optional=bool(sockets))
            if listener is not None:
                sockets.append(listener)
                port = port or listener.getsockname()[1]
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def _bind(address: str, port: int, *, optional: bool) -> socket.socket | None:
    """`optional`: a second address family that this machine may not have."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as e:
        listener.close()
        if optional and e.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise ConfigError(f"the engine's own port: {address}:{port}: {e.strerror}") from None
    return listener

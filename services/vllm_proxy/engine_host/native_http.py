"""The engine's own HTTP application on its own port, loopback only: what `vllm serve` would offer there.

Nobody counts or limits here, and only an engine started with `--api-key` authenticates. The two LoRA routes go through
the host's registry, so that there is one truth about adapters; answers and errors have vLLM's shapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import orjson
import uvicorn

from vllm_proxy.common.errors import AdapterExists, AdapterNotFound, ServiceError
from vllm_proxy.common.settings import ConfigError
from vllm_proxy.engine_host.engines.base import AsgiApp, Receive, Scope, Send
from vllm_proxy.engine_host.lora.registry import NATIVE, AdapterRegistry

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1024 * 1024
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
) -> None:
    """Serves until `stop`. `registry` None: the engine takes no adapters. `api_keys`: the engine's own, if it has any.

    Raises ConfigError if `host` is not loopback or the port cannot be had."""
    sockets = listen(host, port)
    config = uvicorn.Config(
        with_lora_routes(app, registry, api_keys) if registry is not None else app,
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
        raise ConfigError(f"vllm_host: {host}: {e.strerror or e}") from None
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        raise ConfigError(f"vllm_host: {host} is not loopback; the engine's own port has no keys and no limits")
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
        raise ConfigError(f"vllm_port: {address}:{port}: {e.strerror}") from None
    return listener


def with_lora_routes(app: AsgiApp, registry: AdapterRegistry, api_keys: Sequence[str] = ()) -> AsgiApp:
    """`app` with vLLM's LoRA routes answered by the registry. Where updates are off, they are not there (404).

    Web pages are kept out: a browser on this machine must not load an adapter because some page says so.
    """
    handlers: dict[str, Callable[[AdapterRegistry, dict[str, Any]], Awaitable[str]]] = {
        "/v1/load_lora_adapter": _load,
        "/v1/unload_lora_adapter": _unload,
    }

    async def native(scope: Scope, receive: Receive, send: Send) -> None:
        handler = handlers.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None:
            await app(scope, receive, send)
            return
        if not registry.updates_allowed:
            await _answer_error(send, 404, "NotFoundError", "Not Found")
            return
        if scope["method"] != "POST":
            await _answer_error(send, 405, "BadRequestError", "Method Not Allowed", (b"allow", b"POST"))
            return
        headers = dict(scope.get("headers", ()))
        if b"origin" in headers:
            await _answer_error(send, 403, "ForbiddenError", "Web pages may not change adapters.")
            return
        if api_keys and not _knows_key(headers.get(b"authorization", b""), api_keys):
            await _answer_error(send, 401, "AuthenticationError", "Unauthorized")
            return
        body = await _read_body(receive)
        try:
            arguments = orjson.loads(body) if body is not None else None
        except orjson.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            await _answer_error(send, 400, "BadRequestError", "The body is not a JSON object.")
            return
        try:
            text = await handler(registry, arguments)
        except _Refused as e:
            await _answer_error(send, e.status, e.kind, str(e))
        except ServiceError as e:
            await _answer_error(send, e.http_status, "BadRequestError" if e.http_status < 500 else e.reason, e.message)
        except Exception:
            log.exception("native LoRA route failed", extra={"path": scope["path"]})
            await _answer_error(send, 500, "InternalServerError", "The adapter could not be changed.")
        else:
            await _answer(send, 200, text.encode(), b"text/plain; charset=utf-8")

    return native


def _knows_key(authorization: bytes, api_keys: Sequence[str]) -> bool:
    scheme, _, shown = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and any(hmac.compare_digest(shown.strip(), key.encode()) for key in api_keys)


class _Refused(Exception):
    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


async def _load(registry: AdapterRegistry, arguments: dict[str, Any]) -> str:
    name, path = arguments.get("lora_name"), arguments.get("lora_path")
    if not (isinstance(name, str) and name and isinstance(path, str) and path):
        raise _Refused(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
    replace = arguments.get("load_inplace") is True
    base = arguments.get("base_model_name")
    try:
        await registry.load(name, path, base if isinstance(base, str) else "", origin=NATIVE, replace=replace)
    except AdapterExists:
        raise _Refused(
            400,
            "InvalidUserInput",
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            "'load_inplace' to True.",
        ) from None
    return f"Success: LoRA adapter '{name}' added successfully."


async def _unload(registry: AdapterRegistry, arguments: dict[str, Any]) -> str:
    name = arguments.get("lora_name")
    if not (isinstance(name, str) and name):
        raise _Refused(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
    try:
        await registry.unload(name, native=True)
    except AdapterNotFound:
        raise _Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.") from None
    return f"Success: LoRA adapter '{name}' removed successfully."


async def _read_body(receive: Receive) -> bytes | None:
    """None if it is too large or the client went away."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > _MAX_BODY_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer_error(send: Send, status: int, kind: str, message: str, *headers: tuple[bytes, bytes]) -> None:
    error = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    await _answer(send, status, orjson.dumps(error), b"application/json", *headers)


async def _answer(send: Send, status: int, body: bytes, media_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = str(len(body)).encode()
    start = [(b"content-type", media_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})

"""The engines' own LoRA routes, answered by the host's registry in each engine's shapes."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from vllm_proxy.common.errors import AdapterExists, AdapterNotFound, ServiceError
from vllm_proxy.engine_host.engines.base import AsgiApp, Receive, Scope, Send
from vllm_proxy.engine_host.lora.registry import NATIVE, AdapterRegistry

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoraRoutes:
    """One engine's LoRA routes: what is done, and how it is answered."""

    #: Path -> what it does; returns the answer's body. Raises ServiceError, _Refused.
    handlers: Mapping[str, Callable[[AdapterRegistry, dict[str, Any]], Awaitable[bytes]]]
    media_type: bytes
    #: (HTTP status, a word for the kind, a sentence) -> the body of a refusal.
    refusal: Callable[[int, str, str], bytes]


def with_lora_routes(
    app: AsgiApp, registry: AdapterRegistry, api_keys: Sequence[str] = (), routes: LoraRoutes | None = None
) -> AsgiApp:
    """`app` with the engine's LoRA routes (default: vLLM's) answered by the registry. Where updates are off, they are
    not there (404).

    Web pages are kept out: a browser on this machine must not load an adapter because some page says so.
    """
    routes = routes or VLLM_ROUTES
    refusal = routes.refusal

    async def refuse(send: Send, status: int, kind: str, message: str, *headers: tuple[bytes, bytes]) -> None:
        await _answer(send, status, refusal(status, kind, message), b"application/json", *headers)

    async def native(scope: Scope, receive: Receive, send: Send) -> None:
        handler = routes.handlers.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None:
            await app(scope, receive, send)
            return
        if not registry.updates_allowed:
            await refuse(send, 404, "NotFoundError", "Not Found")
            return
        if scope["method"] != "POST":
            await refuse(send, 405, "BadRequestError", "Method Not Allowed", (b"allow", b"POST"))
            return
        headers = dict(scope.get("headers", ()))
        if b"origin" in headers:
            await refuse(send, 403, "ForbiddenError", "Web pages may not change adapters.")
            return
        if api_keys and not _knows_key(headers.get(b"authorization", b""), api_keys):
            await refuse(send, 401, "AuthenticationError", "Unauthorized")
            return
        sent = await _read_body(receive)
        try:
            arguments = orjson.loads(sent) if sent is not None else None
        except orjson.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            await refuse(send, 400, "BadRequestError", "The body is not a JSON object.")
            return
        try:
            body = await handler(registry, arguments)
        except _Refused as e:
            await refuse(send, e.status, e.kind, str(e))
        except ServiceError as e:
            await refuse(send, e.http_status, "BadRequestError" if e.http_status < 500 else e.reason, e.message)
        except Exception:
            log.exception("native LoRA route failed", extra={"path": scope["path"]})
            await refuse(send, 500, "InternalServerError", "The adapter could not be changed.")
        else:
            await _answer(send, 200, body, routes.media_type)

    return native


def _knows_key(authorization: bytes, api_keys: Sequence[str]) -> bool:
    scheme, _, shown = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and any(hmac.compare_digest(shown.strip(), key.encode()) for key in api_keys)


class _Refused(Exception):
    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


async def _load(registry: AdapterRegistry, arguments: dict[str, Any]) -> bytes:
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
    return f"Success: LoRA adapter '{name}' added successfully.".encode()


async def _unload(registry: AdapterRegistry, arguments: dict[str, Any]) -> bytes:
    name = arguments.get("lora_name")
    if not (isinstance(name, str) and name):
        raise _Refused(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
    try:
        await registry.unload(name, native=True)
    except AdapterNotFound:
        raise _Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.") from None
    return f"Success: LoRA adapter '{name}' removed successfully.".encode()


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


def _vllm_refusal(status: int, kind: str, message: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})


async def _answer(send: Send, status: int, body: bytes, media_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = str(len(body)).encode()
    start = [(b"content-type", media_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


VLLM_ROUTES = LoraRoutes(
    {"/v1/load_lora_adapter": _load, "/v1/unload_lora_adapter": _unload}, b"text/plain; charset=utf-8", _vllm_refusal
)


# SGLang's.


async def _sglang_load(registry: AdapterRegistry, arguments: dict[str, Any]) -> bytes:
    name, path = arguments.get("lora_name"), arguments.get("lora_path")
    if not (isinstance(name, str) and name and isinstance(path, str) and path):
        raise _Refused(400, "", "Both 'lora_name' and 'lora_path' must be provided.")
    await registry.load(name, path, "", origin=NATIVE)
    return _sglang_success(registry)


async def _sglang_unload(registry: AdapterRegistry, arguments: dict[str, Any]) -> bytes:
    name = arguments.get("lora_name")
    if not (isinstance(name, str) and name):
        raise _Refused(400, "", "'lora_name' must be provided.")
    try:
        await registry.unload(name, native=True)
    except AdapterNotFound as e:
        raise _Refused(400, "", e.message) from None  # as SGLang says it
    return _sglang_success(registry)


async def _sglang_tensors(registry: AdapterRegistry, arguments: dict[str, Any]) -> bytes:
    raise _Refused(403, "", "Adapters are loaded from folders only, so that they can be checked.")


def _sglang_success(registry: AdapterRegistry) -> bytes:
    loaded = {adapter.name: str(adapter.path) for adapter in registry.adapters()}
    return orjson.dumps({"success": True, "error_message": "", "loaded_adapters": loaded})


def _sglang_refusal(status: int, kind: str, message: str) -> bytes:
    return orjson.dumps({"success": False, "error_message": message, "loaded_adapters": None})


SGLANG_ROUTES = LoraRoutes(
    {
        "/load_lora_adapter": _sglang_load,
        "/unload_lora_adapter": _sglang_unload,
        "/load_lora_adapter_from_tensors": _sglang_tensors,
    },
    b"application/json",
    _sglang_refusal,
)

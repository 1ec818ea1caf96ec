from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_proxy.common.errors import AdapterExists, AdapterNotFound, InvalidAdapter, ServiceError
from vllm_proxy.common.settings import ConfigError
from vllm_proxy.engine_host.lora.registry import NATIVE
from vllm_proxy.engine_host.native_http import listen
from vllm_proxy.engine_host.native_lora import SGLANG_ROUTES, VLLM_ROUTES, LoraRoutes, with_lora_routes


class FakeRegistry:
    def __init__(self, error: Exception | None = None, updates: bool = True) -> None:
        self.updates_allowed = updates
        self.calls: list[Any] = []
        self._error = error

    async def load(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((args, kwargs))
        if self._error:
            raise self._error

    async def unload(self, *args: Any, **kwargs: Any) -> None:
        await self.load(*args, **kwargs)

    def adapters(self) -> list[Any]:
        return []


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"the engine"})


async def ask(
    registry: FakeRegistry,
    path: str,
    body: Any,
    method: str = "POST",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    api_keys: tuple[str, ...] = (),
    routes: LoraRoutes = VLLM_ROUTES,
) -> tuple[int, str]:
    sent: list[dict[str, Any]] = []
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    fake: Any = registry
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    await with_lora_routes(app, fake, api_keys, routes)(scope, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
BODY = {"lora_name": "a", "lora_path": "/p"}


async def test_load_and_unload() -> None:
    registry = FakeRegistry()
    assert await ask(registry, LOAD, BODY) == (200, "Success: LoRA adapter 'a' added successfully.")
    assert await ask(registry, LOAD, {**BODY, "load_inplace": True}) == (
        200,
        "Success: LoRA adapter 'a' added successfully.",
    )
    assert await ask(registry, UNLOAD, BODY) == (200, "Success: LoRA adapter 'a' removed successfully.")
    assert registry.calls == [
        (("a", "/p", ""), {"origin": NATIVE, "replace": False}),
        (("a", "/p", ""), {"origin": NATIVE, "replace": True}),
        (("a",), {"native": True}),
    ]


@pytest.mark.parametrize(
    ("path", "body", "error", "status", "kind"),
    [
        (LOAD, {"lora_name": "a"}, None, 400, "InvalidUserInput"),
        (LOAD, {"lora_name": 3, "lora_path": "/p"}, None, 400, "InvalidUserInput"),
        (LOAD, b"{", None, 400, "BadRequestError"),
        (LOAD, b"[]", None, 400, "BadRequestError"),
        (LOAD, b" " * 2_000_000, None, 400, "BadRequestError"),
        (LOAD, BODY, AdapterExists(), 400, "InvalidUserInput"),
        (LOAD, BODY, InvalidAdapter("why"), 400, "BadRequestError"),
        (LOAD, BODY, RuntimeError("secret"), 500, "InternalServerError"),
        (UNLOAD, {}, None, 400, "InvalidUserInput"),
        (UNLOAD, BODY, AdapterNotFound(), 404, "NotFoundError"),
    ],
)
async def test_errors_have_the_engines_shape(
    path: str, body: Any, error: Exception | None, status: int, kind: str
) -> None:
    answered, text = await ask(FakeRegistry(error), path, body)
    shape = json.loads(text)["error"]
    assert (answered, shape["code"], shape["type"], shape["param"]) == (status, status, kind, None)
    assert "secret" not in shape["message"]


async def test_where_updates_are_off_the_routes_are_not_there() -> None:
    assert (await ask(FakeRegistry(updates=False), LOAD, BODY))[0] == 404
    assert (await ask(FakeRegistry(), LOAD, BODY, method="GET"))[0] == 405


async def test_everything_else_is_the_engines() -> None:
    assert await ask(FakeRegistry(), "/v1/models", {}) == (299, "the engine")


def test_loopback_only() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ConfigError, match="loopback"):
            listen(host, 0)
    first, *rest = listen("localhost", 0)
    try:
        with pytest.raises(ConfigError, match="already in use"):
            listen("127.0.0.1", first.getsockname()[1])
    finally:
        for listener in (first, *rest):
            listener.close()


async def test_a_web_page_changes_nothing() -> None:
    registry = FakeRegistry()
    status, _ = await ask(registry, LOAD, BODY, headers=((b"origin", b"http://elsewhere.example"),))
    assert (status, registry.calls) == (403, [])


@pytest.mark.parametrize(
    ("authorization", "status"),
    [(b"", 401), (b"Bearer no", 401), (b"Bearer k2", 200), (b"bearer k1", 200), (b"k1", 401)],
)
async def test_the_engines_own_key_is_wanted_where_it_has_one(authorization: bytes, status: int) -> None:
    headers = ((b"authorization", authorization),)
    assert (await ask(FakeRegistry(), LOAD, BODY, headers=headers, api_keys=("k1", "k2")))[0] == status


async def test_sglangs_routes_answer_in_its_shapes() -> None:
    async def said(registry: FakeRegistry, path: str, body: Any) -> tuple[int, Any]:
        status, text = await ask(registry, path, body, routes=SGLANG_ROUTES)
        return status, json.loads(text)

    def status_of(error: ServiceError) -> int:
        return 400 if isinstance(error, AdapterNotFound) else error.http_status

    done = {"success": True, "error_message": "", "loaded_adapters": {}}
    registry = FakeRegistry()
    assert await said(registry, "/load_lora_adapter", {**BODY, "pinned": True}) == (200, done)
    assert await said(registry, "/unload_lora_adapter", BODY) == (200, done)
    assert registry.calls == [(("a", "/p", ""), {"origin": NATIVE}), (("a",), {"native": True})]
    for error, path in (
        (InvalidAdapter("no such folder"), "/load_lora_adapter"),
        (AdapterExists("no such folder"), "/load_lora_adapter"),
        (AdapterNotFound("no such folder"), "/unload_lora_adapter"),
    ):
        status, answer = await said(FakeRegistry(error), path, BODY)
        assert (status, answer["success"], answer["error_message"]) == (status_of(error), False, "no such folder")
    status, answer = await said(FakeRegistry(), "/load_lora_adapter_from_tensors", {})
    assert (status, answer["success"]) == (403, False)
    # vLLM's are the engine's own affair there.
    assert await ask(FakeRegistry(), LOAD, BODY, routes=SGLANG_ROUTES) == (299, "the engine")

"""Cross-origin requests."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from vllm_proxy.edge.cors import Cors

PAGE = "https://chat.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def ask(origins: list[str], method: str, **headers: str) -> httpx.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Cors(app, origins)), base_url="http://edge") as http:
        return await http.request(method, "/v1/models", headers=named)


@pytest.mark.parametrize(("origins", "shown"), [([PAGE + "/"], PAGE), (["*"], "*")])
async def test_a_page_that_may(origins: list[str], shown: str) -> None:
    answer = await ask(origins, "GET", origin=PAGE)
    assert (answer.text, answer.headers["access-control-allow-origin"]) == ("hello", shown)
    assert answer.headers["vary"] == "Origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    answer = await ask(origins, "OPTIONS", origin=PAGE, **PREFLIGHT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in answer.headers["access-control-allow-methods"]


async def test_a_page_that_may_not_and_no_page() -> None:
    for origin in ("https://evil.example", "null", PAGE + ".evil.example"):
        for method in ("GET", "OPTIONS"):
            answer = await ask([PAGE], method, origin=origin, **PREFLIGHT)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    answer = await ask([PAGE], "GET")
    assert not [name for name in answer.headers if name.startswith("access-control-")]

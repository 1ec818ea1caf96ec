"""Cross-origin requests."""

from __future__ import annotations

import time

import httpx
import pytest
from tests.unit.edge.http_peer import LIMITS, HttpxTransport

from vllm_proxy.common.errors import ServiceError
from vllm_proxy.edge.cors import Cors
from vllm_proxy.edge.http_request import HttpRequest
from vllm_proxy.edge.http_server import HttpServer

PAGE = "https://chat.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


class Door:
    def body_limit_bytes(self, request: HttpRequest) -> int:
        return 100

    def handle(self, request: HttpRequest) -> None:
        request.response.send(200, [(b"content-type", b"text/plain")], b"hello")

    def refuse(self, request: HttpRequest, error: ServiceError) -> None:
        request.response.send_error(error)


async def ask(origins: list[str], method: str, **headers: str) -> httpx.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    transport = HttpxTransport(HttpServer(Cors(Door(), origins), LIMITS, time.monotonic))
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as http:
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

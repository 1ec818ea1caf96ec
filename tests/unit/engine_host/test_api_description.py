"""The engine's own OpenAPI document, asked of its application."""

from __future__ import annotations

from fastapi import FastAPI

from vllm_proxy.engine_host.api_description import read_description
from vllm_proxy.engine_host.engines.base import Message, Receive, Scope, Send


async def test_it_comes_as_it_is() -> None:
    app = FastAPI(title="An engine")
    assert b'"title":"An engine"' in await read_description(app)


async def test_in_pieces_and_with_a_wait_for_the_client_to_leave() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["more_body"] is False
        await send({"type": "http.response.start", "status": 200, "headers": []})
        pieces: list[Message] = [
            {"type": "http.response.body", "body": b"{", "more_body": True},
            {"type": "http.response.body", "body": b"}"},
        ]
        for piece in pieces:
            await send(piece)
        assert (await receive())["type"] == "http.disconnect"

    assert await read_description(app) == b"{}"


async def test_an_engine_without_one() -> None:
    assert await read_description(FastAPI(openapi_url=None)) == b""

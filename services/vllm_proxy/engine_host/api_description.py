"""Asks the engine's application for its own OpenAPI document, which clients cannot reach."""

from __future__ import annotations

import asyncio

from vllm_proxy.engine_host.engines.base import AsgiApp, Message, Scope

_PATH = "/openapi.json"


async def read_description(app: AsgiApp) -> bytes:
    """Empty if the engine has none. Raises what `app` raises."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": _PATH,
        "raw_path": _PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"accept", b"application/json")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    pieces: list[bytes] = []
    status = 0
    over = asyncio.Event()
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await over.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                over.set()

    await app(scope, receive, send)
    return b"".join(pieces) if status == 200 else b""

"""Tokens counted at the source equal vLLM's own `usage`; an aborted request is counted for what it produced."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

import httpx
import pytest
from tests.engine.columns import BASE
from tests.engine.running import EngineClient
from tests.support.wait import eventually

LONG = {"max_tokens": 800, "ignore_eos": True}


def _pair(meter: dict[str, int]) -> tuple[int, int]:
    return meter["prompt_tokens"], meter["completion_tokens"]


def _usage(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"]


@pytest.mark.row("usage is the engine's own (n=2, stop, logprobs, streamed or not)")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "more",
    [
        {"n": 2, "temperature": 0.7},
        *(
            pytest.param(more, marks=pytest.mark.one_host)
            for more in ({}, {"stop": ["France"]}, {"max_tokens": 1}, {"logprobs": True})
        ),
    ],
    ids=["n2", "plain", "stop", "one", "logprobs"],
)
async def test_chat_usage_is_the_engines_own(client: EngineClient, stream: bool, more: dict[str, Any]) -> None:
    body = client.chat_body(BASE, **{"stream": stream, "max_tokens": 10, **more})
    meter, usage = await client.metered("/v1/chat/completions", body)
    assert _pair(meter) == _usage(usage)
    assert meter["completion_tokens"] > 0


@pytest.mark.row("usage is the engine's own (n=2, stop, logprobs, streamed or not)")
@pytest.mark.one_host
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "more",
    [{"prompt": "Once upon a time"}, {"prompt": ["One", "Two two"]}, {"prompt": "Hi", "n": 2}, {"prompt": [1, 2, 3]}],
    ids=["text", "two-prompts", "n2", "ids"],
)
async def test_completion_usage_is_the_engines_own(client: EngineClient, stream: bool, more: dict[str, Any]) -> None:
    body = {"model": BASE, "max_tokens": 8, "stream": stream, **more}
    meter, usage = await client.metered("/v1/completions", body)
    assert _pair(meter) == _usage(usage)


@pytest.mark.row("cached prompt tokens")
async def test_cached_prompt_tokens(client: EngineClient) -> None:
    body = {"model": BASE, "max_tokens": 1, "prompt": f"{uuid.uuid4()} " * 20}
    first, _ = await client.metered("/v1/completions", body)
    second, _ = await client.metered("/v1/completions", body)
    assert first["cached_tokens"] == 0
    assert 0 < second["cached_tokens"] < second["prompt_tokens"] == first["prompt_tokens"]


@pytest.mark.row("a refused request costs nothing")
async def test_a_refused_request_costs_nothing(client: EngineClient) -> None:
    headers = {"x-test-id": "refused"}
    answer = await client.http.post("/v1/chat/completions", json=client.chat_body("nobody"), headers=headers)
    assert answer.status_code == 404
    assert "`nobody` does not exist" in answer.json()["error"]["message"]
    assert _pair(await client.meter("refused")) == (0, 0)


async def _leave(client: EngineClient, stream: bool, n: int) -> dict[str, int]:
    """Asks for much and leaves in the middle. Returns what was counted once the engine is free."""
    test_id = uuid.uuid4().hex
    body = client.chat_body(BASE, stream=stream, n=n, temperature=0.7, **LONG)

    async def ask() -> None:
        async with client.http.stream(
            "POST", "/v1/chat/completions", json=body, headers={"x-test-id": test_id}
        ) as answer:
            async for _ in answer.aiter_raw():
                pass

    asking = asyncio.create_task(ask())

    async def produced() -> bool:
        return (await client.load())["running"] == n and (not stream or _pair(await client.meter(test_id))[1] > 5)

    await eventually(produced, "running", 30)
    if not stream:
        # Nothing can be seen of it from outside yet; let it get some way into its answer.
        await client.chat(BASE, max_tokens=8)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
        await asking

    async def free() -> bool:
        load = await client.load()
        return load["running"] + load["waiting"] == 0

    await eventually(free, "the engine free", client.engine.column.load_is_known_within_s)
    return await client.meter(test_id)


@pytest.mark.row("a client that leaves frees the engine")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_disconnect_frees_the_engine_at_once(client: EngineClient, stream: bool) -> None:
    await _leave(client, stream, 2)


@pytest.mark.row("a client that leaves is charged for what was produced")
@pytest.mark.parametrize(("stream", "n"), [(False, 1), (True, 1), (True, 2)], ids=["whole", "streamed", "streamed-n2"])
async def test_a_disconnect_is_counted(client: EngineClient, stream: bool, n: int) -> None:
    prompt, completion = _pair(await _leave(client, stream, n))
    assert prompt > 20
    assert 1 < completion < n * LONG["max_tokens"]

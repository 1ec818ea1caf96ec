"""What waits in a full engine goes by the class of its key."""

from __future__ import annotations

import asyncio

import pytest
from tests.engine.columns import BASE, PLACES
from tests.engine.running import EngineClient
from tests.support.wait import eventually

WAITING = 12


@pytest.mark.row("a key's priority orders what waits")
@pytest.mark.one_host
async def test_a_high_class_passes_those_that_wait(client: EngineClient) -> None:
    ended: list[str] = []

    async def ask(name: str, priority: int, tokens: int) -> None:
        body = client.chat_body(BASE, max_tokens=tokens, ignore_eos=True)
        headers = {"x-test-priority": str(priority)}
        answer = await client.http.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        ended.append(name)

    async def is_full() -> bool:
        return bool((await client.load())["waiting"] >= WAITING)

    # They end one after the other, so that places are given to those that wait one by one.
    low = [asyncio.create_task(ask("low", 10, 48 + 4 * number)) for number in range(PLACES + WAITING)]
    try:
        await eventually(is_full, "requests waiting in the engine", 30)
        await ask("high", -10, 1)
        assert len(ended) < WAITING, ended
    finally:
        for task in low:
            task.cancel()
        await asyncio.gather(*low, return_exceptions=True)

"""A user's day through all four services on the real engine: models, adapters, limits, leaving, dying."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from tests.engine.columns import BASE
from tests.engine.running import ADAPTERS, QUESTION, pids_of_engine, voice
from tests.real_gateway import load_adapter, unload_adapter
from tests.support.cluster import ALICE, BOB, ApiKey, Cluster
from tests.support.wait import eventually, wait_until

MESSAGES = [{"role": "user", "content": QUESTION}]
SPEAKERS = {BASE: "base", "pirate": "pirate", "robot": "robot"}
ANSWERS = 300
#: Enough to hear who speaks.
TOKENS = 12


def sdk(gateway: Cluster, key: ApiKey = ALICE) -> openai.AsyncOpenAI:
    limits = httpx.Limits(max_connections=None)
    return openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=key.key,
        max_retries=0,
        timeout=300,
        http_client=httpx.AsyncClient(limits=limits, timeout=300),
    )


@pytest.fixture
async def client(gateway: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk(gateway) as client:
        yield client


async def load(gateway: Cluster, name: str, folder: str) -> None:
    answer = await asyncio.to_thread(load_adapter, gateway, name, folder)
    assert answer.status_code == 200, answer.text


async def unload(gateway: Cluster, name: str) -> None:
    answer = await asyncio.to_thread(unload_adapter, gateway, name)
    assert answer.status_code == 200, answer.text


async def ask(client: openai.AsyncOpenAI, model: str, **more: Any) -> str:
    answer = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=TOKENS, temperature=0, **more
    )
    return answer.choices[0].message.content or ""


async def ask_streamed(client: openai.AsyncOpenAI, model: str) -> str:
    stream = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=TOKENS, temperature=0, stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_the_base_an_adapter_and_one_dropped_into_the_folder(
    gateway: Cluster, client: openai.AsyncOpenAI
) -> None:
    await load(gateway, "pirate", "pirate")
    folder = gateway.root / "lora_cache" / "dropped"
    shutil.copytree(ADAPTERS / "robot", folder)
    try:
        assert voice(await ask(client, BASE)) == "base"
        assert voice(await ask(client, "pirate")) == "pirate"
        assert voice(await ask(client, "dropped")) == "robot"
        models = {model.id: model async for model in client.models.list()}
        assert next(iter(models)) == BASE and set(models) == {BASE, "pirate", "dropped"}
        assert models["pirate"].model_dump()["parent"] == BASE
    finally:
        shutil.rmtree(folder)
        await unload(gateway, "pirate")
        await unload(gateway, "dropped")
    for name in ("pirate", "dropped"):
        with pytest.raises(openai.NotFoundError, match=name) as caught:
            await ask(client, name)
        assert isinstance(caught.value.body, dict) and caught.value.body["code"] == 404


async def test_a_bad_adapter_is_refused_with_its_reason(gateway: Cluster) -> None:
    answer = await asyncio.to_thread(load_adapter, gateway, "x", "/etc")
    assert answer.status_code == 400
    assert "allowed_roots" in answer.json()["error"]["message"]


async def test_completions_and_usage_are_the_engines_own(gateway: Cluster, client: openai.AsyncOpenAI) -> None:
    before = await gateway.settled_usage()
    whole = await client.completions.create(
        model=BASE, prompt=["The capital of France is", "One two"], max_tokens=7, n=2
    )
    stream = await client.chat.completions.create(
        model=BASE, messages=MESSAGES, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    usages = [whole.usage, *[chunk.usage async for chunk in stream if chunk.usage]]
    assert len(usages) == 2
    used = await gateway.settled_usage() - before
    assert used.requests == 2
    assert used.prompt_tokens == sum(usage.prompt_tokens for usage in usages if usage)
    assert used.completion_tokens == sum(usage.completion_tokens for usage in usages if usage)


async def test_errors_are_the_engines_own(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.chat.completions.create(model=BASE, messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        await ask(client, "no-such-model")


async def test_a_wrong_key_and_a_limit(gateway: Cluster) -> None:
    async with sdk(gateway, ApiKey("sk-wrong", "nobody")) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await ask(stranger, BASE)
    gateway.write_config({"rate_limit": {"concurrent": 1}})
    try:
        async with sdk(gateway, BOB) as bob:

            async def second_is_refused() -> bool:
                first, second = await asyncio.gather(ask(bob, BASE), ask(bob, BASE), return_exceptions=True)
                return isinstance(first, openai.RateLimitError) or isinstance(second, openai.RateLimitError)

            await eventually(second_is_refused, "the limit in force", 30)
            # One after the other is within the limit, without a pause: a slot is free when its answer has ended.
            for _ in range(10):
                assert await ask_streamed(bob, BASE)
    finally:
        gateway.write_config({"rate_limit": {"concurrent": None}})


async def test_a_client_that_leaves_frees_the_engine_and_pays_what_was_made(gateway: Cluster) -> None:
    before = await gateway.settled_usage(BOB.user)
    async with sdk(gateway, BOB) as bob:
        stream = await bob.chat.completions.create(
            model=BASE, messages=MESSAGES, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        await stream.close()
        streamed = await gateway.settled_usage(BOB.user, 5) - before
        assert streamed.requests == 1 and 1 <= streamed.completion_tokens < 900
        whole = asyncio.create_task(
            bob.completions.create(model=BASE, prompt="Once", max_tokens=900, extra_body={"ignore_eos": True})
        )
        await eventually(lambda: gateway.control.usage(BOB.user).running == 1, "the second request running")
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
    used = await gateway.settled_usage(BOB.user, 5) - before
    assert used.requests == 2
    assert used.completion_tokens < streamed.completion_tokens + 900


async def test_three_hundred_answers_and_none_in_anothers_voice(gateway: Cluster, client: openai.AsyncOpenAI) -> None:
    for cycle in range(3):
        for name in random.Random(cycle).sample(["pirate", "robot"], 2):
            await load(gateway, name, name)
            assert voice(await ask(client, name)) == name
        if cycle < 2:
            for name in ("pirate", "robot"):
                await unload(gateway, name)

    async def heard(number: int, model: str) -> tuple[str, str]:
        asking = ask_streamed if number % 2 else ask
        return SPEAKERS[model], voice(await asking(client, model))

    models = [model for model in SPEAKERS for _ in range(ANSWERS // 3)]
    random.Random(0).shuffle(models)
    pairs = await asyncio.gather(*(heard(number, model) for number, model in enumerate(models)))
    assert [pair for pair in pairs if pair[0] != pair[1]] == []


async def test_a_killed_host_ends_streams_cleanly_and_comes_back_with_its_adapters(
    gateway: Cluster, client: openai.AsyncOpenAI
) -> None:
    """Begins with the adapters of the test above, which the router keeps."""
    stream = await client.chat.completions.create(
        model="pirate", messages=MESSAGES, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    chunks = aiter(stream)
    await anext(chunks)
    engine_pids = pids_of_engine(gateway.host.pid)
    assert engine_pids
    gateway.host.kill()
    with pytest.raises(openai.APIError, match="engine"):
        async for _ in chunks:
            pass
    wait_until(lambda: not pids_of_engine(gateway.host.pid), "no process of the engine", 5)
    await gateway.settled_usage()
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, BASE)
    assert caught.value.status_code == 503
    gateway.host.start()
    gateway.host.wait_healthy()

    async def both_back() -> bool:
        return {model.id async for model in client.models.list()} == {BASE, "pirate", "robot"}

    await eventually(both_back, "the declared adapters", 30)
    assert voice(await ask(client, "robot")) == "robot"
    assert voice(await ask(client, BASE)) == "base"
    for name in ("pirate", "robot"):
        await unload(gateway, name)

"""OpenAI's own Python client against a live edge: what works, and which of its errors comes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from tests.support.cluster import ADMIN, ALICE, DISABLED, ApiKey, Cluster
from tests.support.wait import eventually

MESSAGES = [{"role": "user", "content": "Say something."}]


def client_of(cluster: Cluster, key: ApiKey = ALICE) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=key.key, max_retries=0, timeout=20)


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(cluster) as client:
        yield client


async def test_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=5)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5
    assert answer._request_id and answer._request_id.startswith("req-")


async def test_chat_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="sim", messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = await client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=12)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12


async def test_the_stream_helper(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="sim", messages=MESSAGES) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content


async def test_a_stream_closed_early_is_settled(cluster: Cluster, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=100_000, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await eventually(lambda: cluster.control.usage(ALICE.user).running == 0, "the stream settled", 5)


async def test_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="sim", prompt=["One", "Two"], max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1]
    streamed = await client.completions.create(model="sim", prompt="One", max_tokens=3, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in streamed if chunk.choices]) == answer.choices[0].text


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["sim"]


@pytest.mark.parametrize("key", [ApiKey("sk-wrong", "nobody"), DISABLED], ids=["unknown", "disabled"])
async def test_a_wrong_key(cluster: Cluster, key: ApiKey) -> None:
    async with client_of(cluster, key) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.chat.completions.create(model="sim", messages=MESSAGES)
    assert caught.value.code in ("invalid_api_key", "key_disabled")
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_model(client: openai.AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        await client.chat.completions.create(model="no-such-model", messages=MESSAGES, stream=stream)


async def test_a_request_that_is_wrong(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="sim", messages=[])


async def test_an_unknown_url(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.files.list()


async def test_over_the_limit(cluster: Cluster, client: openai.AsyncOpenAI) -> None:
    cluster.write_config({"rate_limit": {"concurrent": 1}})
    try:
        await eventually(
            lambda: any(line.get("event") == "configuration applied" for line in cluster.auth.log_lines()),
            "the limit in force",
        )
        stream = await client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=100_000, stream=True)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="sim", messages=MESSAGES)
        assert caught.value.code == "concurrency"
        assert caught.value.response.headers["retry-after"] == "1"
        await stream.close()
        await eventually(lambda: cluster.control.usage(ALICE.user).running == 0, "the slot returned", 5)
        # With its own retries the client gets through by itself.
        patient = client.with_options(max_retries=3)
        assert (await patient.chat.completions.create(model="sim", messages=MESSAGES)).choices
    finally:
        cluster.write_config({"rate_limit": {"concurrent": None}})


async def test_a_spent_quota_is_not_asked_again(cluster: Cluster) -> None:
    key = (await cluster.client(ADMIN).request("POST", "/admin/keys", {"user": "spent", "quota": 0})).json()["key"]
    asked = []

    async def count(request: object) -> None:
        asked.append(request)

    http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key=key, max_retries=3, http_client=http) as poor:
        with pytest.raises(openai.RateLimitError) as caught:
            await poor.chat.completions.create(model="sim", messages=MESSAGES)
    assert caught.value.code == "quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(asked) == 1


def test_the_blocking_client(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=ALICE.key, max_retries=3) as client:
        answer = client.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=2)
    assert answer.choices[0].message.content

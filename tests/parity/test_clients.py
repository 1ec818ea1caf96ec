"""OpenAI's and Anthropic's own clients over what the conformance tests' simulated engine does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
from tests.parity.corpus import BASE, MESSAGES, PROMPT, QUESTION
from tests.support.cluster import ADMIN, ALICE, BOB, ApiKey, Cluster
from tests.support.http_client import Client

#: Anthropic's client has no parameter for it any more.
GREEDY = {"temperature": 0}


def openai_client(gateway: Cluster, key: ApiKey = ALICE) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key.key, max_retries=0, timeout=60)


@pytest.fixture
async def client(gateway: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_client(gateway) as client:
        yield client


@pytest.fixture
async def claude(gateway: Cluster) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=ALICE.key, max_retries=0) as claude:
        yield claude


async def test_responses(gateway: Cluster, client: openai.AsyncOpenAI) -> None:
    before = await gateway.settled_usage()
    answer = await client.responses.create(model=BASE, input="Hello", max_output_tokens=4, temperature=0)
    assert answer.output_text
    async with client.responses.stream(model=BASE, input="Hello", max_output_tokens=4, temperature=0) as stream:
        events = [event.type async for event in stream]
        whole = await stream.get_final_response()
    assert events[0] == "response.created" and events[-1] == "response.completed"
    assert whole.output_text == answer.output_text
    assert answer.usage is not None and whole.usage is not None
    used = await gateway.settled_usage() - before
    assert used.prompt_tokens == answer.usage.input_tokens + whole.usage.input_tokens
    assert used.completion_tokens == answer.usage.output_tokens + whole.usage.output_tokens


async def test_a_stored_response_is_its_keys_alone(gateway: Cluster, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=BASE, input="Hello", max_output_tokens=2, temperature=0)
    assert (await client.responses.retrieve(made.id)).output_text == made.output_text
    again = await client.responses.create(
        model=BASE, input="And?", previous_response_id=made.id, max_output_tokens=2, temperature=0
    )
    assert again.previous_response_id == made.id
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        await client.responses.cancel(made.id)
    async with openai_client(gateway, BOB) as bob:
        with pytest.raises(openai.NotFoundError, match=made.id):
            await bob.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await bob.responses.cancel(made.id)
        with pytest.raises(openai.NotFoundError, match=made.id):
            await bob.responses.create(model=BASE, input="And?", previous_response_id=made.id)
        # Nor can he put one in its place.
        other = await bob.responses.create(
            model=BASE, input="Other", max_output_tokens=2, extra_body={"request_id": made.id}
        )
        assert other.id != made.id
    assert (await client.responses.retrieve(made.id)).output_text == made.output_text


async def test_models(gateway: Cluster, client: openai.AsyncOpenAI) -> None:
    listed = {model.id: model.model_dump() async for model in client.models.list()}
    assert list(listed) == [BASE, "pirate", "robot"]
    assert listed["pirate"]["parent"] == BASE and listed[BASE]["parent"] is None
    assert [card["root"] for card in listed.values()] == list(listed)
    assert (await client.models.retrieve("pirate")).model_dump() == listed["pirate"]
    with pytest.raises(openai.NotFoundError, match="no-such"):
        await client.models.retrieve("no-such/model")
    async with openai_client(gateway, ADMIN) as admin:
        assert str((await admin.models.retrieve("pirate")).model_dump()["root"]).endswith("/pirate")


async def test_base_and_adapter_in_one_name(client: openai.AsyncOpenAI) -> None:
    async def ask(model: str) -> openai.types.Completion:
        return await client.completions.create(model=model, prompt=PROMPT, max_tokens=4, temperature=0)

    both, adapter = await ask(f"{BASE}:pirate"), await ask("pirate")
    assert (both.model, both.choices[0].text) == ("pirate", adapter.choices[0].text)


async def test_anthropics_messages(gateway: Cluster, claude: anthropic.AsyncAnthropic) -> None:
    before = await gateway.settled_usage()
    answer = await claude.messages.create(model=BASE, messages=QUESTION, max_tokens=4, extra_body=GREEDY)
    text = "".join(block.text for block in answer.content if block.type == "text")
    async with claude.messages.stream(model=BASE, messages=QUESTION, max_tokens=4, extra_body=GREEDY) as stream:
        assert "".join([piece async for piece in stream.text_stream]) == text
        whole = await stream.get_final_message()
    assert whole.stop_reason == answer.stop_reason == "max_tokens"
    used = await gateway.settled_usage() - before
    assert used.prompt_tokens == answer.usage.input_tokens + whole.usage.input_tokens
    assert used.completion_tokens == answer.usage.output_tokens + whole.usage.output_tokens == 8
    counted = await claude.messages.count_tokens(model=BASE, messages=QUESTION)
    assert counted.input_tokens == answer.usage.input_tokens


async def test_anthropics_errors(gateway: Cluster, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no-such"):
        await claude.messages.create(model="no-such", messages=QUESTION, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.create(model=BASE, messages=[], max_tokens=1)
    stranger = claude.with_options(api_key="sk-wrong")
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await stranger.messages.create(model=BASE, messages=QUESTION, max_tokens=1)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "authentication_error"


async def test_looking_up_costs_no_tokens(gateway: Cluster) -> None:
    before = await gateway.settled_usage(BOB.user)
    client = Client(gateway.port, BOB.key, BASE)
    answer = await client.request("POST", "/tokenize", {"model": BASE, "prompt": PROMPT})
    assert answer.status == 200 and answer.json()["count"] > 0
    assert (await client.request("GET", "/version")).status == 200
    assert (
        await client.request("POST", MESSAGES + "/count_tokens", {"model": BASE, "messages": QUESTION})
    ).status == 200
    used = await gateway.settled_usage(BOB.user) - before
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (3, 0, 0)


async def test_without_a_key(gateway: Cluster) -> None:
    client = Client(gateway.port, "")
    for path in ("/v1/completions", MESSAGES, "/tokenize", "/v1/responses", "/v1/audio/transcriptions"):
        assert (await client.request("POST", path, b"{}")).status == 401
    for path in ("/v1/models", "/v1/models/pirate", "/version", "/v1/responses/resp_x"):
        assert (await client.request("GET", path)).status == 401

"""OpenAI's and Anthropic's own clients over what the conformance tests' simulated engine does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest
from tests.parity.corpus import BASE, MESSAGES, PROMPT, QUESTION
from tests.support.cluster import ADMIN, ALICE, BOB, ApiKey, Cluster
from tests.support.http_client import Client

#: Anthropic's client has no parameter for it any more.
GREEDY = {"temperature": 0}


class Light(pydantic.BaseModel):
    state: Literal["on", "off"]


LIGHT = openai.pydantic_function_tool(Light, name="switch_light", description="Switches the light.")


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


async def test_a_tool(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": BASE, "messages": QUESTION, "tools": [LIGHT], "temperature": 0, "max_tokens": 64}
    for choice in ({"type": "function", "function": {"name": "switch_light"}}, "required"):
        answer = await client.chat.completions.create(**asked, tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls or ()
        assert call.type == "function" and call.function.name == "switch_light"
        async with client.chat.completions.stream(**asked, tool_choice=choice) as stream:
            kinds = {event.type async for event in stream}
            streamed = (await stream.get_final_completion()).choices[0].message.tool_calls
        assert "tool_calls.function.arguments.delta" in kinds
        assert [one.function.arguments for one in streamed or ()] == [call.function.arguments]
        assert Light.model_validate_json(call.function.arguments)


async def test_structured_output(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model=BASE, messages=QUESTION, response_format=Light, temperature=0, max_tokens=64
    )
    assert isinstance(answer.choices[0].message.parsed, Light)
    made = await client.responses.parse(
        model=BASE, input="Hello", text_format=Light, temperature=0, max_output_tokens=64
    )
    assert isinstance(made.output_parsed, Light)


async def test_log_probabilities(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model=BASE, messages=QUESTION, max_tokens=2, temperature=0, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    tokens = chat.choices[0].logprobs.content or []
    assert [len(token.top_logprobs) for token in tokens] == [2, 2]
    assert tokens[0].token == tokens[0].top_logprobs[0].token
    text = await client.completions.create(
        model=BASE, prompt=PROMPT, max_tokens=2, temperature=0, logprobs=1, echo=True
    )
    assert text.choices[0].text.startswith(PROMPT) and text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs.tokens or ()) > 2


async def test_the_raw_response(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": BASE, "messages": QUESTION, "max_tokens": 2, "extra_headers": {"x-request-id": "from-sdk"}}
    raw = await client.chat.completions.with_raw_response.create(**asked)
    assert raw.headers["x-request-id"] == raw.parse()._request_id == "from-sdk"
    async with client.chat.completions.with_streaming_response.create(**asked, stream=True) as streaming:
        assert streaming.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in streaming.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def test_a_time_out_ends_the_request_and_is_charged_for_what_was_made(
    gateway: Cluster, client: openai.AsyncOpenAI
) -> None:
    before = await gateway.settled_usage()
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(
            model=BASE, messages=QUESTION, max_tokens=900, timeout=1, extra_body={"ignore_eos": True}
        )
    used = await gateway.settled_usage() - before
    assert used.requests == 1 and 0 < used.completion_tokens < 900


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


async def test_anthropics_tool(claude: anthropic.AsyncAnthropic) -> None:
    tool: Any = {"name": "switch_light", "strict": True, "input_schema": Light.model_json_schema()}
    async with claude.messages.stream(
        model=BASE,
        messages=QUESTION,
        max_tokens=64,
        tools=[tool],
        tool_choice={"type": "tool", "name": "switch_light"},
        extra_body=GREEDY,
    ) as stream:
        answer = await stream.get_final_message()
    (block,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use" and block.name == "switch_light"
    assert Light.model_validate(block.input)


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

"""The base and two adapters answer, each in its own voice, whatever the batch and the history."""

from __future__ import annotations

import asyncio
import json
import random
import re

import httpx
import pytest
from tests.engine.columns import BASE
from tests.engine.running import EngineClient, voice

#: Enough to hear who speaks.
TOKENS = 12
SPEAKERS = {BASE: "base", "pirate": "pirate", "robot": "robot"}
#: On a busy machine an engine tells of two steps together now and then. A difference that is ours shows each time.
ATTEMPTS = 6


@pytest.mark.row("base and two adapters, streamed and not")
async def test_each_model_says_its_own_sentence_streamed_and_not(voices: EngineClient) -> None:
    for model, speaker in SPEAKERS.items():
        assert voice(await voices.chat(model)) == speaker
        assert voice(await voices.chat_stream(model)) == speaker


@pytest.mark.row("text completions, typed generation")
async def test_completions_and_typed_generation(voices: EngineClient) -> None:
    prompt = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    for model in ("pirate", "robot"):
        body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0}
        answer = await voices.http.post("/v1/completions", json=body)
        assert voice(answer.json()["choices"][0]["text"]) == model
        typed = (await voices.http.post("/test/generate", json=body)).json()
        assert voice(typed["text"]) == model
        assert typed["finish_reason"] == "stop"
        counted = typed["meter"]["completion_tokens"]
        assert counted > 0
        assert typed["token_ids"] == (counted if voices.engine.column.tells_token_ids else 0)


@pytest.mark.row("log probabilities, n=2")
async def test_log_probabilities_of_two_choices(client: EngineClient) -> None:
    body = client.chat_body(BASE, n=2, logprobs=True, top_logprobs=2, max_tokens=5, temperature=0.7)
    answer = (await client.http.post("/v1/chat/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        assert len(choice["logprobs"]["content"]) == 5
        assert all(token["logprob"] <= 0 for token in choice["logprobs"]["content"])
    streamed = [event async for event in client.events("/v1/chat/completions", body)]
    tokens = [0, 0]
    for choice in (choice for event in streamed for choice in event["choices"]):
        tokens[choice["index"]] += len((choice.get("logprobs") or {}).get("content") or ())
    assert tokens == [5, 5]


@pytest.mark.row("streams are the engine's own, byte for byte")
@pytest.mark.parametrize(
    "options",
    [{}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}],
    ids=["plain", "usage", "running-usage"],
)
async def test_a_stream_is_the_engines_own(client: EngineClient, options: dict[str, bool]) -> None:
    more = {"stream": True, "max_tokens": 6}
    body = client.chat_body(BASE, **more, **({"stream_options": options} if options else {}))
    prompts = {"model": BASE, "prompt": ["One", "Two two"], "stream": True, "max_tokens": 4, "temperature": 0}
    text = {**prompts, **({"stream_options": options} if options else {})}
    async with httpx.AsyncClient(base_url=client.engine.native_url, timeout=60) as native:
        for path, asked in (("/v1/chat/completions", body), ("/v1/completions", text)):
            for attempt in range(ATTEMPTS):
                through = await client.http.post(path, json=asked)
                direct = await native.post(path, json=asked)
                assert (through.status_code, direct.status_code) == (200, 200)
                if _by_choice(through.content) == _by_choice(direct.content):
                    break
                assert attempt < ATTEMPTS - 1, f"{through.content!r}\n{direct.content!r}"
            assert through.headers["content-type"] == direct.headers["content-type"]


def _by_choice(stream: bytes) -> dict[bytes, list[bytes]]:
    """Events without id and time, by choice: choices of one batch interleave as they like."""
    events: dict[bytes, list[bytes]] = {}
    for event in stream.split(b"\n\n"):
        same = re.sub(rb'"id":"[^"]*"|"created":\d+', b"", event)
        choice = re.search(rb'"index":(\d+)', same)
        events.setdefault(choice[1] if choice else b"", []).append(same)
    return events


@pytest.mark.row("JSON schema")
async def test_an_answer_that_fits_a_json_schema(voices: EngineClient) -> None:
    # Nothing that a small model could fill with blanks for ever.
    schema = {"type": "string", "enum": ["red", "dark blue"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema, "strict": True}}
    for model in (BASE, "pirate"):
        said = await voices.chat(model, response_format=form, max_tokens=16)
        assert json.loads(said) in schema["enum"]


@pytest.mark.row("no mixed voices: many answers at once after loads and unloads")
async def test_nobody_speaks_in_another_voice_after_loads_and_unloads(voices: EngineClient) -> None:
    # Every slot of the engine has held an adapter, the last one too, and some have been freed again.
    for cycle in range(3):
        for name in ("pirate", "robot"):
            assert (await voices.unload_adapter(name)).status_code == 200
        for name in random.Random(cycle).sample(["pirate", "robot", "again"], 3):
            folder = "robot" if name == "again" else name
            assert (await voices.load_adapter(name, f"adapters/{folder}")).status_code == 200
            assert voice(await voices.chat(name)) == folder
        assert (await voices.unload_adapter("again")).status_code == 200

    async def ask(number: int, model: str) -> tuple[str, str]:
        asking = voices.chat_stream if number % 2 else voices.chat
        return SPEAKERS[model], voice(await asking(model, max_tokens=TOKENS))

    models = [*SPEAKERS] * (voices.engine.column.mixed_answers // len(SPEAKERS))
    random.Random(0).shuffle(models)
    heard = await asyncio.gather(*(ask(number, model) for number, model in enumerate(models)))
    assert [pair for pair in heard if pair[0] != pair[1]] == []


@pytest.mark.row("no mixed voices: many answers at once after loads and unloads")
async def test_base_alone_is_untouched_by_an_adapter_in_the_last_slot(voices: EngineClient) -> None:
    # A batch of base requests only: vLLM's decode step has no shortcut for it.
    answers = await asyncio.gather(*(voices.chat(BASE) for _ in range(8)))
    assert {voice(answer) for answer in answers} == {"base"}


@pytest.mark.row("more adapters at once than slots")
async def test_more_adapters_at_once_than_slots_and_than_memory(voices: EngineClient) -> None:
    # max_loras 2, vLLM's max_cpu_loras 3: some wait for a slot, some are read again from disk.
    for number in range(3):
        answer = await voices.load_adapter(f"copy-{number}", f"adapters/{('pirate', 'robot')[number % 2]}")
        assert answer.status_code == 200
    speakers = {**SPEAKERS, "copy-0": "pirate", "copy-1": "robot", "copy-2": "pirate"}
    models = list(speakers) * (voices.engine.column.mixed_answers // 16)
    answers = await asyncio.gather(*(voices.chat(model, max_tokens=TOKENS) for model in models))
    assert [voice(answer) for answer in answers] == [speakers[model] for model in models]

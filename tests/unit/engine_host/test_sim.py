"""The simulator: what it says, what it counts, and its timing model on a stepped clock."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.wait import eventually
from tests.unit.engine_host.rig import Rig, chat

from vllm_proxy.api.engine.v1 import engine_pb2 as pb
from vllm_proxy.common.settings import Sim
from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.priority import current_priority
from vllm_proxy.engine_host.engines.sim import SimEngine
from vllm_proxy.engine_host.engines.sim_batch import Batch, Sequence


class Counted(Sequence):
    """Remembers in which step each token came."""

    def __init__(self, clock: Clock, prompt_tokens: int, max_tokens: int, **options: Any) -> None:
        super().__init__("m", prompt_tokens, max_tokens, UsageMeter(), **options)
        self.steps: list[int] = []
        self._clock = clock

    def deliver(self, index: int, last: bool) -> None:
        assert last == (index == self.max_tokens - 1)
        self.steps.append(self._clock.now)


class Clock:
    """Steps a batch by hand."""

    def __init__(self, **settings: Any) -> None:
        defaults = {"step_ms": 10, "prefill_tokens_per_s": 10_000, "max_num_seqs": 4, "kv_cache_tokens": 1000}
        self.batch = Batch(Sim.model_validate({**defaults, **settings}))
        self.now = 0

    def add(self, prompt_tokens: int, max_tokens: int, **options: Any) -> Counted:
        sequence = Counted(self, prompt_tokens, max_tokens, **options)
        self.batch.add(sequence)
        return sequence

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            self.batch.step()


def test_a_token_for_each_sequence_at_each_step() -> None:
    clock = Clock()
    first, second = clock.add(10, 3), clock.add(10, 2)
    clock.step(5)
    assert first.steps == [1, 2, 3]
    assert second.steps == [1, 2]
    assert (first.meter.prompt_tokens, first.meter.completion_tokens) == (10, 3)
    assert clock.batch.load().running == 0
    assert clock.batch.load().kv_usage == 0


def test_what_waits_goes_by_priority_then_age() -> None:
    clock = Clock(max_num_seqs=1)
    clock.add(10, 1)
    waiting = {}
    for name, priority in (("low", 10), ("normal", 0), ("normal too", 0), ("high", -10)):
        token = current_priority.set(priority)
        waiting[name] = clock.add(10, 1)
        current_priority.reset(token)
    clock.step(5)
    assert sorted(waiting, key=lambda name: waiting[name].steps) == ["high", "normal", "normal too", "low"]


def test_prefill_takes_its_time_in_turn() -> None:
    clock = Clock(prefill_tokens_per_s=10_000)  # 100 a step
    long, short = clock.add(250, 2), clock.add(60, 2)
    clock.step(2)
    assert long.meter.prompt_tokens == 0, "not counted before it is done"
    assert clock.batch.load().running == 2
    clock.step(4)
    assert long.steps == [3, 4]
    assert short.steps == [4, 5], "50 of its 60 fit beside the rest of the long one"


def test_places_and_kv_space_are_limited() -> None:
    clock = Clock(max_num_seqs=2, kv_cache_tokens=100)
    sequences = [clock.add(10, 20), clock.add(10, 20), clock.add(10, 60), clock.add(5, 5)]
    clock.step()
    assert [len(s.steps) for s in sequences] == [1, 1, 0, 0]
    assert (clock.batch.load().running, clock.batch.load().waiting) == (2, 2)
    assert clock.batch.load().kv_usage == pytest.approx(0.6)
    clock.batch.abort(sequences[0])
    clock.step()
    assert [len(s.steps) for s in sequences] == [1, 2, 1, 0], "a place, and exactly the space"
    clock.batch.abort(sequences[3])
    clock.batch.abort(sequences[3])
    assert clock.batch.load().waiting == 0


def test_choices_share_their_prompt() -> None:
    clock = Clock()
    first = clock.add(50, 2)
    second = clock.add(50, 2, shares_prompt=True)
    clock.step(3)
    assert first.meter.prompt_tokens == 50
    assert second.meter.prompt_tokens == 0
    assert first.steps == second.steps == [1, 2]


async def test_steps_keep_to_the_clock() -> None:
    clock = Clock(step_ms=5)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(clock.batch.run())
    started_at = loop.time()
    sequence = clock.add(1, 40)
    await eventually(lambda: sequence.produced == 40, "its tokens", 5)
    took_s = loop.time() - started_at
    task.cancel()
    await asyncio.wait((task,))
    assert took_s >= 0.195, "40 steps of 5 ms"


@pytest.fixture
async def sim() -> AsyncIterator[httpx.AsyncClient]:
    """The simulator's own HTTP face."""
    settings = {"step_ms": 1, "prefill_tokens_per_s": 1e6, "http_port": 0, "adapters": ["pirate", "poet"]}
    engine = SimEngine(Sim.model_validate(settings))
    await engine.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{engine.http_port}") as client:
        yield client
    await engine.stop()
    await engine.stop()


def texts(stream: str) -> dict[int, str]:
    """The text of each choice of an event stream."""
    said: dict[int, str] = {}
    for line in stream.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                said[choice["index"]] = said.get(choice["index"], "") + text
    return said


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_streamed_and_whole_text_are_the_same_and_say_who_speaks(sim: httpx.AsyncClient, path: str) -> None:
    for model in ("sim", "pirate", "poet"):
        body = {**chat(model, max_tokens=40, n=2, stream=False), "prompt": "hello"}
        whole = (await sim.post(path, json=body)).json()
        streamed = await sim.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
        choices = [c["text"] if "text" in c else c["message"]["content"] for c in whole["choices"]]
        assert texts(streamed.text) == dict(enumerate(choices))
        for text in choices:
            assert text.startswith(f"[simulated by {model}]")
            assert {name for name in ("sim", "pirate", "poet") if re.search(rf"\b{name}\b", text)} == {model}
            assert text.count(model) >= 3, "its name comes again and again"
        assert whole["system_fingerprint"].startswith("sim-")
        assert whole["usage"]["completion_tokens"] == 80
        assert '"completion_tokens":80' in streamed.text
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_several_prompts_and_token_ids(sim: httpx.AsyncClient) -> None:
    body = {"model": "sim", "prompt": ["one", "two"], "max_tokens": 2}
    answer = (await sim.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    answer = (await sim.post("/v1/completions", json={"model": "sim", "prompt": [5, 6, 7]})).json()
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "parsing"),
        (b"[]", 400, "object"),
        (b'{"messages":[{"role":"user","content":"x"}]}', 400, "model"),
        (b'{"model":"sim"}', 400, "messages"),
        (b'{"model":"sim","messages":[{"content":"x"}]}', 400, "role"),
        (b'{"model":"sim","messages":[{"role":"user"}],"stream":"yes"}', 400, "stream"),
        (b'{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":0}', 400, "max_tokens"),
        (b'{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":9999999}', 400, "context length"),
        (b'{"model":"nope","messages":[{"role":"user","content":"x"}]}', 404, "`nope` does not exist"),
    ],
)
async def test_refusals_have_the_engines_shape(sim: httpx.AsyncClient, body: bytes, status: int, words: str) -> None:
    answer = await sim.post("/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == status


async def test_models_health_and_unknown_paths(sim: httpx.AsyncClient) -> None:
    rows = (await sim.get("/v1/models")).json()["data"]
    assert [(row["id"], row["parent"]) for row in rows] == [("sim", None), ("pirate", "sim"), ("poet", "sim")]
    assert (await sim.get("/health")).status_code == 200
    assert (await sim.get("/other")).status_code == 404


async def test_a_client_that_leaves_frees_it_and_the_journal_knows() -> None:
    engine = SimEngine(Sim.model_validate({"step_ms": 1, "prefill_tokens_per_s": 1e6, "http_port": 0}))
    await engine.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{engine.http_port}") as client:
        async with client.stream("POST", "/v1/chat/completions", json=chat(max_tokens=100_000)) as response:
            await anext(response.aiter_bytes())
        await eventually(lambda: engine.load().running == 0, "freed", 0.5)
        (entry,) = (await client.get("/sim/journal")).json()
        assert entry["complete"] is False
        assert entry["completion_tokens"] > 0
    await engine.stop()


async def test_its_end_is_noticed() -> None:
    engine = SimEngine(Sim())
    await engine.start()
    watch = asyncio.create_task(engine.wait_dead())
    await engine.stop()
    assert "clock" in await watch


async def test_an_adapter_leaves_after_its_requests() -> None:
    async with Rig() as rig:
        await rig.serving()
        engine = rig.service.engine
        await engine.load_adapter("pirate", Path("pirate"))
        edge = await rig.edge()
        stream = await edge.start(chat("pirate", max_tokens=100))
        await eventually(lambda: edge.answers[stream].data, "it runs")
        await engine.remove_adapter("pirate")
        assert engine.load().running == 0
        (answer,) = await edge.ended(stream)
        assert answer.end is not None
        assert answer.end.usage.completion_tokens == 100
        (answer,) = await edge.ended(await edge.start(chat("pirate")))
        assert answer.head is not None
        assert answer.head.status == 404


async def test_thousands_of_streams_lose_and_mix_nothing() -> None:
    count, tokens = 2000, 10
    async with Rig(sim={"step_ms": 5, "prefill_tokens_per_s": 1e8, "adapters": ["a0", "a1", "a2"]}) as rig:
        await rig.serving()
        edge = await rig.edge()
        frames = [edge.frame(chat(f"a{n % 3}", max_tokens=tokens)) for n in range(count)]
        for first in range(0, count, 500):
            await edge.send(starts=frames[first : first + 500])
        answers = await edge.ended(*(frame.stream_id for frame in frames))
        for n, answer in enumerate(answers):
            assert answer.end is not None
            assert answer.end.usage.completion_tokens == tokens
            (text,) = texts(answer.data.decode()).values()
            assert text.startswith(f"[simulated by a{n % 3}]")
            assert len(text.split()) == tokens + 2
        status = await rig.stub.GetStatus(pb.GetStatusRequest())
        assert [m.name for m in status.host.models] == ["sim", "a0", "a1", "a2"]

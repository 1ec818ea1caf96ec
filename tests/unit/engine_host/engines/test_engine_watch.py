"""What is read of an engine in another process, and when it counts as gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from tests.support.wait import eventually

from vllm_proxy.common.settings import EngineHttp
from vllm_proxy.engine_host.engines.base import EngineDied, EngineLoad, ModelCard
from vllm_proxy.engine_host.engines.engine_watch import EngineWatch
from vllm_proxy.engine_host.engines.http_dialects import VLLM
from vllm_proxy.engine_host.engines.http_pool import EngineSilent

METRICS = b"""# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_running_total 99
vllm:num_requests_waiting{engine="0"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
process_start_time_seconds 1.7e+09
"""
ROWS = [{"id": "lora", "parent": "m", "root": "/a"}, {"id": "m", "root": "/m", "parent": None}, {"no": "id"}]


class FakePool:
    url = "http://engine"

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/health": (200, b""),
            "/v1/models": (200, orjson.dumps({"data": ROWS})),
            "/metrics": (200, METRICS),
            "/version": (200, b'{"version":"0.32.1"}'),
        }
        self.asked: list[str] = []

    async def ask(self, method: str, path: str, content: Any = None) -> tuple[int, bytes]:
        self.asked.append(path)
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bench:
    def __init__(self, **settings: float) -> None:
        self.pool = FakePool()
        self.seen: list[Sequence[ModelCard]] = []
        pool: Any = self.pool
        values = EngineHttp.model_validate({"poll_s": 0.001, **settings})
        self.watch = EngineWatch(pool, VLLM, values, self.seen.append)


async def test_models_and_load() -> None:
    bench = Bench()
    await bench.watch.look()
    assert [(card.name, card.base, card.root) for card in bench.watch.cards] == [("m", "", "/m"), ("lora", "m", "/a")]
    assert orjson.loads(bench.watch.cards[1].card_json) == ROWS[0]
    assert bench.watch.load == EngineLoad(running=5, waiting=1, kv_usage=0.5)
    assert bench.seen == [bench.watch.cards]
    assert await bench.watch.version() == "0.32.1"


async def test_the_total_counts_and_not_again_what_each_priority_has_of_it() -> None:
    bench = Bench()
    running = "vllm:num_requests_running"
    rows = [
        f'{running}{{a="b",priority="{priority}"}} {value}' for priority, value in (("", 5), ("-3", 4), ("None", 1))
    ]
    bench.pool.answers["/metrics"] = (200, "\n".join(rows).encode())
    await bench.watch.look()
    assert bench.watch.load == EngineLoad(running=5)


async def test_an_engine_without_metrics_is_asked_for_them_once() -> None:
    bench = Bench()
    bench.pool.answers["/metrics"] = (404, b"")
    await bench.watch.look()
    await bench.watch.look()
    assert bench.pool.asked.count("/metrics") == 1 and bench.watch.load == EngineLoad()


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/health", (503, b""), "/health says 503"),
        ("/health", EngineDied("refused"), "refused"),
        ("/v1/models", (401, b""), "has no key of it"),
        ("/v1/models", (200, b"<html>"), "lists nothing"),
    ],
)
async def test_what_means_that_it_is_gone(path: str, answer: Any, said: str) -> None:
    bench = Bench()
    bench.pool.answers[path] = answer
    with pytest.raises(EngineDied, match=said):
        await bench.watch.run()


async def test_another_process_at_the_same_place_is_another_engine() -> None:
    bench = Bench()
    await bench.watch.look()
    bench.pool.answers["/metrics"] = (200, METRICS.replace(b"1.7e+09", b"1.8e+09"))
    with pytest.raises(EngineDied, match="restarted"):
        await bench.watch.look()
    bench.watch.forget()
    await bench.watch.look()


async def test_late_answers_are_borne_for_a_while() -> None:
    bench = Bench(silence_s=60)
    bench.pool.answers["/health"] = EngineSilent("late")
    running = asyncio.create_task(bench.watch.run())
    await eventually(lambda: len(bench.pool.asked) > 5, "asked again")
    bench.pool.answers["/health"] = (200, b"")
    await eventually(lambda: bench.seen, "looked at")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_silence_for_too_long_is_an_end() -> None:
    bench = Bench(silence_s=0.005)
    bench.pool.answers["/health"] = EngineSilent("late")
    with pytest.raises(EngineSilent):
        await bench.watch.run()

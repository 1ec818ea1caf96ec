from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.wait import eventually
from tests.unit.engine_host.engines import fake_sglang
from tests.unit.engine_host.engines.fake_sglang import Counter, Manager

from vllm_proxy.common.errors import AdapterNotFound, InvalidAdapter, ModelNotFound
from vllm_proxy.engine_host.engines.base import UsageMeter
from vllm_proxy.engine_host.engines.sglang_lora import SglangAdapters
from vllm_proxy.engine_host.engines.sglang_usage import EngineCall

sglang_module = fake_sglang.sglang_module


class Bench:
    def __init__(self, drain_timeout_s: float = 60) -> None:
        self.manager = Manager()
        self.adapters = SglangAdapters(self.manager, self._resolve, drain_timeout_s)
        self.asked: list[str] = []

    async def _resolve(self, name: str) -> bool:
        self.asked.append(name)
        if name == "dropped":
            await self.adapters.load(name, Path("/cache/dropped"))
        return name == "dropped"

    @property
    def held(self) -> list[str]:
        return list(self.manager.lora_registry.refs)

    async def until_held(self, names: list[str]) -> None:
        await eventually(lambda: self.held == names, f"the engine holds {names}")


def call() -> EngineCall:
    return EngineCall(UsageMeter())


async def test_a_name_is_never_used_twice_in_the_engine() -> None:
    bench = Bench()
    for _ in range(3):
        await bench.adapters.load("pirate", Path("/p"))
        held = call()
        assert await bench.adapters.acquire("pirate", held) in bench.held
        bench.adapters.release(held)
        await bench.adapters.remove("pirate")
    assert (bench.held, bench.manager.lora_ref_cache, bench.adapters.paths) == ([], {}, {})


async def test_an_unloaded_adapter_does_not_come_back() -> None:
    bench = Bench()
    await bench.adapters.load("pirate", Path("/p"))
    await bench.adapters.remove("pirate")
    for name in ("pirate", "pirate@1"):
        with pytest.raises(ModelNotFound, match=f"`{name}` does not exist"):
            await bench.adapters.acquire(name, call())
    with pytest.raises(AdapterNotFound):
        await bench.adapters.remove("pirate")


async def test_one_that_is_not_loaded_is_asked_of_the_host() -> None:
    bench = Bench()
    assert await bench.adapters.acquire(["dropped", None, "dropped"], call()) == ["dropped@1", None, "dropped@1"]
    with pytest.raises(ModelNotFound):
        await bench.adapters.acquire("nobody", call())
    assert bench.asked == ["dropped", "nobody"]


async def test_an_unload_waits_for_running_calls_and_the_name_is_gone_at_once() -> None:
    bench = Bench()
    await bench.adapters.load("pirate", Path("/p"))
    running = call()
    await bench.adapters.acquire("pirate", running)
    removing = asyncio.create_task(bench.adapters.remove("pirate"))
    await asyncio.sleep(0)
    with pytest.raises(ModelNotFound):
        await bench.adapters.acquire("pirate", call())
    assert bench.held == ["pirate@1"]
    bench.adapters.release(running)
    await removing
    assert bench.held == []


async def test_calls_that_outlast_the_drain_are_aborted() -> None:
    bench = Bench(drain_timeout_s=0.01)
    await bench.adapters.load("pirate", Path("/p"))
    running = call()
    await bench.adapters.acquire("pirate", running)
    bench.adapters.abort = bench.adapters.release
    await bench.adapters.remove("pirate")
    assert bench.held == []


async def test_a_count_of_sglangs_that_is_off_does_not_stop_an_unload() -> None:
    for count in (2, -1):
        bench = Bench()
        await bench.adapters.load("pirate", Path("/p"))
        bench.manager.lora_registry._counters["id of pirate@1"] = Counter(count)
        await bench.adapters.remove("pirate")
        assert bench.held == []


async def test_new_weights_take_over_a_name_and_the_old_ones_go_when_they_are_idle() -> None:
    bench = Bench()
    await bench.adapters.load("who", Path("/old"))
    running = call()
    await bench.adapters.acquire("who", running)
    await bench.adapters.load("who", Path("/new"))
    assert await bench.adapters.acquire("who", call()) == "who@2"
    assert bench.held == ["who@1", "who@2"]
    bench.adapters.release(running)
    await bench.until_held(["who@2"])
    assert bench.adapters.paths == {"who": "/new"}


async def test_a_refused_load_leaves_nothing_and_says_why() -> None:
    bench = Bench()
    bench.manager.refuses = "ValueError: rank 99"
    with pytest.raises(InvalidAdapter, match="refused adapter pirate: ValueError: rank 99"):
        await bench.adapters.load("pirate", Path("/p"))
    assert bench.adapters.paths == {}


async def test_a_load_that_nobody_waits_for_is_undone() -> None:
    bench = Bench()
    bench.manager.delay.clear()
    loading = asyncio.create_task(bench.adapters.load("pirate", Path("/p")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    bench.manager.delay.set()
    await eventually(lambda: bench.manager.unloaded == ["pirate@1"], "the load undone")
    assert bench.adapters.paths == {}


async def test_what_the_start_command_names_is_taken_in() -> None:
    manager = Manager()
    ref: Any = type("Ref", (), {"lora_path": "/s", "lora_id": "7"})
    manager.lora_registry.refs["sql"] = ref

    async def resolve(name: str) -> bool:
        return False

    adapters = SglangAdapters(manager, resolve, 1)
    assert await adapters.acquire("sql", call()) == "sql"

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from tests.support.wait import eventually
from tests.unit.engine_host.engines.fake_sglang import Manager, Output, Request

from vllm_proxy.common.errors import ModelNotFound
from vllm_proxy.engine_host.engines.base import UsageMeter, current_meter
from vllm_proxy.engine_host.engines.priority import current_priority
from vllm_proxy.engine_host.engines.sglang_usage import EngineCall, Metering, request_calls


class Adapters:
    """Gives every call what it asks for in capitals; notes what is released."""

    def __init__(self) -> None:
        self.released: list[EngineCall] = []

    async def acquire(self, names: Any, call: EngineCall) -> Any:
        if names == "nobody":
            raise ModelNotFound("The model `nobody` does not exist.")
        return names.upper()

    def release(self, call: EngineCall) -> None:
        self.released.append(call)


class Bench:
    def __init__(self, **server_args: bool) -> None:
        self.manager = Manager(**server_args)
        self.adapters = Adapters()
        self.metering = Metering(self.manager, self.adapters)
        self.meter = UsageMeter()
        current_meter.set(self.meter)

    async def begin(self, request: Request) -> tuple[Any, list[str]]:
        """The call's outputs, and the ids of what it has in the engine."""
        outputs: Any = self.manager.generate_request(request)
        return outputs, await anext(outputs)

    async def say(self, *rows: tuple[str, int, int, int]) -> None:
        output: Any = Output(*rows)
        await self.manager._handle_batch_output(output)

    @property
    def counted(self) -> tuple[int, ...]:
        """Prompt, cached and completion tokens."""
        return dataclasses.astuple(self.meter)


async def test_cumulative_outputs_are_counted_once_before_anybody_is_told() -> None:
    bench = Bench()
    outputs, [rid] = await bench.begin(Request())
    await bench.say((rid, 7, 4, 1))
    await bench.say((rid, 7, 4, 5))
    assert bench.counted == (7, 4, 5)
    bench.manager.finish.set()
    assert [item async for item in outputs] == ["end"]
    assert len(bench.adapters.released) == 1
    assert bench.metering._requests == {}


async def test_a_batch_counts_each_prompt() -> None:
    bench = Bench()
    _, [first, second] = await bench.begin(Request(prompts=2))
    await bench.say((first, 3, 0, 2), (second, 5, 1, 1))
    await bench.say((second, 5, 1, 4))
    assert bench.counted == (8, 1, 6)


async def test_parallel_samples_count_their_prompt_once_and_not_what_fills_the_cache() -> None:
    bench = Bench()
    _, ids = await bench.begin(Request(prompts=2, n=3))
    fills, samples = ids[:2], ids[2:]
    assert len(samples) == 6
    await bench.say(*((rid, tokens, 0, 1) for rid, tokens in zip(fills, (10, 20), strict=True)))
    await bench.say(*((rid, tokens, 9, 2) for rid, tokens in zip(samples, (10,) * 3 + (20,) * 3, strict=True)))
    assert bench.counted == (30, 0, 12)


async def test_nobodys_outputs_are_left_alone() -> None:
    bench = Bench()
    await bench.say(("another", 3, 0, 2))
    assert (bench.counted, bench.manager.done) == ((0, 0, 0), ["another"])


async def test_a_call_that_nobody_waits_for_ends_in_the_engine_and_is_counted_to_the_end() -> None:
    bench = Bench()
    calls: list[EngineCall] = []
    request_calls.set(calls)
    outputs, [rid] = await bench.begin(Request(lora_path="pirate"))
    await outputs.aclose()
    assert bench.manager.aborted == [rid]
    # The engine still has it: so has the call its adapter.
    assert bench.adapters.released == []
    settling = asyncio.create_task(bench.metering.settle(calls))
    await bench.say((rid, 7, 0, 3))
    bench.manager.acknowledge(rid)
    await settling
    assert bench.counted == (7, 0, 3)
    await eventually(lambda: bool(bench.adapters.released), "the adapter released")
    assert bench.metering._requests == {}
    await bench.metering.close()


async def test_an_iterator_that_was_left_open_is_ended_too() -> None:
    bench = Bench()
    calls: list[EngineCall] = []
    request_calls.set(calls)
    outputs, [rid] = await bench.begin(Request())
    settling = asyncio.create_task(bench.metering.settle(calls))
    await eventually(lambda: bool(bench.manager.aborted), "aborted")
    bench.manager.acknowledge(rid)
    await settling
    await outputs.aclose()
    assert bench.manager.aborted == [rid]


async def test_adapters_are_named_as_the_engine_knows_them_and_unknown_ones_are_404() -> None:
    from fastapi import HTTPException

    bench = Bench()
    request = Request(lora_path="pirate")
    await bench.begin(request)
    assert request.lora_path == "PIRATE"
    with pytest.raises(HTTPException, match="nobody") as refused:
        await bench.begin(Request(lora_path="nobody"))
    assert refused.value.status_code == 404
    assert bench.counted == (0, 0, 0)


@pytest.mark.parametrize(
    ("low_first", "asked", "given"), [(False, None, -7), (False, 3, -7), (True, None, 7), (True, 3, 10)]
)
async def test_a_keys_class_comes_first_in_the_order_that_sglang_is_told_to_keep(
    low_first: bool, asked: int | None, given: int
) -> None:
    bench = Bench(enable_priority_scheduling=True, schedule_low_priority_values_first=low_first)
    current_priority.set(7)
    request = Request()
    request.priority = asked
    outputs, _ = await bench.begin(request)
    assert request.priority == given
    await outputs.aclose()


async def test_without_priority_scheduling_the_clients_own_is_left_to_sglang() -> None:
    bench = Bench()
    current_priority.set(7)
    request = Request()
    request.priority = -3
    outputs, _ = await bench.begin(request)
    assert request.priority == -3
    await outputs.aclose()

"""As much of SGLang's TokenizerManager as the adapter touches, with a scheduler that is told what it says."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest


class Request:
    """A GenerateReqInput."""

    def __init__(self, prompts: int = 1, n: int = 1, lora_path: Any = None) -> None:
        self.batch_size = prompts
        self.parallel_sample_num = n
        self.lora_path = lora_path
        self.rid: Any = "the client's"
        self.priority: int | None = None


class State:
    """A ReqState."""

    def __init__(self) -> None:
        self.event = asyncio.Event()


class Output:
    """A BatchStrOutput: rows of (id, prompt tokens, cached ones, completion tokens)."""

    def __init__(self, *rows: tuple[str, int, int, int]) -> None:
        self.rids, self.prompt_tokens, self.cached_tokens, self.completion_tokens = map(list, zip(*rows, strict=True))


class Counter:
    """A ConcurrentCounter."""

    def __init__(self, value: int = 0) -> None:
        self._value = value

    def value(self) -> int:
        return self._value


class Registry:
    def __init__(self) -> None:
        self.refs: dict[str, Any] = {}
        self._counters: dict[str, Counter] = {}

    def get_all_adapters(self) -> dict[str, Any]:
        return dict(self.refs)


class Manager:
    """Calls run until `finish`; the ids of aborted requests stand in `aborted` until `acknowledge`."""

    def __init__(self, **server_args: bool) -> None:
        args = {"enable_priority_scheduling": False, "schedule_low_priority_values_first": False}
        self.server_args = types.SimpleNamespace(**{**args, **server_args})
        self.rid_to_state: dict[str, State] = {}
        self.aborted: list[str] = []
        self.finish = asyncio.Event()
        self.done: list[str] = []
        self.lora_registry = Registry()
        self.lora_ref_cache: dict[str, Any] = {}
        self._lora_release_tasks: set[asyncio.Task[None]] = set()
        self.refuses = ""
        self.unloaded: list[str] = []
        self.delay = asyncio.Event()
        self.delay.set()
        self._ids = iter(f"{number:032x}" for number in range(1000))

    async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[Any]:
        assert obj.rid is None
        total = obj.batch_size * obj.parallel_sample_num
        ids = [next(self._ids) for _ in range(total)]
        obj.rid = ids if total > 1 else ids[0]
        self._init_req_state(obj, request)
        if obj.parallel_sample_num > 1:
            for rid in ids:
                del self.rid_to_state[rid]
            for _ in range(obj.batch_size + total):
                child = Request()
                child.rid = next(self._ids)
                self._init_req_state(child, None)
        yield list(self.rid_to_state)
        await self.finish.wait()
        for rid in list(self.rid_to_state):
            del self.rid_to_state[rid]
        yield "end"

    def _init_req_state(self, obj: Any, request: Any = None) -> None:
        for rid in [obj.rid] if isinstance(obj.rid, str) else obj.rid:
            self.rid_to_state[rid] = State()

    async def _handle_batch_output(self, output: Output) -> None:
        self.done += output.rids

    def abort_request(self, rid: str) -> None:
        if rid not in self.aborted:
            self.aborted.append(rid)

    def acknowledge(self, rid: str) -> None:
        self.rid_to_state.pop(rid).event.set()

    async def load_lora_adapter(self, obj: Any) -> Any:
        await self.delay.wait()
        if self.refuses:
            return types.SimpleNamespace(success=False, error_message=f"Traceback\n  {self.refuses}\n")
        assert obj.lora_name not in self.lora_ref_cache, "a name is used twice"
        ref = types.SimpleNamespace(lora_id=f"id of {obj.lora_name}", lora_path=obj.lora_path)
        self.lora_registry.refs[obj.lora_name] = self.lora_ref_cache[obj.lora_name] = ref
        self.lora_registry._counters[ref.lora_id] = Counter()
        return types.SimpleNamespace(success=True, error_message="")

    async def unload_lora_adapter(self, obj: Any) -> Any:
        ref = self.lora_registry.refs.pop(obj.lora_name)
        assert self.lora_registry._counters[ref.lora_id].value() == 0, "SGLang would wait for ever"
        self.unloaded.append(obj.lora_name)
        return types.SimpleNamespace(success=True, error_message="")


@pytest.fixture(autouse=True)
def sglang_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the adapter imports of SGLang's request types."""
    module = types.ModuleType("sglang.srt.managers.io_struct")
    module.__dict__.update(
        LoadLoRAAdapterReqInput=types.SimpleNamespace, UnloadLoRAAdapterReqInput=types.SimpleNamespace
    )
    for name in ("sglang", "sglang.srt", "sglang.srt.managers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

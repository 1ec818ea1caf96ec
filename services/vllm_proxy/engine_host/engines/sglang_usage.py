"""Counts tokens where SGLang's outputs pass, and ends requests that nobody waits for.

Everything that SGLang's own application asks of the engine goes through `TokenizerManager.generate_request`, and every
output through `_handle_batch_output`; both are wrapped here. Written against SGLang 0.5.23
(`sglang/srt/managers/tokenizer_manager.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any, Protocol

from vllm_proxy.common.errors import ServiceError
from vllm_proxy.engine_host.engines.base import UsageMeter, current_meter
from vllm_proxy.engine_host.engines.priority import priority_for

#: How long the end of an aborted request may wait for the scheduler's last word on it.
SETTLE_S = 1.0
#: How often a wait looks whether a request is still held.
_LOOK_EVERY_S = 0.1


class EngineCall:
    """One running call of `generate_request`: its requests in the engine, and what it has put into its meter.

    SGLang splits a call: into one request per prompt and, for n > 1, first one per prompt that only fills the prefix
    cache, then n per prompt. Prompt tokens count once per prompt, those of the fill not as completion.
    """

    __slots__ = ("_meter", "_produced", "_prompts", "_registered", "batch", "samples", "states")

    def __init__(self, meter: UsageMeter) -> None:
        self._meter = meter
        #: SGLang's ReqState of each request, by its id there.
        self.states: dict[str, Any] = {}
        self.batch = 0
        self.samples = 1
        self._registered = 0
        #: The prompts that are counted.
        self._prompts: set[int] = set()
        self._produced: dict[str, int] = {}

    def register(self, rid: str, state: Any) -> tuple[int, bool] | None:
        """Takes in a request of it. Returns its prompt's number and whether its tokens are a completion."""
        self.states[rid] = state
        number = self._registered
        self._registered += 1
        if self.samples == 1:
            return number, True
        number -= self.batch * self.samples  # what comes first is replaced by what follows
        if number < 0:
            return None
        if number < self.batch:
            return number, False
        return (number - self.batch) // self.samples, True

    def count(self, rid: str, prompt: int, of_completion: bool, tokens: int, cached: int, produced: int) -> None:
        """Adds what an output tells of one request; its figures are cumulative."""
        meter = self._meter
        if of_completion and produced > (before := self._produced.get(rid, 0)):
            meter.completion_tokens += produced - before
            self._produced[rid] = produced
        if prompt not in self._prompts:
            self._prompts.add(prompt)
            meter.prompt_tokens += tokens
            meter.cached_tokens += cached


class AdapterUse(Protocol):
    """What metered calls tell and ask about adapters; see sglang_lora."""

    async def acquire(self, names: Any, call: EngineCall) -> Any:
        """The engine's names for a request's `lora_path`. Raises if one is not there (any more)."""

    def release(self, call: EngineCall) -> None: ...


_current_call: ContextVar[EngineCall | None] = ContextVar("_current_call", default=None)

#: The calls that an HTTP request has made.
request_calls: ContextVar[list[EngineCall] | None] = ContextVar("request_calls", default=None)


class Metering:
    """Wraps one TokenizerManager. `adapters` translates what requests call adapters."""

    def __init__(self, manager: Any, adapters: AdapterUse) -> None:
        self._manager = manager
        self._adapters = adapters
        #: Request id in the engine -> its call, its prompt's number, whether its tokens are a completion.
        self._requests: dict[str, tuple[EngineCall, int, bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.dead = False
        self._by_priority: bool = manager.server_args.enable_priority_scheduling
        self._low_first: bool = manager.server_args.schedule_low_priority_values_first
        self._generate = manager.generate_request
        self._init_state = manager._init_req_state
        self._handle_output = manager._handle_batch_output
        manager.generate_request = self._metered
        manager._init_req_state = self._registering
        manager._handle_batch_output = self._counting
        # SGLang's way to end a request whose client has left: after two more seconds. `settle` does it at once.
        manager.create_abort_task = lambda _: None

    async def settle(self, calls: list[EngineCall]) -> None:
        """Ends what is left of the calls in the engine, and waits until it has said how far they came."""
        running = [call for call in calls if self._abort(call)]
        if running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    for call in running:
                        await self._gone(call)

    def fail_all(self, message: str) -> None:
        """Ends every request with an error, as if the engine had: it is dead and never will."""
        from sglang.srt.managers.io_struct import AbortReq

        self.dead = True
        reason = {"type": "abort", "status_code": 503, "message": message}
        for rid in list(self._manager.rid_to_state):
            self._manager._handle_abort_req(AbortReq(rid=rid, finished_reason=reason))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def abort(self, call: EngineCall) -> None:
        self._abort(call)

    # What SGLang calls.

    async def _metered(self, obj: Any, request: Any = None) -> AsyncGenerator[Any, None]:
        # Minted by SGLang, all of one length: it aborts by the beginning of an id, and clients must not name one.
        obj.rid = None
        if self._by_priority:
            obj.priority = priority_for(obj.priority or 0, low_first=self._low_first)
        call = EngineCall(current_meter.get() or UsageMeter())
        calls = request_calls.get()
        if calls is not None:
            calls.append(call)
        try:
            if obj.lora_path:
                try:
                    obj.lora_path = await self._adapters.acquire(obj.lora_path, call)
                except ServiceError as e:
                    raise _http_error(e) from None
            outputs = self._generate(obj, request)
            try:
                while True:
                    # Set for this step only: between steps the context belongs to whoever iterates.
                    token = _current_call.set(call)
                    try:
                        output = await anext(outputs)
                    except StopAsyncIteration:
                        return
                    finally:
                        _current_call.reset(token)
                    yield output
            finally:
                await outputs.aclose()
        finally:
            self._ended(call)

    def _registering(self, obj: Any, request: Any = None) -> None:
        self._init_state(obj, request)
        call = _current_call.get()
        if call is None:
            return
        rids = [obj.rid] if isinstance(obj.rid, str) else obj.rid
        if not call.states:
            call.batch = obj.batch_size
            call.samples = getattr(obj, "parallel_sample_num", 1) or 1
        for rid in rids:
            place = call.register(rid, self._manager.rid_to_state[rid])
            if place is not None:
                self._requests[rid] = (call, *place)

    async def _counting(self, output: Any) -> None:
        # Before SGLang wakes whoever waits: what a client gets must be counted by then.
        prompts, cached = output.prompt_tokens, output.cached_tokens
        produced = getattr(output, "completion_tokens", None)
        for i, rid in enumerate(output.rids):
            known = self._requests.get(rid)
            if known is not None:
                call, prompt, of_completion = known
                call.count(rid, prompt, of_completion, prompts[i], cached[i], produced[i] if produced else 0)
        await self._handle_output(output)

    # The end of calls.

    def _abort(self, call: EngineCall) -> bool:
        """Aborts what the engine still has of a call; returns whether there was anything."""
        left = [rid for rid, state in call.states.items() if self._manager.rid_to_state.get(rid) is state]
        for rid in left:
            self._manager.abort_request(rid)
        return bool(left)

    def _ended(self, call: EngineCall) -> None:
        if not self._abort(call):
            self._forget(call)
            return
        # The engine still holds the call's adapter.
        task = asyncio.get_running_loop().create_task(self._forget_when_gone(call), name="aborted request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forget_when_gone(self, call: EngineCall) -> None:
        try:
            await self._gone(call)
        finally:
            self._forget(call)

    def _forget(self, call: EngineCall) -> None:
        for rid in call.states:
            self._requests.pop(rid, None)
        self._adapters.release(call)

    async def _gone(self, call: EngineCall) -> None:
        held = self._manager.rid_to_state
        for rid, state in call.states.items():
            while held.get(rid) is state:
                state.event.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await state.event.wait()


def _http_error(error: ServiceError) -> Exception:
    """As SGLang's application answers it."""
    from fastapi import HTTPException

    return HTTPException(error.http_status, error.message)

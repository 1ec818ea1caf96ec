"""Counts tokens where vLLM's outputs pass: around `AsyncLLM.generate` and `encode`, whoever calls them.

Written against vLLM 0.32 (`vllm/v1/engine/async_llm.py`, `output_processor.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from vllm_proxy.engine_host.engines.base import UsageMeter, current_meter
from vllm_proxy.engine_host.engines.priority import priority_for


class EngineCall:
    """One running call of `generate` or `encode`, and what it has put into its meter."""

    __slots__ = ("_cached", "_completion", "_delta", "_meter", "_of_sequence", "_prompt", "request_id", "states")

    def __init__(self, meter: UsageMeter, delta: bool) -> None:
        self._meter = meter
        self._delta = delta
        self._prompt = self._cached = self._completion = 0
        self._of_sequence: dict[int, int] = {}
        #: The engine's own id of it, a parent's for n > 1. Empty until the engine has it.
        self.request_id = ""
        #: vLLM's RequestState of each sequence. They stay readable after vLLM has dropped them.
        self.states: list[Any] = []

    def count(self, output: Any) -> None:
        """Adds what an output (RequestOutput or PoolingRequestOutput) tells."""
        self._count_prompt(len(output.prompt_token_ids or ()), output.num_cached_tokens or 0)
        for sequence in output.outputs if isinstance(output.outputs, list) else ():
            before = self._of_sequence.get(sequence.index, 0)
            tokens = len(sequence.token_ids)
            total = before + tokens if self._delta else max(before, tokens)
            self._of_sequence[sequence.index] = total
            self._completion += total - before
            self._meter.completion_tokens += total - before

    def count_rest(self) -> None:
        """At the end, adds the tokens no output told of: a FINAL_ONLY request that was aborted tells of none."""
        for state in self.states[:1]:
            if not state.is_prefilling:
                self._count_prompt(state.prompt_len, state.num_cached_tokens)
        produced = sum(s.detokenizer.num_output_tokens() for s in self.states if s.detokenizer is not None)
        if produced > self._completion:
            self._meter.completion_tokens += produced - self._completion
            self._completion = produced

    def _count_prompt(self, prompt: int, cached: int) -> None:
        if prompt > self._prompt:  # once per call, whatever n; more only for streamed input
            self._meter.prompt_tokens += prompt - self._prompt
            self._prompt = prompt
        if cached > self._cached:
            self._meter.cached_tokens += cached - self._cached
            self._cached = cached


class AdapterUse(Protocol):
    """What metered calls tell and ask about adapters; see vllm_lora."""

    async def acquire(self, lora_request: Any, call: EngineCall) -> Any:
        """The LoRARequest as the engine shall see it. Raises if the adapter is not there any more."""

    def release(self, engine_request: Any, call: EngineCall) -> None: ...


_current_call: ContextVar[EngineCall | None] = ContextVar("_current_call", default=None)


def meter_engine(engine: Any, adapters: AdapterUse) -> None:
    """Replaces `generate`, `encode` and `add_request` of this AsyncLLM by ones that count into `current_meter`, and
    give the engine the key's priority if it schedules by that.

    vLLM's serving layer looks them up on the engine for every request, so all of its routes are counted.
    """
    engine.add_request = _remembering(engine)
    by_priority = engine.vllm_config.scheduler_config.policy == "priority"
    engine.generate = _metered(engine.generate, adapters, by_priority)
    engine.encode = _metered(engine.encode, adapters, by_priority)


def _remembering(engine: Any) -> Callable[..., Any]:
    original = engine.add_request
    processor = engine.output_processor

    async def add_request(*args: Any, **kwargs: Any) -> Any:
        call = _current_call.get()
        queue = await original(*args, **kwargs)
        if call is not None:
            call.request_id = queue.request_id
            parent = processor.parent_requests.get(queue.request_id)
            ids = list(parent.child_requests) if parent is not None else [queue.request_id]
            call.states = [s for i in ids if (s := processor.request_states.get(i)) is not None]
        return queue

    return add_request


def _metered(
    original: Callable[..., AsyncGenerator[Any, None]], adapters: AdapterUse, by_priority: bool
) -> Callable[..., AsyncGenerator[Any, None]]:
    async def metered(prompt: Any, parameters: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        call = EngineCall(current_meter.get() or UsageMeter(), _is_delta(parameters))
        lora_request = kwargs.get("lora_request")
        if lora_request is not None:
            lora_request = kwargs["lora_request"] = await adapters.acquire(lora_request, call)
        if by_priority:
            kwargs["priority"] = priority_for(kwargs.get("priority") or 0)
        outputs = original(prompt, parameters, *args, **kwargs)
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
                call.count(output)
                yield output
        finally:
            await outputs.aclose()
            call.count_rest()
            if lora_request is not None:
                adapters.release(lora_request, call)

    return _by_parameter_name(metered)


def _by_parameter_name(metered: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
    """vLLM's callers pass the second argument by position or as `sampling_params` or `pooling_params`."""

    def call(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        if not args:
            name = "sampling_params" if "sampling_params" in kwargs else "pooling_params"
            args = (kwargs.pop(name),)
        return metered(prompt, *args, **kwargs)

    return call


def _is_delta(parameters: Any) -> bool:
    """Whether outputs hold only what is new (RequestOutputKind.DELTA), not all so far."""
    return getattr(getattr(parameters, "output_kind", None), "name", "") == "DELTA"

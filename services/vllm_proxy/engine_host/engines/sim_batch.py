"""The simulator's scheduler: continuous batching with chunked prefill, on a clock.

Every step takes `step_ms`. In it, waiting sequences are admitted, by priority and then age, while there is a batch
place and KV space for their prompt and whole response, prompts are prefilled at `prefill_tokens_per_s`, and each
sequence whose prompt is done yields one token. A late step is not made up for by a burst, as in a real engine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque

from vllm_proxy.common.settings import Sim
from vllm_proxy.engine_host.engines.base import EngineLoad, UsageMeter
from vllm_proxy.engine_host.engines.priority import priority_for


class Sequence:
    """One answer being produced. Subclasses deliver a token in `deliver`."""

    __slots__ = (
        "_prefill_left",
        "counted_prompt_tokens",
        "max_tokens",
        "meter",
        "model",
        "priority",
        "produced",
        "prompt_tokens",
    )

    def __init__(
        self,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        meter: UsageMeter,
        *,
        shares_prompt: bool = False,
        priority: int = 0,
    ) -> None:
        """`shares_prompt`: another choice of the same request prefills and counts the prompt. `priority`: the client's
        own; lower goes first."""
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.meter = meter
        self.priority = priority_for(priority)
        self.produced = 0
        self.counted_prompt_tokens = 0 if shares_prompt else prompt_tokens
        self._prefill_left = self.counted_prompt_tokens

    @property
    def used_prompt_tokens(self) -> int:
        """Of the prompt, once it is prefilled."""
        return 0 if self._prefill_left else self.counted_prompt_tokens

    def journal(self) -> None:
        """Called in each step after `deliver`, if the simulator keeps a journal."""

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.max_tokens

    def prefill(self, budget: int) -> int:
        """Uses up to `budget` tokens; returns what is left of it, or -1 if the prompt needs more."""
        if self._prefill_left > budget:
            self._prefill_left -= budget
            return -1
        budget -= self._prefill_left
        self._prefill_left = 0
        self.meter.prompt_tokens += self.counted_prompt_tokens
        return budget

    def deliver(self, index: int, last: bool) -> None:
        """Takes token number `index`. Must not block."""
        raise NotImplementedError


class Batch:
    """`run` is its clock. Sequences come by `add` and leave when they are done or by `abort`."""

    def __init__(self, settings: Sim) -> None:
        self._journals = settings.journal_dir is not None
        self._step_s = settings.step_ms / 1000
        self._prefill_per_step = max(1, round(settings.prefill_tokens_per_s * self._step_s))
        self._max_num_seqs = settings.max_num_seqs
        self.kv_cache_tokens = settings.kv_cache_tokens
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}
        self._kv_used = 0
        self._of_model: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._left = asyncio.Event()

    def load(self) -> EngineLoad:
        running = len(self._running) + len(self._prefilling)
        return EngineLoad(running, len(self._waiting), self._kv_used / self.kv_cache_tokens)

    def add(self, sequence: Sequence) -> None:
        waiting = self._waiting
        if not waiting or waiting[-1].priority <= sequence.priority:
            waiting.append(sequence)
        else:
            waiting.insert(next(i for i, other in enumerate(waiting) if other.priority > sequence.priority), sequence)
        self._of_model[sequence.model] += 1
        self._wake.set()

    def abort(self, sequence: Sequence) -> None:
        """Frees it at once. Without effect if it is gone."""
        if sequence in self._running:
            self._release(sequence)
            del self._running[sequence]
            return
        if sequence.produced:
            return
        for queue in (self._prefilling, self._waiting):
            with contextlib.suppress(ValueError):
                queue.remove(sequence)
                self._release(sequence, admitted=queue is self._prefilling)
                return

    async def wait_model_idle(self, model: str) -> None:
        while self._of_model[model] > 0:
            self._left.clear()
            await self._left.wait()
        del self._of_model[model]

    async def run(self) -> None:
        """Steps forever, until cancelled; rests while there is nothing to do."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            if not (self._running or self._prefilling or self._waiting):
                self._wake.clear()
                await self._wake.wait()
                next_at = loop.time()
            next_at += self._step_s
            now = loop.time()
            if next_at < now - self._step_s:
                next_at = now
            await asyncio.sleep(next_at - now)
            self.step()

    def step(self) -> None:
        """One step of everything that is here."""
        waiting, prefilling, running = self._waiting, self._prefilling, self._running
        while waiting and len(running) + len(prefilling) < self._max_num_seqs:
            if self._kv_used + waiting[0].kv_tokens > self.kv_cache_tokens:
                break
            self._kv_used += waiting[0].kv_tokens
            prefilling.append(waiting.popleft())
        budget = self._prefill_per_step
        while prefilling and budget >= 0:
            budget = prefilling[0].prefill(budget)
            if budget >= 0:
                running[prefilling.popleft()] = None
        done = []
        for sequence in running:
            index = sequence.produced
            sequence.produced = produced = index + 1
            sequence.meter.completion_tokens += 1
            last = produced >= sequence.max_tokens
            if last:
                done.append(sequence)
            sequence.deliver(index, last)
        if self._journals:
            for sequence in running:
                sequence.journal()
        for sequence in done:
            # Its delivery may have aborted it.
            if sequence in running:
                self._release(sequence)
                del running[sequence]

    def _release(self, sequence: Sequence, *, admitted: bool = True) -> None:
        if admitted:
            self._kv_used -= sequence.kv_tokens
        self._of_model[sequence.model] -= 1
        self._left.set()

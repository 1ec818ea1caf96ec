"""Admissions that wait for room instead of being refused.

Each waits in the lane of the scope that stands in its way. A lane is fair over keys: the better priority first,
within one the keys in turn, within a key whoever came first. Nobody passes a lane in which somebody waits. A lane is
served when its scope has room again: when a request of that scope ends, or at the time that its first one passes.
Whoever still waits at its deadline is tried a last time and then refused.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.decision import Ask, Decision
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.auth.scope import Scope

#: One key may fill so much of the queue, as a divisor.
_MAX_SHARE = 4


@dataclass(slots=True, eq=False)
class Waiter:
    """`decided` is called once with the last word, unless it is cancelled."""

    ask: Ask
    #: The key's, whichever of its secrets was used.
    account: bytes
    priority: int
    deadline_ns: int
    decided: Callable[[Decision], None]
    #: Where it waits. None: no longer.
    lane: Lane | None = None


class Lane:
    __slots__ = ("_classes", "due_ns", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        #: When its first one passes, if time alone decides that.
        self.due_ns: int | None = None
        # Priority -> key -> waiters; the key whose turn it is comes first.
        self._classes: dict[int, dict[bytes, dict[Waiter, None]]] = {}

    def add(self, waiter: Waiter) -> None:
        waiter.lane = self
        keys = self._classes.setdefault(waiter.priority, {})
        keys.setdefault(waiter.account, {})[waiter] = None

    def remove(self, waiter: Waiter, *, had_its_turn: bool = False) -> None:
        waiter.lane = None
        keys = self._classes[waiter.priority]
        account = waiter.account
        waiters = keys[account]
        del waiters[waiter]
        if had_its_turn or not waiters:
            del keys[account]
        if waiters and had_its_turn:
            keys[account] = waiters
        if not keys:
            del self._classes[waiter.priority]

    def first(self) -> Waiter | None:
        if not self._classes:
            return None
        keys = self._classes[min(self._classes)]
        return next(iter(next(iter(keys.values()))))

    def __bool__(self) -> bool:
        return bool(self._classes)


class WaitQueue:
    def __init__(self, decide: Callable[[Ask], Decision], metrics: AuthMetrics, clock: Clock, max_waiting: int) -> None:
        self._decide = decide
        self._metrics = metrics
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting = 0
        self._by_key: dict[bytes, int] = {}
        self._lanes: dict[Scope, Lane] = {}
        # Lanes whose scope has room again, in that order.
        self._ready: dict[Lane, None] = {}
        # By time, with a number that settles ties. What is no longer so is passed over.
        self._due: list[tuple[int, int, Lane]] = []
        self._deadlines: list[tuple[int, int, Waiter]] = []
        self._numbers = itertools.count()
        #: Told when something is due earlier than before.
        self.on_due: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return self._waiting

    @property
    def due_ns(self) -> int | None:
        """When `serve` has something to do although nothing ended; None: never."""
        if self._ready:
            return self._clock.now_ns()
        while self._due and self._due[0][2].due_ns != self._due[0][0]:
            heapq.heappop(self._due)
        while self._deadlines and self._deadlines[0][2].lane is None:
            heapq.heappop(self._deadlines)
        return min((heap[0][0] for heap in (self._due, self._deadlines) if heap), default=None)

    def crowded(self, scopes: Iterable[Scope]) -> Scope | None:
        """The first of them that somebody waits for."""
        return next((scope for scope in scopes if scope in self._lanes), None) if self._waiting else None

    def add(
        self,
        ask: Ask,
        account: bytes,
        scope: Scope,
        refusal: Refusal | None,
        priority: int,
        wait_ns: int,
        decided: Callable[[Decision], None],
    ) -> Waiter | None:
        """Lets an ask wait for a scope; `refusal` is what that said, if it was asked. None if the queue is full."""
        mine = self._by_key.get(account, 0)
        if self._waiting >= self._max_waiting or mine * _MAX_SHARE >= self._max_waiting:
            return None
        waiter = Waiter(ask, account, priority, self._clock.now_ns() + wait_ns, decided)
        self._waiting += 1
        self._by_key[account] = mine + 1
        self._park(waiter, scope, refusal)
        heapq.heappush(self._deadlines, (waiter.deadline_ns, next(self._numbers), waiter))
        self.on_due()
        return waiter

    def cancel(self, waiter: Waiter) -> None:
        """Nobody waits for the answer any more."""
        if waiter.lane is not None:
            self._take_out(waiter)
            self._metrics.waits["left"] += 1
            self.on_due()

    def released(self, scopes: Iterable[Scope]) -> None:
        """A request ended; `serve` looks after those who wait for its scopes."""
        if self._waiting:
            for scope in scopes:
                if (lane := self._lanes.get(scope)) is not None:
                    self._ready[lane] = None

    def changed(self) -> None:
        """Limits or keys are others now."""
        self._ready.update(dict.fromkeys(self._lanes.values()))

    def serve(self) -> None:
        """Decides everything that can be decided now."""
        if not self._waiting:
            return
        now_ns = self._clock.now_ns()
        while True:
            while self._due and self._due[0][0] <= now_ns:
                due_ns, _, lane = heapq.heappop(self._due)
                if lane.due_ns == due_ns:
                    self._ready[lane] = None
            if not self._ready:
                break
            lane = next(iter(self._ready))
            del self._ready[lane]
            self._serve_lane(lane)
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, waiter = heapq.heappop(self._deadlines)
            if waiter.lane is not None:
                self._finish(waiter, self._decide(waiter.ask))
        self.on_due()

    def _serve_lane(self, lane: Lane) -> None:
        lane.due_ns = None
        while (waiter := lane.first()) is not None:
            decision = self._decide(waiter.ask)
            refusal = decision.refusal
            if refusal is None or not refusal.may_wait or refusal.scope is None:
                self._finish(waiter, decision)
            elif refusal.scope is lane.scope:
                self._set_due(lane, refusal)
                break
            else:
                lane.remove(waiter)
                self._park(waiter, refusal.scope, refusal)
        self._drop_if_empty(lane)

    def _park(self, waiter: Waiter, scope: Scope, refusal: Refusal | None) -> None:
        lane = self._lanes.get(scope)
        if lane is None:
            lane = self._lanes[scope] = Lane(scope)
            if refusal is not None:
                self._set_due(lane, refusal)
        lane.add(waiter)

    def _set_due(self, lane: Lane, refusal: Refusal) -> None:
        # When a running request ends is not a matter of time.
        if refusal.limit_name != "concurrency" and refusal.retry_after_ns is not None:
            lane.due_ns = self._clock.now_ns() + refusal.retry_after_ns
            heapq.heappush(self._due, (lane.due_ns, next(self._numbers), lane))

    def _finish(self, waiter: Waiter, decision: Decision) -> None:
        self._take_out(waiter, had_its_turn=True)
        self._metrics.waits["admitted" if decision.refusal is None else "refused"] += 1
        waiter.decided(decision)

    def _take_out(self, waiter: Waiter, *, had_its_turn: bool = False) -> None:
        lane = waiter.lane
        assert lane is not None
        was_first = lane.first() is waiter
        lane.remove(waiter, had_its_turn=had_its_turn)
        if was_first:
            # Whoever is first now may need less than the one that was.
            self._ready[lane] = None
        self._drop_if_empty(lane)
        self._waiting -= 1
        account = waiter.account
        self._by_key[account] -= 1
        if not self._by_key[account]:
            del self._by_key[account]

    def _drop_if_empty(self, lane: Lane) -> None:
        if not lane and self._lanes.get(lane.scope) is lane:
            lane.due_ns = None
            self._ready.pop(lane, None)
            del self._lanes[lane.scope]

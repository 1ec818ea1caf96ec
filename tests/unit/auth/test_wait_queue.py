"""Admissions that wait for room: whose turn it is, when they are decided, and when they stop waiting."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.auth.fakes import CONFIG, Desk, api_key

from vllm_proxy.auth.decision import Ask, Decision
from vllm_proxy.auth.keys import ApiKey
from vllm_proxy.auth.lease import Operation
from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.limits import KeyRules, LimitOverrides, Limits
from vllm_proxy.auth.policy import Policy
from vllm_proxy.auth.wait_queue import Waiter

WAIT_MS = 1000


@dataclass
class Bench:
    """Requests by name, in the order in which they were decided."""

    desk: Desk
    admitted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    leases: dict[str, str] = field(default_factory=dict)
    waiters: dict[str, Waiter] = field(default_factory=dict)

    def ask(self, name: str, key: ApiKey | None = None, *, tokens: int = 0, model: str = "m") -> None:
        digest = (key or self.desk.key).digest
        ask = Ask(digest, Operation.INFERENCE, "edge-1", name, model, 0, tokens)
        outcome = self.desk.admission.admit_or_wait(ask, lambda decision: self._decided(name, decision))
        if isinstance(outcome, Waiter):
            self.waiters[name] = outcome
        else:
            self._decided(name, outcome)

    def _decided(self, name: str, decision: Decision) -> None:
        self.waiters.pop(name, None)
        if decision.refusal is None:
            self.admitted.append(name)
            self.leases[name] = decision.lease_id
        else:
            self.refused.append(name)

    def end(self, name: str) -> None:
        self.desk.settle(self.leases.pop(name), 0, 0)
        self.desk.admission.waiting.serve()

    def pass_time(self, seconds: float) -> None:
        """Rings as the timer would."""
        until_ns = self.desk.clock.ns + round(seconds * NS_PER_SECOND)
        queue = self.desk.admission.waiting
        while (due_ns := queue.due_ns) is not None and due_ns <= until_ns:
            self.desk.clock.ns = max(self.desk.clock.ns, due_ns)
            queue.serve()
        self.desk.clock.ns = until_ns

    @property
    def waiting(self) -> int:
        return len(self.desk.admission.waiting)


def bench(*keys: ApiKey, wait_ms: int = WAIT_MS, queue_size: int = 100, **limits: object) -> Bench:
    config = replace(CONFIG, admission_wait_ms=wait_ms, admission_queue_size=queue_size)
    return Bench(Desk(*keys, config=config, **limits))  # type: ignore[arg-type]


def named(name: str, user: str = "u", **rules: object) -> ApiKey:
    return api_key(name, user=user, rules=KeyRules(**rules))  # type: ignore[arg-type]


def test_nobody_waits_unless_that_is_wished() -> None:
    desk = bench(wait_ms=0, limits=Limits(concurrent=1))
    desk.ask("one")
    desk.ask("two")
    assert desk.refused == ["two"] and desk.waiting == 0
    patient = bench(named("p", admission_wait_ms=500), wait_ms=0, limits=Limits(concurrent=1))
    patient.ask("one")
    patient.ask("two")
    assert patient.waiting == 1


def test_a_slot_goes_to_whoever_came_first() -> None:
    desk = bench(limits=Limits(concurrent=1))
    for name in ("a", "b", "c"):
        desk.ask(name)
    assert (desk.admitted, desk.waiting) == (["a"], 2)
    desk.end("a")
    desk.ask("d")
    desk.end("b")
    desk.end("c")
    assert desk.admitted == ["a", "b", "c", "d"] and desk.refused == []
    assert desk.desk.metrics.waits == {"admitted": 3, "refused": 0, "left": 0}
    assert desk.desk.metrics.admissions["admitted", ""] == 4


def test_requests_are_let_in_at_the_earliest_time() -> None:
    desk = bench(limits=Limits(qps=2))
    for name in "abcd":
        desk.ask(name)
    assert desk.admitted == ["a", "b"]
    desk.pass_time(0.499)
    assert desk.admitted == ["a", "b"]
    desk.pass_time(0.001)
    assert desk.admitted == ["a", "b", "c"]
    desk.pass_time(0.5)
    assert desk.admitted == ["a", "b", "c", "d"] and desk.waiting == 0


def test_tokens_that_are_given_back_are_used_at_once() -> None:
    desk = bench(limits=Limits(tokens_per_minute=100))
    desk.ask("a", tokens=90)
    desk.ask("b", tokens=50)
    assert desk.waiting == 1
    desk.end("a")
    assert desk.admitted == ["a", "b"]


def test_the_deadline_brings_a_refusal_that_says_the_limit() -> None:
    desk = bench(limits=Limits(concurrent=1))
    desk.ask("a")
    desk.ask("b")
    desk.pass_time(0.999)
    assert desk.refused == []
    desk.pass_time(0.001)
    assert desk.refused == ["b"] and desk.waiting == 0
    assert desk.desk.metrics.admissions["rate_limited", "concurrency"] == 1
    desk.end("a")
    assert desk.admitted == ["a"]


def test_no_key_waits_longer_than_the_edge_does() -> None:
    desk = bench(named("k", admission_wait_ms=600_000), limits=Limits(concurrent=1))
    desk.ask("a")
    desk.ask("b")
    desk.pass_time(9.5)
    assert desk.refused == ["b"]


def test_keys_take_turns_at_a_limit_that_they_share() -> None:
    keys = [named(f"k{i}", user="shared") for i in range(3)]
    desk = bench(*keys, policy=Policy(user_limits=Limits(concurrent=1)))
    desk.ask("running", keys[0])
    for name, key in (("a1", 0), ("a2", 0), ("a3", 0), ("b1", 1), ("b2", 1), ("c1", 2)):
        desk.ask(name, keys[key])
    order = []
    while desk.leases:
        (name,) = desk.leases
        order.append(name)
        desk.end(name)
    assert order == ["running", "a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_better_class_goes_first() -> None:
    low, high = named("low", user="u", priority="low"), named("high", user="u", priority="high")
    desk = bench(low, high, policy=Policy(user_limits=Limits(concurrent=1)))
    desk.ask("running", low)
    desk.ask("low", low)
    desk.ask("high", high)
    desk.end("running")
    assert desk.admitted == ["running", "high"]


def test_a_small_request_does_not_pass_a_large_one_that_waits() -> None:
    desk = bench(limits=Limits(tokens_per_minute=600))
    desk.ask("first", tokens=600)
    desk.pass_time(1)
    desk.ask("large", tokens=15)
    desk.ask("small", tokens=1)
    assert desk.admitted == ["first"]
    desk.pass_time(0.5)
    assert desk.admitted == ["first", "large"]
    desk.pass_time(0.1)
    assert desk.admitted == ["first", "large", "small"]


def test_whoever_waits_for_one_model_holds_up_no_other() -> None:
    key = named("k", model_limits=(("big", LimitOverrides(concurrent=1)),))
    desk = bench(key)
    desk.ask("a", model="big")
    desk.ask("b", model="big")
    desk.ask("c", model="small")
    assert desk.admitted == ["a", "c"]


def test_a_request_passes_several_limits_one_after_the_other() -> None:
    alice, bob = named("alice", user="a"), named("bob", user="b")
    desk = bench(alice, bob, policy=Policy(Limits(concurrent=1), global_limits=Limits(qps=2)))
    desk.ask("a1", alice)
    desk.ask("b1", bob)
    desk.ask("a2", alice)
    desk.end("a1")
    assert desk.admitted == ["a1", "b1"], "the slot is free, the second is not over"
    desk.pass_time(0.5)
    assert desk.admitted == ["a1", "b1", "a2"]


def test_whoever_leaves_is_forgotten() -> None:
    desk = bench(limits=Limits(tokens_per_minute=600))
    desk.ask("first", tokens=600)
    desk.ask("large", tokens=400)
    desk.ask("small", tokens=5)
    desk.desk.admission.waiting.cancel(desk.waiters.pop("large"))
    assert desk.waiting == 1
    desk.pass_time(0.5)
    assert desk.admitted == ["first", "small"], "what it stood in the way of goes on"
    assert desk.desk.metrics.waits["left"] == 1


def test_the_queue_is_bounded_and_no_key_fills_it_alone() -> None:
    greedy, other = named("greedy", user="a"), named("other", user="b")
    desk = bench(greedy, other, queue_size=8, limits=Limits(concurrent=1))
    for number in range(5):
        desk.ask(f"g{number}", greedy)
        desk.ask(f"o{number}", other)
    assert desk.waiting == 4
    assert desk.refused == ["g3", "o3", "g4", "o4"]


def test_changed_limits_let_in_who_waits() -> None:
    desk = bench(limits=Limits(concurrent=1))
    for name in "abc":
        desk.ask(name)
    desk.desk.limit(Limits(concurrent=2))
    assert desk.admitted == ["a", "b"]


def test_a_key_that_is_disabled_meanwhile_is_told_so() -> None:
    desk = bench(limits=Limits(concurrent=1))
    desk.ask("a")
    desk.ask("b")
    desk.desk.admission.declare_keys([replace(desk.desk.key, enabled=False)])
    assert desk.refused == ["b"] and desk.desk.metrics.admissions["key_disabled", ""] == 1


def test_what_waiting_does_not_help_against_is_refused_at_once() -> None:
    desk = bench(api_key("a", quota=10))
    desk.ask("a", tokens=10)
    desk.ask("b", tokens=10)
    assert desk.refused == ["b"]


def test_whoever_may_not_wait_does_not_stand_behind_those_who_do() -> None:
    patient, hasty = named("patient"), named("hasty", admission_wait_ms=0)
    desk = bench(patient, hasty, policy=Policy(user_limits=Limits(tokens_per_minute=600)))
    desk.ask("first", patient, tokens=595)
    desk.ask("large", patient, tokens=10)
    desk.ask("small", hasty, tokens=1)
    assert desk.admitted == ["first", "small"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 3), st.integers(0, 120)),
        st.tuples(st.just("end"), st.integers(0, 10)),
        st.tuples(st.just("leave"), st.integers(0, 10)),
        st.tuples(st.just("time"), st.integers(0, 800)),
    ),
    max_size=60,
)


@given(STEPS)
def test_everybody_is_answered_once_and_nobody_is_left_behind(steps: list[tuple]) -> None:
    keys = [named(f"k{i}", user=f"u{i % 2}", priority=i % 2) for i in range(4)]
    policy = Policy(Limits(concurrent=2, qps=4), Limits(concurrent=3, tokens_per_minute=300), Limits(qps=6))
    desk = bench(*keys, queue_size=12, policy=policy)
    asked, left = 0, 0
    for kind, *what in steps:
        if kind == "ask":
            desk.ask(f"r{asked}", keys[what[0]], tokens=what[1])
            asked += 1
        elif kind == "end" and desk.leases:
            desk.end(list(desk.leases)[what[0] % len(desk.leases)])
        elif kind == "leave" and desk.waiters:
            waiter = desk.waiters.pop(list(desk.waiters)[what[0] % len(desk.waiters)])
            desk.desk.admission.waiting.cancel(waiter)
            left += 1
        elif kind == "time":
            desk.pass_time(what[0] / 1000)
        assert len(desk.admitted) + len(desk.refused) + desk.waiting + left == asked
        for key in keys:
            account = desk.desk.account(key)
            assert account.running <= 2 and account.user.running <= 3
        due_ns = desk.desk.admission.waiting.due_ns
        assert desk.waiting == 0 or due_ns is not None, "somebody looks after those who wait"
    desk.pass_time(WAIT_MS / 1000)
    assert desk.waiting == 0 and not desk.waiters
    queue = desk.desk.admission.waiting
    assert not queue._lanes and not queue._by_key and not queue._ready and queue.due_ns is None


@pytest.mark.parametrize("operation", [Operation.READ, Operation.ADMIN])
def test_only_inference_waits(operation: Operation) -> None:
    desk = bench(api_key("k", user="admin"), limits=Limits(concurrent=1))
    desk.ask("a")
    desk.ask("b")
    outcome = desk.desk.admission.admit_or_wait(Ask(desk.desk.key.digest, operation), lambda _: None)
    assert isinstance(outcome, Decision) and outcome.refusal is None

"""A random life of the admission beside the reference, over any store: each answer is compared, and each restart
must go on with the same book. A store's test runs `Trial` with a function that opens that store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.unit.auth.fakes import CONFIG, FakeClock, api_key
from tests.unit.auth.reference import Reference, ScopeLimits

from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.decision import Ask
from vllm_proxy.auth.keys import KeyRing
from vllm_proxy.auth.lease import Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.limits import KeyRules, LimitOverrides, Limits
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.owners import OWNER_GRACE_NS
from vllm_proxy.auth.policy import Policy, UserRules
from vllm_proxy.auth.store import Record, Store

#: Opens the store of this trial, each time with what it was left with.
OpenStore = Callable[[], Awaitable[Store]]

OWNERS = ("edge-1", "edge-2")
MODELS = ("big", "small")
KEYS = (
    api_key("a1", user="alice", quota=1500, rules=KeyRules(model_limits=(("big", LimitOverrides(concurrent=2)),))),
    api_key("a2", user="alice", rules=KeyRules(LimitOverrides(qps=1.5, tokens_per_minute=None))),
    api_key("b1", user="bob"),
)
POLICY = Policy(
    Limits(concurrent=3, tokens_per_minute=900),
    Limits(tokens_per_minute=1500),
    Limits(qps=5, concurrent=6),
    {"bob": UserRules(LimitOverrides(qps=3), quota=1200)},
)
#: The same limits again, in the reference's words.
LIMITS = {
    "key a1": ScopeLimits(None, 3, 900, 1500),
    "key a2": ScopeLimits(1.5, 3, None),
    "key b1": ScopeLimits(None, 3, 900),
    "user alice": ScopeLimits(None, None, 1500),
    "user bob": ScopeLimits(3, None, 1500, 1200),
    "global": ScopeLimits(5, 6),
    "a1 big": ScopeLimits(None, 2),
}
_NAMES = ("a1", "a2", "b1")
_SOURCES = {"edge": Source.EDGE, "host": Source.HOST, "tool": Source.TOOL}

_ADMIT = st.tuples(
    st.just("admit"),
    st.integers(0, 2),
    st.sampled_from(OWNERS),
    st.sampled_from(MODELS),
    st.integers(0, 60),
    st.integers(0, 300),
)
_SETTLE = st.tuples(
    st.just("settle"),
    st.integers(0, 6),
    st.sampled_from(("edge", "edge", "host", "tool")),
    st.integers(1, 3),
    st.integers(0, 400),
)
_SOON = st.tuples(st.just("time"), st.integers(0, 700))
_LATE = st.tuples(st.just("time"), st.integers(0, 40_000))
_OWNER = st.tuples(st.sampled_from(("connect", "disconnect", "renew")), st.sampled_from(OWNERS))
#: Some come more often than others, so that limits are reached.
STEPS = st.lists(
    st.one_of(_ADMIT, _ADMIT, _ADMIT, _ADMIT, _SETTLE, _SETTLE, _SOON, _SOON, _LATE, _OWNER), min_size=20, max_size=70
)


class Trial:
    def __init__(self, open_store: OpenStore) -> None:
        self.open_store = open_store
        self.clock = FakeClock()
        self.reference = Reference(LIMITS, CONFIG.lease_ttl_ns, CONFIG.settle_grace_ns, OWNER_GRACE_NS)
        self.leases: list[str] = []
        self.restarts = 0
        self.store: Store
        self.admission: Admission

    async def run(self, steps: list[tuple[Any, ...]], restart_every: int = 0) -> None:
        """`restart_every` so many steps the process begins anew; 0: never."""
        await self.start()
        try:
            for number, (kind, *what) in enumerate(steps, start=1):
                await getattr(self, kind)(*what)
                if restart_every and number % restart_every == 0:
                    await self.restart()
                self.check_book()
        finally:
            await self.store.close()

    async def start(self) -> None:
        self.store = await self.open_store()
        now_ms = self.clock.unix_ms()
        state = self.store.load(now_ms - CONFIG.settle_grace_ns // 1_000_000, 0, 0)
        config = replace(CONFIG, policy=POLICY)
        self.admission = Admission(config, KeyRing(KEYS), AuthMetrics(CollectorRegistry()), self.clock)
        self.admission.restore(state)

    async def restart(self) -> None:
        await self.store.close()
        await self.start()
        self.reference.restart(self.clock.ns)
        self.restarts += 1

    async def durable(self, records: list[Record]) -> None:
        done = asyncio.Event()
        self.store.append(records, done.set)
        async with asyncio.timeout(20):
            await done.wait()

    async def admit(self, which: int, owner: str, model: str, prompt: int, response: int) -> None:
        key, name = KEYS[which], _NAMES[which]
        scopes: tuple[str, ...] = (f"key {name}", f"user {key.user}", "global")
        if (name, model) == ("a1", "big"):
            scopes = (*scopes, "a1 big")
        now, wanted = self.clock.ns, prompt + response
        decision = self.admission.admit(Ask(key.digest, Operation.INFERENCE, owner, "r", model, prompt, response))
        obstacles = self.reference.obstacles(scopes, prompt, wanted, now)
        if decision.refusal is None:
            assert obstacles == []
            request = self.reference.admit(decision.lease_id, name, owner, scopes, wanted, now)
            assert decision.reserved_tokens == request.reserved
            assert decision.record is not None
            await self.durable([decision.record])
            self.leases.append(decision.lease_id)
        elif not self.restarts:
            # After a restart the meters may err on the safe side: times are kept in milliseconds.
            wait = decision.refusal.retry_after_ns
            waits = [obstacle.wait for obstacle in obstacles if obstacle.limit == decision.refusal.limit_name]
            if wait is None:
                assert None in waits
            else:
                helpful = [obstacle.wait for obstacle in obstacles]
                assert None not in helpful
                longest = max(wait for wait in helpful if wait is not None)
                assert longest in waits and longest <= wait < longest + 1

    async def settle(self, which: int, source: str, attempt: int, tokens: int) -> None:
        if not self.leases:
            return
        lease_id = self.leases[-1 - which % len(self.leases)]
        given = Settlement(lease_id, attempt, _SOURCES[source], Outcome.FINISHED, Usage(0, 0, tokens), "m", "h")
        verdict = self.admission.book.settle(given)
        assert verdict.applied == self.reference.settle(lease_id, attempt, source, tokens, self.clock.ns)
        await self.durable(verdict.records)

    async def connect(self, owner: str) -> None:
        self.admission.book.owner_connected(owner)
        self.reference.connect(owner)

    async def disconnect(self, owner: str) -> None:
        if self.reference.sessions.get(owner):
            self.admission.book.owner_disconnected(owner)
            self.reference.disconnect(owner, self.clock.ns)

    async def renew(self, owner: str) -> None:
        self.admission.book.renew(owner, self.leases)
        self.reference.renew(owner, self.clock.ns)

    async def time(self, milliseconds: int) -> None:
        self.clock.ns += milliseconds * 1_000_000
        records = self.admission.tick()
        self.reference.tick(self.clock.ns)
        await self.durable(records)

    def check_book(self) -> None:
        for key, name in zip(KEYS, _NAMES, strict=True):
            account = self.admission.account_of(key)
            for scope, known_as in ((account, f"key {name}"), (account.user, f"user {key.user}")):
                real = (scope.running, scope.reserved_tokens, scope.total_tokens)
                reference = self.reference
                assert real == (
                    reference.running(known_as), reference.reserved(known_as), reference.charged(known_as),
                ), known_as  # fmt: skip
            assert account.balance().charged_tokens == account.total_tokens
        still_open = {request.lease_id for request in self.reference.requests.values() if request.is_open}
        assert {lease.lease_id for lease in self.admission.book} == still_open

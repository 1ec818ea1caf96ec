"""The admission over a real Redis: each answer is the reference's, and restarts go on with the same book."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.support.valkey import Valkey
from tests.unit.auth.admission_trial import STEPS, Trial
from tests.unit.auth.fakes import CONFIG
from tests.unit.auth.test_journal import EVENTS, Life, stored

from vllm_proxy.auth.config import RedisConfig
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.redis_store import RedisStore
from vllm_proxy.auth.store import Store, StoredState, make_durable

#: Each example has keys of its own in the server that all share.
PREFIXES = (f"example-{number}" for number in itertools.count())
FEW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey(sync="everysec") as valkey:
        yield valkey


async def open_store(valkey: Valkey, prefix: str, since_ms: int = 0) -> Store:
    config = replace(CONFIG, redis_url=valkey.url, redis=RedisConfig(prefix=prefix))
    return await RedisStore.open(config, AuthMetrics(CollectorRegistry()), lambda: (since_ms, 0, 0))


@given(steps=STEPS, restart_every=st.integers(3, 20))
@FEW
def test_every_answer_is_the_references(valkey: Valkey, steps: list[tuple[Any, ...]], restart_every: int) -> None:
    prefix = next(PREFIXES)

    async def open_again() -> Store:
        recent_since_ms = trial.clock.unix_ms() - CONFIG.settle_grace_ns // 1_000_000
        return await open_store(valkey, prefix, recent_since_ms)

    trial = Trial(open_again)
    asyncio.run(trial.run(steps, restart_every))


@given(events=EVENTS)
@FEW
def test_it_reads_what_was_written(valkey: Valkey, events: list[tuple[Any, ...]]) -> None:
    prefix, life = next(PREFIXES), Life()

    async def write_and_read() -> StoredState:
        store = await open_store(valkey, prefix)
        for event in events:
            if records := life.happens(*event):
                await make_durable(store, records)
        await store.close()
        again = await open_store(valkey, prefix)
        await again.close()
        return again.load(0, 0, 0)

    read, said = asyncio.run(write_and_read()), stored(life.records)
    assert read.balances == said.balances and read.recent == said.recent
    assert {lease.lease_id: lease for lease in read.leases} == {lease.lease_id: lease for lease in said.leases}
    assert {report.lease_id: report for report in read.reports} == {report.lease_id: report for report in said.reports}

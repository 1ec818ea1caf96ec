"""The admission held against the reference: limits, leases, restarts, and many peers at once."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.unit.auth.admission_trial import STEPS, Trial
from tests.unit.auth.fakes import FakeClock, MemoryStore

from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.sqlite_store import SqliteStore
from vllm_proxy.auth.store import Store

QUICKLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(STEPS)
@settings(QUICKLY, max_examples=120)
def test_every_answer_is_the_references(steps: list[tuple[Any, ...]]) -> None:
    async def open_store() -> Store:
        return MemoryStore()

    asyncio.run(Trial(open_store).run(steps))


@given(STEPS, st.integers(3, 20))
@settings(QUICKLY, max_examples=15)
def test_restarts_keep_the_book_and_let_nobody_through(steps: list[tuple[Any, ...]], restart_every: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Trial(lambda: open_sqlite(Path(folder) / "auth.db")).run(steps, restart_every))


async def open_sqlite(path: Path) -> Store:
    metrics = AuthMetrics(CollectorRegistry())
    return SqliteStore(path, full_sync=False, metrics=metrics, ledger_retention_days=90, clock=FakeClock())

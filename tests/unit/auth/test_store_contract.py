from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.auth.fakes import FakeClock
from tests.unit.auth.store_contract import OpenAgain, OpenStore, StoreContract

from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.sqlite_store import SqliteStore


class TestSqlite(StoreContract):
    @pytest.fixture
    def open_again(self, tmp_path: Path) -> OpenAgain:
        async def open_again(since_ms: int = 0) -> OpenStore:
            metrics = AuthMetrics(CollectorRegistry())
            path = tmp_path / "auth.db"
            store = SqliteStore(path, full_sync=False, metrics=metrics, ledger_retention_days=90, clock=FakeClock())
            return OpenStore(store, since_ms)

        return open_again

"""Which tests share a process when several run (`-n 2 --dist loadfile`), and the gateway over the real vLLM.

The fixture `gateway` is all services with the real vLLM behind them, started once for tests/parity and tests/system.
Each folder's conftest says in which state its tests get it: in tests/parity both demo adapters are loaded, in
tests/system none is. A test leaves it as it found it; the one that kills the engine's host is the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from tests.support.cluster import Cluster
    from tests.support.otlp_collector import OtlpCollector

#: Folders whose tests need a real engine: its start takes most of a minute, longer on a busy machine.
WITH_ENGINE = ("tests/engine/", "tests/parity/", "tests/system/")
ENGINE_TEST_TIMEOUT_S = 600

# Timings are never asserted: a machine that is busy fails no test.
settings.register_profile("vllm-proxy", deadline=None)
settings.load_profile("vllm-proxy")


class Scheduling(LoadScopeScheduling):
    """A file's tests run in one process, and so do those of one engine, whose start they share.

    By node id: xdist 3.8 writes its groups to a field that pytest 9.2 does not read, so `loadgroup` has no effect.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return _engine_of(nodeid) if path.startswith(WITH_ENGINE) else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def _engine_of(nodeid: str) -> str:
    """A column's engine, the gateway's, or that of a file of its own."""
    from tests.engine.columns import COLUMNS

    for column in COLUMNS:
        if f"[{column.name}" in nodeid:
            return column.engine
    shared = ("tests/parity/", "tests/system/test_gateway.py", "tests/system/test_engine_spans.py")
    return "gateway" if nodeid.startswith(shared) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(WITH_ENGINE):
            item.add_marker(pytest.mark.timeout(ENGINE_TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def collector() -> Iterator[OtlpCollector]:
    """Where the gateway's spans go."""
    from tests.support.otlp_collector import OtlpCollector

    with OtlpCollector() as collector:
        yield collector


@pytest.fixture(scope="session")
def gateway(collector: OtlpCollector) -> Iterator[Cluster]:
    from tests.real_gateway import real_gateway

    with real_gateway(collector.endpoint) as cluster:
        yield cluster

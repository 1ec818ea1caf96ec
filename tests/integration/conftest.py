"""Clusters of real processes, and their logs beside each test that fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.cluster import Cluster

StartCluster = Callable[..., Cluster]
#: What takes longest goes first: `make test` runs files side by side, and none is to be left alone at the end.
LONGEST = ("test_supervision", "test_chaos", "test_supervised_kills", "test_redis_store")
_RUNNING = pytest.StashKey[list[Cluster]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="module")
def start_cluster(request: pytest.FixtureRequest) -> Iterator[StartCluster]:
    """Starts a cluster (the arguments are Cluster's) that ends with the test module."""
    running = request.config.stash.setdefault(_RUNNING, [])
    with ExitStack() as stack:

        def start(*args: Any, **kwargs: Any) -> Cluster:
            cluster = Cluster(*args, **kwargs)
            running.append(cluster)
            stack.callback(running.remove, cluster)
            return stack.enter_context(cluster)

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for cluster in item.config.stash.get(_RUNNING, []):
            report.sections.append((f"services in {cluster.root}", cluster.logs()))
    return report

"""Clusters of real processes, and their logs beside each test that fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.cluster import Cluster

StartCluster = Callable[..., Cluster]
_RUNNING = pytest.StashKey[list[Cluster]]()


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

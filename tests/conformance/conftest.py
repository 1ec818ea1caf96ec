from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One live edge for all clients."""
    with Cluster() as cluster:
        yield cluster

"""A user's gateway: no adapter is loaded at first."""

from __future__ import annotations

import pytest
from tests.real_gateway import only_adapters
from tests.support.cluster import Cluster


@pytest.fixture(scope="session")
def gateway(gateway: Cluster) -> Cluster:
    """Its tests run in the order of their file and leave no adapter loaded."""
    only_adapters(gateway, ())
    return gateway

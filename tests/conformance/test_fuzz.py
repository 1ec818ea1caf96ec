"""A minute of made-up requests: none is answered with a 5xx or otherwise than described, and none hangs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.fuzz import OVERTIME_S, SIM, fuzz
from tests.support.cluster import ADMIN, Cluster
from tests.support.wait import eventually

SECONDS = 40
#: The same requests each time; `make fuzz` makes up others.
SEED = 1


@pytest.fixture
def fuzzed() -> Iterator[Cluster]:
    with Cluster({"sim": SIM}) as cluster:
        yield cluster


@pytest.mark.timeout(SECONDS + OVERTIME_S + 20)
async def test_made_up_requests(fuzzed: Cluster) -> None:
    assert fuzz(fuzzed.url, ADMIN.key, "sim", SECONDS, SEED) == 0, "see what schemathesis says above"
    assert all(service.running for service in fuzzed.services)
    faults = [line for service in fuzzed.services for line in service.log_lines() if "error_id" in line]
    assert faults == []
    assert any(row["completion_tokens"] for row in fuzzed.journal()), "requests reached the engine"
    await eventually(lambda: not fuzzed.control.open_leases(), "every lease settled")

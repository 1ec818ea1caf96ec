"""The API's description is good OpenAPI. A minute of requests that are made up from it: none is answered with a 5xx or
otherwise than described, and none hangs."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.fuzz import OVERTIME_S, SIM, fuzz
from tests.support.cluster import ADMIN, Cluster
from tests.support.process import CLIENTS_PYTHON
from tests.support.wait import eventually

SECONDS = 40
#: The same requests each time; `make fuzz` makes up others.
SEED = 1


@pytest.fixture
def fuzzed() -> Iterator[Cluster]:
    with Cluster({"sim": SIM}) as cluster:
        yield cluster


async def test_the_description_is_valid(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "openapi.json"
    file.write_bytes((await cluster.client().request("GET", "/openapi.json")).body)
    command = (str(CLIENTS_PYTHON), "-m", "openapi_spec_validator", str(file))
    said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout


@pytest.mark.timeout(SECONDS + OVERTIME_S + 20)
async def test_made_up_requests(fuzzed: Cluster) -> None:
    assert fuzz(fuzzed.url, ADMIN.key, "sim", SECONDS, SEED) == 0, "see what schemathesis says above"
    assert all(service.running for service in fuzzed.services)
    faults = [line for service in fuzzed.services for line in service.log_lines() if "error_id" in line]
    assert faults == []
    assert any(row["completion_tokens"] for row in fuzzed.journal()), "requests reached the engine"
    await eventually(lambda: not fuzzed.control.open_leases(), "every lease settled")

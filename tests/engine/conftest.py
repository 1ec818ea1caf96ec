"""One engine for all tests that leave it as they found it; clients that clear its adapters afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from tests.engine.running import EngineClient, RunningEngine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting an engine takes most of a minute, and longer on a busy machine."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def engine() -> Iterator[RunningEngine]:
    running = RunningEngine()
    try:
        yield running.start()
    finally:
        running.stop()


@pytest_asyncio.fixture
async def client(engine: RunningEngine) -> AsyncIterator[EngineClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=engine.url, timeout=180, limits=limits) as http:
        asking = EngineClient(engine, http)
        yield asking
        await asking.unload_all()


@pytest_asyncio.fixture
async def voices(client: EngineClient) -> EngineClient:
    """A client of an engine that has both adapters."""
    for name in ("pirate", "robot"):
        answer = await client.load_adapter(name, f"adapters/{name}")
        assert answer.status_code == 200, answer.text
    return client

"""One engine for each column, shared by all its tests, which leave it as they found it; and the table of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from tests.engine.columns import CANNOT, Column, selected
from tests.engine.running import EngineClient, RunningEngine
from tests.engine.table import Table

#: Starting an engine takes most of a minute, and longer on a busy machine.
TEST_TIMEOUT_S = 400

_TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine-table", type=Path, metavar="FILE", help="write the table of what each column can there")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name): the row of docs/ENGINES.md that a test stands for")
    config.stash[_TABLE] = Table([column.name for column in selected()])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))
        if (column := _column(item)) and (reason := CANNOT.get((column.name, _function(item)))):
            item.add_marker(pytest.mark.skip(reason=reason))
    # The engine is killed when its other tests are through. One engine at a time: pytest has grouped them by column.
    order = list(dict.fromkeys(column.name for item in items if (column := _column(item))))
    places = {name: place for place, name in enumerate(order)}
    items.sort(key=lambda item: (places[c.name] if (c := _column(item)) else -1, "test_death" in item.nodeid))


def _column(item: pytest.Item) -> Column | None:
    call = getattr(item, "callspec", None)
    found = call.params.get("engine") if call is not None else None
    return found if isinstance(found, Column) else None


def _function(item: pytest.Item) -> str:
    return getattr(item, "originalname", None) or item.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    column, row = _column(item), item.get_closest_marker("row")
    if column is not None and row is not None and (report.when == "call" or report.outcome != "passed"):
        reason = CANNOT.get((column.name, _function(item)), "") if report.skipped else ""
        item.config.stash[_TABLE].add(row.args[0], column.name, report.outcome, reason)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--engine-table"):
        session.config.stash[_TABLE].write(path)


@pytest.fixture(scope="session", params=selected(), ids=lambda column: column.name)
def engine(request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    running = RunningEngine(request.param)
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

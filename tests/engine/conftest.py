"""One engine for each column, shared by all its tests, which leave it as they found it; and the table of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from tests.engine.columns import CANNOT, COLUMNS, Column, selected
from tests.engine.crash import Crash, crash
from tests.engine.running import EngineClient, RunningEngine
from tests.engine.table import Table

_TABLE = pytest.StashKey[Table]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine-table", type=Path, metavar="FILE", help="write the table of what each column can there")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(name): the row of docs/ENGINES.md that a test stands for")
    config.addinivalue_line("markers", "one_host: not again at a second host of the same engine, by the same code")
    config.stash[_TABLE] = Table([column.name for column in selected()])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    again = [item for item in items if item.get_closest_marker("one_host") and _has_one_before(item)]
    if again:
        items[:] = [item for item in items if item not in again]
        config.hook.pytest_deselected(items=again)
    for item in items:
        if reason := _cannot(item):
            item.add_marker(pytest.mark.skip(reason=reason))
    # One engine at a time in a process; it is killed when all other tests of its columns are through.
    order = list(dict.fromkeys(column.engine for column in selected()))
    names = [column.name for column in selected()]

    def place(item: pytest.Item) -> tuple[int, bool, int]:
        column = _column(item)
        if column is None:
            return -1, False, 0
        return order.index(column.engine), "test_death" in item.nodeid, names.index(column.name)

    items.sort(key=place)


def _column(item: pytest.Item) -> Column | None:
    call = getattr(item, "callspec", None)
    found = call.params.get("engine") if call is not None else None
    return found if isinstance(found, Column) else None


def _has_one_before(item: pytest.Item) -> bool:
    """Whether another column of the run is a host of the same engine process."""
    column = _column(item)
    return column is not None and next(c for c in selected() if c.engine == column.engine) != column


def _cannot(item: pytest.Item) -> str:
    """Why a test cannot pass in its column; empty if it can."""
    column = _column(item)
    if column is None:
        return ""
    function = getattr(item, "originalname", None) or item.name
    parameters = item.name.removeprefix(f"{function}[{column.name}-").rstrip("]")
    return CANNOT.get((column.name, function)) or CANNOT.get((column.name, f"{function}[{parameters}]")) or ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    column, row = _column(item), item.get_closest_marker("row")
    if column is not None and row is not None and (report.when == "call" or report.outcome != "passed"):
        reason = _cannot(item) if report.skipped else ""
        item.config.stash[_TABLE].add(row.args[0], column.name, report.outcome, reason)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("--engine-table"):
        session.config.stash[_TABLE].write(path)


class Engines:
    """The hosts that run, of one engine at a time."""

    def __init__(self) -> None:
        self._running: dict[str, RunningEngine] = {}
        self._crashes: dict[str, Crash] = {}

    def of(self, column: Column) -> RunningEngine:
        for running in list(self._running.values()):
            if running.column.engine != column.engine:
                self.stop()
        if column.launch_mode == "attached":
            self._start(next(c for c in COLUMNS if c.engine == column.engine and c.launch_mode == "cli"))
        return self._start(column)

    def at(self, column: Column) -> list[RunningEngine]:
        """All hosts of a column's engine."""
        return [running for running in self._running.values() if running.column.engine == column.engine]

    async def crash(self, column: Column) -> Crash:
        """What a column's clients saw when its engine was killed: once for all columns of the engine."""
        if column.name not in self._crashes:
            self._crashes.update(await crash(self.at(column)))
        return self._crashes[column.name]

    def stop(self) -> None:
        while self._running:
            self._running.popitem()[1].stop()

    def _start(self, column: Column) -> RunningEngine:
        if column.name not in self._running:
            port = next((running.engine_port for running in self._running.values()), 0)
            running = self._running[column.name] = RunningEngine(column, port)
            running.start()
        return self._running[column.name]


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    running = Engines()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session", params=selected(), ids=lambda column: column.name)
def engine(request: pytest.FixtureRequest, engines: Engines) -> RunningEngine:
    return engines.of(request.param)


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

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from vllm_proxy.common.config_watch import watch_settings
from vllm_proxy.common.settings import Settings

DEADLINE_S = 5


class Watched(logging.Handler):
    """A configuration file, what its watcher handed on, and what it refused (told by its log)."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self.path = path
        self._applied: asyncio.Queue[Settings] = asyncio.Queue()
        self.refusals: list[str] = []
        self._refused = asyncio.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.refusals.append(record.__dict__["detail"])
        self._refused.release()

    def apply(self, settings: Settings) -> None:
        self._applied.put_nowait(settings)

    async def refusal(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._refused.acquire()

    async def next(self) -> Settings:
        async with asyncio.timeout(DEADLINE_S):
            return await self._applied.get()

    @property
    def nothing_more(self) -> bool:
        return self._applied.empty()


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    path = tmp_path / "config.yaml"
    path.write_text("rate_limit: {qps: 1}\n")
    watched = Watched(path)
    log = logging.getLogger("vllm_proxy.common.config_watch")
    log.addHandler(watched)
    task = asyncio.create_task(watch_settings(path, watched.apply, interval_s=0.001))
    await asyncio.sleep(0)  # it has seen the first version
    yield watched
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    log.removeHandler(watched)


async def test_a_change_is_handed_on(watched: Watched) -> None:
    watched.path.write_text("rate_limit: {qps: 22}\n")
    assert (await watched.next()).rate_limit.qps == 22


async def test_a_replaced_file_is_a_change(watched: Watched) -> None:
    other = watched.path.with_suffix(".new")
    other.write_text("rate_limit: {qps: 3}\n")
    other.replace(watched.path)
    assert (await watched.next()).rate_limit.qps == 3


async def test_a_bad_version_changes_nothing_and_is_said_once(watched: Watched) -> None:
    watched.path.write_text("rate_limit: {qsp: 22}\n")
    await watched.refusal()
    watched.path.write_text("rate_limit: {qps: 333}\n")
    assert (await watched.next()).rate_limit.qps == 333
    assert watched.nothing_more
    assert ["rate_limit.qsp: unknown key" in detail for detail in watched.refusals] == [True]


async def test_a_file_that_vanishes_and_returns_is_followed(watched: Watched) -> None:
    watched.path.unlink()
    await watched.refusal()
    watched.path.write_text("rate_limit: {qps: 4}\n")
    assert (await watched.next()).rate_limit.qps == 4

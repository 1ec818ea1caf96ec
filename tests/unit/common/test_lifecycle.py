from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_proxy.common.lifecycle import StopSignal, cancel_all, run_service, spawn
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings


@pytest.fixture
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for switch in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, switch, getattr(logging, switch))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


LOADED = LoadedSettings(Settings(), Path("config.yaml"), Path())


@pytest.mark.usefixtures("own_logging")
class TestRunService:
    def test_returns_what_the_service_returned(self) -> None:
        async def serve(loaded: LoadedSettings, stop: StopSignal) -> int:
            stop.request()
            await stop.wait()
            return 7 if stop.requested and loaded is LOADED else 1

        assert run_service("auth", LOADED, serve) == 7

    def test_a_configuration_fault_at_start_is_one_line_and_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        async def serve(loaded: LoadedSettings, stop: StopSignal) -> int:
            raise ConfigError("auth.address: 0.0.0.0:1 needs a token")

        assert run_service("auth", LOADED, serve) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "auth.address: 0.0.0.0:1 needs a token" in line
        assert "traceback" not in line


class TestTasks:
    async def test_a_task_that_fails_unseen_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fail() -> None:
            raise ValueError("deep")

        tasks: set[asyncio.Task[Any]] = set()
        task = spawn(tasks, fail(), "worker")
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert tasks == set()
        (record,) = caplog.records
        assert record.__dict__["task"] == "worker"
        assert record.exc_info is not None and isinstance(record.exc_info[1], ValueError)

    async def test_cancel_all_waits_until_they_have_ended(self, caplog: pytest.LogCaptureFixture) -> None:
        ended: list[str] = []

        async def worker() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("cleaned up")

        tasks: set[asyncio.Task[Any]] = set()
        for number in range(3):
            spawn(tasks, worker(), f"worker-{number}")
        await asyncio.sleep(0)
        await cancel_all(tasks)
        assert len(ended) == 3
        assert tasks == set()
        assert caplog.records == []

"""An engine that dies is noticed by its host and leaves nothing behind. (A host that dies: tests/system.)"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.running import RunningEngine
from tests.support.wait import wait_until

NOTICED_S = 1.5


@pytest.fixture(scope="module")
def mortal() -> Iterator[RunningEngine]:
    running = RunningEngine()
    try:
        yield running
    finally:
        running.stop()


def _core(engine: RunningEngine) -> int:
    def named(pid: int) -> bool:
        return "EngineCore" in Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()

    return next(pid for pid in engine.engine_pids() if named(pid))


def test_kill_9_of_the_engine_is_noticed(mortal: RunningEngine) -> None:
    mortal.start()
    os.kill(_core(mortal), signal.SIGKILL)
    died = mortal.root / "died"
    wait_until(died.exists, "the host notices", NOTICED_S)
    assert died.read_text().startswith("vLLM's engine died")
    assert mortal.process.wait_ended(30) == 3
    assert mortal.engine_pids() == []
    # The host's own log stayed JSON, the engine's went to its file.
    assert [line for line in mortal.process.log_lines() if "time" not in line] == []
    assert "EngineCore" in mortal.log_file.read_text()

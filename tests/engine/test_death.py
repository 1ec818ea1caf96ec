"""An engine that dies: who asked is told at once, the host notices, nothing is left behind, what can returns by itself.

Last in its column, since it kills the engine that the column's tests share. (A host that dies: tests/system.)
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from tests.engine.columns import BASE
from tests.engine.conftest import Engines
from tests.engine.running import START_DEADLINE_S, EngineClient, RunningEngine, voice
from tests.support.wait import eventually

TOLD_S = 2.0


@pytest.mark.row("kill -9 of the engine: requests end within 2 s, nothing is left, it comes back by itself")
async def test_kill_9_of_the_engine(engine: RunningEngine, engines: Engines) -> None:
    victims = [pid for host in engines.at(engine.column) for pid in host.engine_pids()]
    crash = await engines.crash(engine.column)
    assert crash.stream_told_after_s < TOLD_S and crash.whole_told_after_s < TOLD_S
    assert crash.whole_status in (0, 500, 502, 503)
    if engine.column.launch_mode == "python_api":
        await _host_ends_with_it(engine)
    else:
        assert engine.process.running
        away = await eventually(lambda: _lines(engine, "engine away"), "the host notices", TOLD_S)
        await eventually(lambda: engine.state == "SERVING", "the engine back", START_DEADLINE_S)
        async with httpx.AsyncClient(base_url=engine.url, timeout=60) as http:
            assert voice(await EngineClient(engine, http).chat(BASE)) == "base"
    if engine.column.launch_mode == "cli":
        assert not set(victims) & set(engine.engine_pids())
        assert len(away) == 1 and "signal 9" in away[0]["detail"]


async def _host_ends_with_it(engine: RunningEngine) -> None:
    """Its supervisor starts both again."""
    assert await asyncio.to_thread(engine.process.wait_ended, 30) == 1
    [died] = _lines(engine, "engine died")
    assert "'s engine died" in died["detail"]
    await eventually(lambda: engine.engine_pids() == [], "no process of the engine")
    # The host's own log stayed JSON, the engine's went to its file.
    assert [line for line in engine.process.log_lines() if "time" not in line] == []
    assert engine.column.core_log in engine.log_file.read_text()


def _lines(engine: RunningEngine, event: str) -> list[dict[str, Any]]:
    return [line for line in engine.process.log_lines() if line["event"] == event]

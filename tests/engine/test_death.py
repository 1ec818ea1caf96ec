"""An engine that dies: who asked is told at once, the host notices, nothing is left behind.

Last in its column, since it kills the engine that the column's tests share. (A host that dies: tests/system.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import httpx
import pytest
from tests.engine.columns import BASE
from tests.engine.running import EngineClient, RunningEngine
from tests.support.wait import eventually

TOLD_S = 2.0


def _core(engine: RunningEngine) -> int:
    def named(pid: int) -> bool:
        return engine.column.core in Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()

    return next(pid for pid in engine.engine_pids() if named(pid))


@pytest.mark.row("kill -9 of the engine: requests end in time, the host notices, nothing is left")
async def test_kill_9_of_the_engine(engine: RunningEngine) -> None:
    async with httpx.AsyncClient(base_url=engine.url, timeout=60) as http:
        client = EngineClient(engine, http)
        body = client.chat_body(BASE, max_tokens=800, ignore_eos=True)
        events = client.events("/v1/chat/completions", body)
        await anext(events)

        async def rest() -> None:
            async for event in events:
                if "error" in event:
                    return

        whole = asyncio.create_task(http.post("/v1/chat/completions", json=body))

        async def both_run() -> bool:
            return (await client.load())["running"] == 2

        await eventually(both_run, "both running", 30)
        os.kill(_core(engine), signal.SIGKILL)
        async with asyncio.timeout(TOLD_S):
            with contextlib.suppress(httpx.HTTPError):  # cut off; the edge says why
                await rest()
            try:
                answer = await whole
            except httpx.HTTPError:
                pass
            else:
                assert answer.status_code >= 500 and json.loads(answer.content)["error"]
    assert await asyncio.to_thread(engine.process.wait_ended, 30) == 1
    lines = engine.process.log_lines()
    [died] = [line for line in lines if line["event"] == "engine died"]
    assert "'s engine died" in died["detail"]
    await eventually(lambda: engine.engine_pids() == [], "no process of the engine")
    # The host's own log stayed JSON, the engine's went to its file.
    assert [line for line in lines if "time" not in line] == []
    assert engine.column.core_log in engine.log_file.read_text()

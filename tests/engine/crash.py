"""kill -9 of an engine while each of its hosts has a stream and a whole answer under way, done once for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.engine.columns import BASE
from tests.engine.running import EngineClient, RunningEngine
from tests.support.wait import eventually

#: How long a request may take to learn of it, before a test fails for want of an answer at all.
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Crash:
    """What one host's clients saw."""

    stream_told_after_s: float
    whole_told_after_s: float
    #: 0: the connection was cut.
    whole_status: int


async def crash(hosts: Sequence[RunningEngine]) -> dict[str, Crash]:
    """By the name of the column. `hosts` are all those of one engine."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            EngineClient(host, await stack.enter_async_context(httpx.AsyncClient(base_url=host.url, timeout=60)))
            for host in hosts
        ]
        asked = [(client, *await _ask(client)) for client in clients]

        async def all_run() -> bool:
            return [(await client.load())["running"] for client in clients] == [2 * len(hosts)] * len(hosts)

        await eventually(all_run, "all running", 30)
        os.kill(_victim(hosts), signal.SIGKILL)
        began = time.monotonic()
        reports = await asyncio.gather(*(_told(stream, whole, began) for _, stream, whole in asked))
        return {client.engine.column.name: report for client, report in zip(clients, reports, strict=True)}


async def _ask(client: EngineClient) -> tuple[asyncio.Task[None], asyncio.Task[httpx.Response]]:
    body = client.chat_body(BASE, max_tokens=800, ignore_eos=True)
    events = client.events("/v1/chat/completions", body)
    await anext(events)

    async def rest() -> None:
        with contextlib.suppress(httpx.HTTPError):  # cut off; the edge says why
            async for event in events:
                if "error" in event:
                    return

    whole = asyncio.create_task(client.http.post("/v1/chat/completions", json=body))
    return asyncio.create_task(rest()), whole


async def _told(stream: asyncio.Task[None], whole: asyncio.Task[httpx.Response], began: float) -> Crash:
    async def status() -> tuple[int, float]:
        try:
            answer = (await whole).status_code
        except httpx.HTTPError:
            answer = 0
        return answer, time.monotonic() - began

    async def end() -> float:
        await stream
        return time.monotonic() - began

    async with asyncio.timeout(PATIENCE_S):
        (answer, whole_s), stream_s = await asyncio.gather(status(), end())
    return Crash(stream_s, whole_s, answer)


def _victim(hosts: Sequence[RunningEngine]) -> int:
    """The engine's server where that is a process, else what computes for the host."""
    host = next(host for host in hosts if host.column.launch_mode != "attached")
    if host.column.launch_mode == "cli":
        return host.engine_record.pid

    def named(pid: int) -> bool:
        names = Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
        return host.column.core in names

    return next(pid for pid in host.engine_pids() if named(pid))

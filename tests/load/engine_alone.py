"""The simulated engine with nobody to serve: what it costs by itself, so that transport can be told from it.

`python -m tests.load.engine_alone --calls N --window-s S [--whole] --sim JSON` prints CPU µs per token, or per request
with `--whole` (answers in one piece, each call followed by the next).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

from vllm_proxy.common.settings import Sim
from vllm_proxy.engine_host.engines.base import Message, UsageMeter, current_meter
from vllm_proxy.engine_host.engines.sim import SimEngine

SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}


class Caller:
    """Calls the engine's application in place, again and again, and throws the answers away."""

    def __init__(self, engine: SimEngine, body: bytes) -> None:
        self._engine = engine
        self._body = body
        self.meter = UsageMeter()
        self.answers = 0

    async def run(self) -> None:
        current_meter.set(self.meter)
        while True:
            await self._call()
            self.answers += 1

    async def _call(self) -> None:
        ended = asyncio.Event()
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await ended.wait()
                return {"type": "http.disconnect"}
            asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ended.set()

        await self._engine.app(dict(SCOPE), receive, send)


async def measure(sim: Sim, body: bytes, calls: int, window_s: float, *, whole: bool) -> float:
    """CPU µs of this process per token or answer."""
    engine = SimEngine(sim)
    await engine.start()
    callers = [Caller(engine, body) for _ in range(calls)]
    tasks = [asyncio.create_task(caller.run()) for caller in callers]

    def count() -> int:
        return sum(caller.answers if whole else caller.meter.completion_tokens for caller in callers)

    await asyncio.sleep(window_s / 4)
    before, cpu_before = count(), time.process_time()
    await asyncio.sleep(window_s)
    cost_us = (time.process_time() - cpu_before) * 1e6 / (count() - before)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.stop()
    return cost_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--window-s", type=float, required=True)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--sim", required=True, help="the sim section of the settings, as JSON")
    parser.add_argument("--body", required=True, help="the request, as JSON")
    args = parser.parse_args()
    sim = Sim.model_validate(json.loads(args.sim))
    print(uvloop.run(measure(sim, args.body.encode(), args.calls, args.window_s, whole=args.whole)))


if __name__ == "__main__":
    main()

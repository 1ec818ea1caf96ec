"""`make rolling-restart`: restarts every service under streams, as an operator does; not one request may fail.

Clients of three kinds stream all the while: some keep their connection and use it at once, some use it again after a
pause, some open one for each request. None tries anything twice. What counts as failed: any status but 200, a stream
without its end or with fewer tokens than were asked for, a connection that is refused, or one that ends after a
request was sent on it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from dataclasses import dataclass, field

from tests.support.cluster import free_port
from tests.support.http_client import Client, Connection, ResponseBroken, StreamOutcome, finish
from tests.support.proxyctl import proxyctl
from tests.support.site import Site

HOSTS = ("sim-a", "sim-b")
#: No request takes so long, whatever is restarted.
HUNG_AFTER_S = 60.0
#: How long an edge that stops leaves idle connections open, and the longest pause between two requests on one.
DRAIN_IDLE_S = 1.0
PAUSE_S = 2.0
#: One stream in ten is so much longer.
LONG = 8


@dataclass(frozen=True, slots=True)
class Plan:
    requests: int = 2000
    clients: int = 48
    #: Of most streams, at most.
    tokens: int = 100
    seed: int = 1
    #: Restarted in this order, each process of it alone.
    services: tuple[str, ...] = ("edge", "auth", "router", "engine-sim-a", "engine-sim-b")


@dataclass(slots=True)
class Report:
    plan: Plan
    answered: int = 0
    #: Whose request, its id, and what went wrong.
    failed: list[str] = field(default_factory=list)
    reconnected: int = 0
    slowest_first_token_s: float = 0.0
    duration_s: float = 0.0
    restarts: dict[str, float] = field(default_factory=dict)
    settled: int = 0

    @property
    def good(self) -> bool:
        return not self.failed and self.settled == self.answered

    def __str__(self) -> str:
        rows = [
            ("seed", str(self.plan.seed)),
            ("duration", f"{self.duration_s:.1f} s"),
            ("restarted", ", ".join(f"{name} {took_s:.1f} s" for name, took_s in self.restarts.items())),
            ("streams that ended well", str(self.answered)),
            ("failed", str(len(self.failed))),
            ("requests in the books", str(self.settled)),
            ("kept connections that the edge closed", str(self.reconnected)),
            ("slowest first token", f"{self.slowest_first_token_s:.2f} s"),
            ("verdict", "nobody noticed" if self.good else "FAILED"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name:{width}}  {value}" for name, value in rows), *self.failed])


class RollingRestarts:
    def __init__(self, plan: Plan, site: Site) -> None:
        """`site` is up, under its supervisor."""
        self._site = site
        self._left = plan.requests
        self._restarting = True
        self.report = Report(plan)

    async def run(self) -> Report:
        """Streams until everything was restarted and the plan's requests were sent."""
        report, site = self.report, self._site
        begun = time.monotonic()
        before = await site.settled_usage()
        clients = [asyncio.create_task(self._client(number)) for number in range(report.plan.clients)]
        try:
            for service in report.plan.services:
                began_at = time.monotonic()
                await asyncio.to_thread(proxyctl, site, "restart", service)
                report.restarts[service] = time.monotonic() - began_at
            self._restarting = False
            await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        report.settled = (await site.settled_usage() - before).requests
        report.duration_s = time.monotonic() - begun
        return report

    async def _client(self, number: int) -> None:
        dice = random.Random(f"{self.report.plan.seed}-{number}")
        kind = ("busy", "pausing", "fresh")[number % 3]
        client = self._site.client()
        connection: Connection | None = None
        turn = 0
        while self._restarting or self._left > 0:
            self._left -= 1
            turn += 1
            label = f"c{number}-{turn}"
            if connection is not None and connection.ended:
                self.report.reconnected += 1
                connection.close()
                connection = None
            try:
                async with asyncio.timeout(HUNG_AFTER_S):
                    connection = connection or await Connection.open(self._site.port)
                    tokens = dice.randint(1, self.report.plan.tokens) * dice.choice([1] * 9 + [LONG])
                    fault = await self._stream(client, connection, tokens, label)
            except (ResponseBroken, OSError) as e:
                fault = f"{type(e).__name__} {e}"
            except TimeoutError:
                fault = "hung"
            if fault:
                self.report.failed.append(f"{kind} {label}: {fault}")
            else:
                self.report.answered += 1
            if connection is not None and (fault or kind == "fresh" or connection.headers.get("connection") == "close"):
                connection.close()
                connection = None
            if kind == "pausing":
                await asyncio.sleep(dice.uniform(0, PAUSE_S))
        if connection is not None:
            connection.close()

    async def _stream(self, client: Client, connection: Connection, tokens: int, label: str) -> str:
        """What went wrong, if anything did."""
        sent_at = time.monotonic()
        body = client.chat_body(max_tokens=tokens, stream_options={"include_usage": True})
        headers = {**client.headers, "x-request-id": label}
        await connection.send("POST", "/v1/chat/completions", headers=headers, body=body)
        self.report.slowest_first_token_s = max(self.report.slowest_first_token_s, time.monotonic() - sent_at)
        if connection.status != 200:
            return f"{connection.status} {(await connection.body()).decode()[:200]}"
        outcome = await finish(connection, StreamOutcome(connection.status))
        if outcome.error is not None:
            return f"in the stream: {outcome.error}"
        if not (outcome.done and outcome.complete):
            return "cut short"
        counted = outcome.chunks[-1]["usage"]["completion_tokens"]
        return "" if counted == tokens else f"{counted} tokens of {tokens}"


def start_site(workers: int = 2) -> Site:
    """Two simulated hosts and their edge workers, to be started."""
    return Site({"edge": {"drain_idle_s": DRAIN_IDLE_S}}, port=free_port(), hosts=HOSTS, workers=workers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    args = parser.parse_args()
    site = start_site()
    good = True
    try:
        proxyctl(site, "start")
        for number in range(args.rounds):
            plan = Plan(args.requests, args.clients, args.tokens, args.seed + number)
            report = asyncio.run(RollingRestarts(plan, site).run())
            print(report, end="\n\n", flush=True)
            good &= report.good
    finally:
        proxyctl(site, "stop")
        if good:
            site.remove()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""`make chaos-admission`: kills everything at random under streams, then balances the books.

Auth, an edge worker, an engine host and the store's server are killed with SIGKILL, one after another at random
times, and started again as a supervisor would. Clients of several keys stream meanwhile, some leave. In the end every
token that an engine produced must be settled, once, and no limit may have been exceeded. `docs/ADMISSION.md` says what
may be lost when a host dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import random
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
from tests.load.chaos_books import (
    Balance,
    Book,
    balance,
    most_at_once,
    most_over_rate,
    produced,
    redis_book,
    sqlite_book,
    tokens_over_rate,
    watch_sqlite,
)
from tests.support.cluster import ApiKey, Cluster
from tests.support.http_client import Connection, ResponseBroken, StreamOutcome, finish
from tests.support.process import ServiceProcess
from tests.support.valkey import Valkey
from tests.support.wait import eventually

PREFIX = "chaos"
QPS, CONCURRENT, TOKENS_PER_MINUTE, QUOTA = 4, 6, 1_200, 1_200
LEASE_TTL_S = 6
#: How long hosts may take to find auth again and say what they have counted.
LATE_WORD_S = 15
#: No request takes so long, whatever is killed.
HUNG_AFTER_S = 60.0

KEYS = {
    name: ApiKey(f"sk-chaos-{name}-0123456789abcdef", name, quota)
    for name, quota in (("free", None), ("paced", None), ("few", None), ("metered", None), ("quota", QUOTA))
}
_LIMITS = {
    "paced": {"qps": QPS},
    "few": {"concurrent": CONCURRENT},
    "metered": {"tokens_per_minute": TOKENS_PER_MINUTE},
}


def account(name: str) -> bytes:
    return hashlib.sha256(KEYS[name].key.encode()).digest()


@dataclass(frozen=True, slots=True)
class Plan:
    store: str
    kills: int = 50
    streams: int = 200
    seed: int = 1
    #: Between two kills, at least and at most.
    pause_s: tuple[float, float] = (0.5, 3.0)
    step_ms: float = 40


@dataclass(slots=True)
class Report:
    plan: Plan
    kills: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    duration_s: float = 0.0
    balance: Balance = field(default_factory=Balance)
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    leaked: int = 0

    @property
    def good(self) -> bool:
        within = all(seen <= allowed for seen, allowed in self.limits.values())
        return within and not (self.hung or self.leaked or any(self.balance.faults.values()))

    def __str__(self) -> str:
        books = self.balance
        rows: list[tuple[str, object]] = [
            ("store", self.plan.store),
            ("seed", self.plan.seed),
            ("duration", f"{self.duration_s:.0f} s"),
            ("kills", ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))),
            ("answers", ", ".join(f"{name} {count}" for name, count in sorted(self.answers.items()))),
            ("requests in the books", books.requests),
            ("tokens produced (engines' journal)", f"{books.produced_tokens:,}"),
            ("tokens settled", f"{books.settled_tokens:,}"),
            ("requests settled after their host died", books.on_killed_hosts),
            ("  of which edge and host died, nobody knows", books.nobody_left),
            ("corrections, lapsed leases", f"{books.corrections}, {books.lapsed}"),
            *((f"FAULT {name}" if count else name, count) for name, count in books.faults.items()),
            ("requests that hung", self.hung),
            ("slots still held after the leases' time", self.leaked),
            *((f"{name} (seen, at most)", f"{seen:,}, {most:,}") for name, (seen, most) in self.limits.items()),
            ("verdict", "the books balance" if self.good else "FAILED"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name:{width}}  {value}" for name, value in rows), *books.details])


class Chaos:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.report = Report(plan)
        self.received: dict[str, int] = {}
        self.killed_at_ms: dict[int, int] = {}
        self._next: list[str] = []
        self._stop = False

    async def run(self) -> Report:
        with ExitStack() as stack:
            valkey = None
            config: dict[str, Any] = {
                "auth": {"lease_ttl_s": LEASE_TTL_S, "leadership_ttl_s": 1.5},
                "sim": {"step_ms": self.plan.step_ms, "journal_dir": "journal", "http_port": None},
                "edge": {"admission_timeout_s": 15},
            }
            if self.plan.store == "redis":
                # Rewritten, the file would no longer show what was admitted.
                valkey = stack.enter_context(Valkey(arguments=["--auto-aof-rewrite-percentage", "0"]))
                config["auth"] |= {"store": valkey.url, "redis_prefix": PREFIX, "redis_timeout_s": 1}
            self.cluster = Cluster(
                config, hosts=("sim-a", "sim-b"), workers=2, keys=list(KEYS.values()), auths=2 if valkey else 1
            )
            self.cluster.write_keys(
                list(KEYS.values()), {name: {"rate_limit": limit} for name, limit in _LIMITS.items()}
            )
            cluster = stack.enter_context(self.cluster)
            database = cluster.root / "state" / "auth.db"
            if valkey is None:
                watch_sqlite(database)
            begun = time.monotonic()
            clients = [asyncio.create_task(self._client(number)) for number in range(self.plan.streams)]
            try:
                for _ in range(self.plan.kills):
                    await asyncio.sleep(self.random.uniform(*self.plan.pause_s))
                    await self._kill_one(valkey)
                self._stop = True
                async with asyncio.timeout(2 * HUNG_AFTER_S):
                    await asyncio.gather(*clients)
            finally:
                for client in clients:
                    client.cancel()
            await self._leases_have_expired()
            self.report.duration_s = time.monotonic() - begun

            def balanced() -> bool:
                book = sqlite_book(database) if valkey is None else redis_book(valkey.root / "appendonlydir", PREFIX)
                self._judge(book)
                return self.report.good

            # A host's word on a lease that lapsed comes when the host has found auth again.
            with contextlib.suppress(AssertionError):
                await eventually(lambda: asyncio.to_thread(balanced), "the books to balance", LATE_WORD_S)
        return self.report

    async def _kill_one(self, valkey: Valkey | None) -> None:
        cluster, choose = self.cluster, self.random.choice
        if not self._next:  # each kind once before any comes again
            self._next = ["auth", "edge", "host", *(["redis"] if valkey else [])]
            self.random.shuffle(self._next)
        kind = self._next.pop()
        self.report.kills[kind] += 1
        pause_s = self.random.uniform(0.0, 0.5)
        if kind == "redis":
            assert valkey is not None
            await asyncio.to_thread(valkey.kill)
            await asyncio.sleep(pause_s)
            await asyncio.to_thread(valkey.start)
            return
        service: ServiceProcess = choose(
            {"auth": cluster.auths, "edge": cluster.edges, "host": [*cluster.hosts.values()]}[kind]
        )
        # One that a failing store has ended by itself is only started again.
        if service.running:
            pid = service.pid
            await asyncio.to_thread(service.kill)
            if kind != "auth":
                self.killed_at_ms[pid] = time.time_ns() // 1_000_000
        await asyncio.sleep(pause_s)
        for dead in cluster.services:
            if not dead.running:
                await asyncio.to_thread(dead.start)

    async def _client(self, number: int) -> None:
        dice = random.Random(f"{self.plan.seed}-{number}")
        name = dice.choice(["free", "free", "free", "paced", "few", "metered", "quota"])
        turn = 0
        while not self._stop:
            turn += 1
            label = f"c{number}-{turn}"
            try:
                async with asyncio.timeout(HUNG_AFTER_S):
                    answer = await self._request(KEYS[name], label, dice)
            except (ResponseBroken, OSError):
                answer = "broken"
            except TimeoutError:
                answer = "hung"
                self.report.hung += 1
            self.report.answers[answer] += 1
            if answer not in ("200", "left"):
                await asyncio.sleep(dice.uniform(0.05, 0.5))

    async def _request(self, key: ApiKey, label: str, dice: random.Random) -> str:
        client = self.cluster.client(key)
        tokens, leaves = dice.randint(1, 120), dice.random() < 0.15
        body = client.chat_body(max_tokens=tokens, user=label)
        async with await Connection.open(self.cluster.port) as connection:
            await connection.send(
                "POST", "/v1/chat/completions", headers={**client.headers, "x-request-id": label}, body=body
            )
            outcome = StreamOutcome(connection.status)
            if connection.status != 200:
                await connection.body()
                return str(connection.status)
            reading = asyncio.create_task(finish(connection, outcome))
            try:
                if leaves:
                    await asyncio.wait([reading], timeout=dice.uniform(0.0, 2.0))
                else:
                    await asyncio.shield(reading)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                self.received[label] = sum(
                    1 for c in outcome.chunks if any(x.get("delta", {}).get("content") for x in c.get("choices", ()))
                )
        if outcome.done:
            return "200"
        if outcome.error is not None:
            return "error in stream"
        if leaves and not outcome.complete:
            return "left"
        raise ResponseBroken("cut off")

    async def _leases_have_expired(self) -> None:
        """Waits until nothing is held any more, at most as long as leases live without renewal."""
        for dead in self.cluster.services:
            if not dead.running:
                await asyncio.to_thread(dead.start)

        def held() -> int:
            try:
                return len(self.cluster.control.open_leases())
            except grpc.RpcError:
                return -1

        try:
            await eventually(lambda: asyncio.to_thread(lambda: held() == 0), "no lease open", 3 * LEASE_TTL_S + 10)
        except AssertionError:
            self.report.leaked = await asyncio.to_thread(held)

    def _judge(self, book: Book) -> None:
        report, killed = self.report, self.killed_at_ms
        journal = produced(self.cluster.root / "journal")
        report.balance = balance(book, journal, self.received, killed)
        report.limits["concurrency of `few`"] = most_at_once(book, account("few")), CONCURRENT
        report.limits["requests over the rate of `paced`"] = most_over_rate(book, account("paced"), QPS, QPS), 0
        over, overrun = tokens_over_rate(book, account("metered"), TOKENS_PER_MINUTE, TOKENS_PER_MINUTE)
        report.limits["tokens over the rate of `metered`"] = over, overrun
        used = sum(row.charged_tokens for row in book.ledger if row.account == account("quota"))
        actual: Counter[str] = Counter()
        for row in book.ledger:
            actual[row.lease_id] += row.charged_tokens
        overrun = sum(
            max(0, actual[lease.lease_id] - lease.reserved_tokens)
            for lease in book.admissions
            if lease.account == account("quota")
        )
        report.limits["tokens of `quota`"] = used, QUOTA + overrun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default="sqlite,redis")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    args = parser.parse_args()
    good = True
    for store in args.stores.split(","):
        report = asyncio.run(Chaos(Plan(store, args.kills, args.streams, args.seed)).run())
        print(report, end="\n\n", flush=True)
        good &= report.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

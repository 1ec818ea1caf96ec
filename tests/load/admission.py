"""`make bench-admission`: what an admission and its settlement cost, by the number of keys.

One process on one core. Two layers: `core` is the admission and its store, as the session calls them; `session` is the
service's session as well, with the peer's messages built and read in the same process. Every key has all limits, and
keys are drawn uniformly; all of them have been used before. Rounds of all cases are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import itertools
import logging
import os
import random
import resource
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry
from redis import Redis
from tests.support.cpu_time import process_cpu_s
from tests.support.valkey import Valkey

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.clock import SystemClock
from vllm_proxy.auth.config import AuthConfig, RedisConfig
from vllm_proxy.auth.decision import Ask
from vllm_proxy.auth.keys import ApiKey, KeyRing
from vllm_proxy.auth.lease import Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.redis_batch import Keys, pack
from vllm_proxy.auth.redis_store import RedisStore
from vllm_proxy.auth.session import Session
from vllm_proxy.auth.sqlite_ledger import fold
from vllm_proxy.auth.sqlite_store import SqliteStore
from vllm_proxy.auth.store import Record, Store
from vllm_proxy.common.lifecycle import GC_THRESHOLDS
from vllm_proxy.common.settings import Settings

#: Admissions, and settlements, in one message; messages that wait for their answers.
BATCH = 64
WINDOW = 16
PROMPT, CACHED, COMPLETION = 120, 20, 80
QUOTA = 10**13
KEYS_PER_USER = 10
OWNER = "edge-1"


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def settings() -> Settings:
    """Limits that do all their work and refuse nobody."""
    return Settings.model_validate(
        {"rate_limit": {"qps": 1e6, "concurrent": 1_000_000, "tokens_per_minute": 10**12}, "log_level": "WARNING"}
    )


class Case:
    """One store under one number of keys."""

    def __init__(self, name: str, keys: int, config: AuthConfig) -> None:
        self.name, self.count = name, keys
        self.metrics = AuthMetrics(CollectorRegistry())
        self.clock = SystemClock()
        self.config = config
        self.digests = [digest(number) for number in range(keys)]
        before = _rss_bytes()
        ring = KeyRing(
            [ApiKey(d, "", f"user-{number // KEYS_PER_USER}", quota=QUOTA) for number, d in enumerate(self.digests)]
        )
        self.admission = Admission(config, ring, self.metrics, self.clock)
        for key in ring:
            self.admission.account_of(key)
        self.bytes_per_key = (_rss_bytes() - before) / keys
        self.admission.book.owner_connected(OWNER)
        self.store: Store
        self.server_pid = 0

    def draw(self, pairs: int) -> list[bytes]:
        """The keys of a round, each hash an object of its own, as a message brings it."""
        return [bytes(bytearray(digest)) for digest in random.choices(self.digests, k=pairs)]

    async def core(self, drawn: Sequence[bytes]) -> None:
        admission, store, pairs = self.admission, self.store, len(drawn)
        running: deque[str] = deque()
        waiting = asyncio.Semaphore(WINDOW)
        for number in range(-(-pairs // BATCH) + 1):
            records: list[Record] = []
            for _ in range(len(running)):
                usage = Usage(PROMPT, CACHED, COMPLETION)
                settled = Settlement(running.popleft(), 1, Source.EDGE, Outcome.FINISHED, usage, "m", "host-1")
                records += admission.book.settle(settled).records
            if number * BATCH < pairs:
                for secret in drawn[number * BATCH : (number + 1) * BATCH]:
                    ask = Ask(secret, Operation.INFERENCE, OWNER, "req-0123456789abcdef", "m", 100, 128, 1)
                    decision = admission.admit(ask)
                    assert decision.refusal is None and decision.record is not None, decision
                    records.append(decision.record)
                    running.append(decision.lease_id)
            await waiting.acquire()
            store.append(records, waiting.release)
            await asyncio.sleep(0)
        for _ in range(WINDOW):
            await waiting.acquire()

    async def session(self, drawn: Sequence[bytes]) -> None:
        peer = Peer(drawn)
        await Session(self.admission, self.store, peer).run()
        assert peer.settled == len(drawn), (peer.settled, len(drawn))

    def cpu_s(self) -> float:
        return process_cpu_s(self.server_pid) if self.server_pid else 0.0


class Peer:
    """An edge's side of the stream: message by message, each with what the answers so far allow."""

    def __init__(self, drawn: Sequence[bytes]) -> None:
        self._drawn, self._pairs = iter(drawn), len(drawn)
        self._admitted: deque[str] = deque()
        self._seq = itertools.count(1)
        self._sent = self.settled = 0
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._said_hello = False

    async def read(self) -> Any:
        import grpc.aio

        if not self._said_hello:
            self._said_hello = True
            return pb.SessionRequest(hello=pb.SessionHello(owner_id=OWNER, source=pb.SOURCE_EDGE))
        while True:
            if self.settled == self._pairs:
                return grpc.aio.EOF
            if self._unanswered < BATCH * WINDOW and (self._sent < self._pairs or self._admitted):
                break
            self._answered.clear()
            await self._answered.wait()
        message = pb.SessionRequest()
        for _ in range(min(BATCH, len(self._admitted))):
            settle = message.settles.add()
            settle.seq, settle.lease_id = next(self._seq), self._admitted.popleft()
            settle.attempt, settle.source, settle.outcome = 1, pb.SOURCE_EDGE, pb.OUTCOME_FINISHED
            settle.model, settle.host = "m", "host-1"
            usage = settle.usage
            usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens = PROMPT, CACHED, COMPLETION
        for _ in range(min(BATCH, self._pairs - self._sent)):
            message.admits.add(
                seq=next(self._seq),
                api_key_sha256=next(self._drawn),
                operation=pb.OPERATION_INFERENCE,
                request_id="req-0123456789abcdef",
                model="m",
                prompt_tokens_estimate=100,
                response_tokens=128,
            )
        self._sent += len(message.admits)
        self._unanswered += len(message.admits) + len(message.settles)
        return pb.SessionRequest.FromString(message.SerializeToString())

    async def write(self, message: pb.SessionResponse) -> None:
        message = pb.SessionResponse.FromString(message.SerializeToString())
        for admit in message.admits:
            assert admit.admitted, admit
            self._admitted.append(admit.lease_id)
        self.settled += len(message.settles)
        self._unanswered -= len(message.admits) + len(message.settles)
        self._answered.set()


async def sqlite_store(case: Case, folder: Path) -> Store:
    path = folder / f"auth-{case.count}.db"

    def opened() -> SqliteStore:
        return SqliteStore(path, full_sync=False, metrics=case.metrics, ledger_retention_days=90, clock=case.clock)

    store = opened()
    await store.close()
    # Every key has used something before.
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO balances VALUES (?,1,0,1,1,2,1)", ((d,) for d in sorted(case.digests)))
        users = sorted(f"user-{number}" for number in range(case.count // KEYS_PER_USER))
        db.executemany("INSERT INTO user_balances VALUES (?,1,0,1,1,2,1)", ((user,) for user in users))
    return opened()


def folding_us(folder: Path, case: Case) -> float:
    """CPU µs a settlement, for what the rounds left unfolded."""
    with contextlib.closing(sqlite3.connect(folder / f"auth-{case.count}.db", isolation_level=None)) as db:
        folded = "SELECT through_id FROM folded"
        ((before,), cpu) = db.execute(folded).fetchone(), time.process_time()
        for _ in range(20):
            fold(db, 500)
        ((after,), cpu) = db.execute(folded).fetchone(), time.process_time() - cpu
    return cpu / max(1, after - before) * 1e6


async def redis_store(case: Case, valkey: Valkey) -> Store:
    keys = Keys(case.config.redis.prefix)
    sums = pack([1, 0, 1, 1, 2, 1])
    client: Redis = valkey.client
    for begin in range(0, case.count, 10_000):
        some = range(begin, min(begin + 10_000, case.count))
        client.hset(keys["balances"], mapping={case.digests[number]: sums for number in some})
        client.hset(keys["users"], mapping={f"user-{number // KEYS_PER_USER}": sums for number in some})
    case.server_pid = valkey.pid
    return await RedisStore.open(case.config, case.metrics, lambda: (0, 0, 0))


async def measure(stores: Sequence[str], keys: Sequence[int], pairs: int, rounds: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-admission-"))
    base = AuthConfig.from_settings(settings())
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        valkey = stack.enter_context(Valkey(sync="everysec")) if "redis" in stores else None
        cases: list[Case] = []
        for count in keys:
            for name in stores:
                url = valkey.url if valkey is not None and name == "redis" else ""
                redis = RedisConfig(prefix=f"bench-{count}", leadership_ttl_s=60)
                case = Case(name, count, replace(base, redis_url=url, redis=redis))
                if name == "redis" and valkey is not None:
                    case.store = await redis_store(case, valkey)
                else:
                    case.store = await sqlite_store(case, folder)
                cases.append(case)
        # As the service does.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        results: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
        for number in range(rounds + 1):
            for layer in ("core", "session"):
                for case in random.sample(cases, len(cases)):
                    measured = await one_round(case, layer, pairs)
                    if number:  # the first warms up
                        results.setdefault((layer, case.name, case.count), []).append(measured)
        for case in cases:
            await case.store.close()
        later = {case.count: folding_us(folder, case) for case in cases if case.name == "sqlite"}
    show(results, {case.count: case.bytes_per_key for case in cases})
    for count, cost_us in later.items():
        print(f"folded into the sums later, {count:,} keys: {cost_us:.1f} us a settlement")


async def one_round(case: Case, layer: str, pairs: int) -> tuple[float, float, float]:
    """Pairs per second, and CPU µs of each here and in the store's own server."""
    drawn = case.draw(pairs)
    started, cpu, server = time.perf_counter(), time.process_time(), case.cpu_s()
    await getattr(case, layer)(drawn)
    wall = time.perf_counter() - started
    return pairs / wall, (time.process_time() - cpu) / pairs * 1e6, (case.cpu_s() - server) / pairs * 1e6


def show(results: dict[tuple[str, str, int], list[tuple[float, float, float]]], memory: dict[int, float]) -> None:
    few, many = min(memory), max(memory)
    columns = ("layer", "store", "keys", "pairs/s", "CPU us/pair", "(min..max)", "server us", "growth")
    print("{:8} {:7} {:>9} {:>9} {:>12} {:>14} {:>10} {:>7}".format(*columns))
    for (layer, store, keys), rounds in sorted(results.items()):
        rate, cpu, server = (statistics.median(values) for values in zip(*rounds, strict=True))
        spread = f"{min(r[1] for r in rounds):.1f}..{max(r[1] for r in rounds):.1f}"
        growth = ""
        if keys == many != few:
            # Round by round, so that what slows the machine for a while slows both.
            pairs = zip(rounds, results[layer, store, few], strict=True)
            growth = f"{statistics.median(a[1] / b[1] for a, b in pairs):.2f}x"
        print(f"{layer:8} {store:7} {keys:9,} {rate:9,.0f} {cpu:12.1f} {spread:>14} {server:10.1f} {growth:>7}")
    print(f"memory: {memory[many]:,.0f} bytes a key that has been used ({many:,} keys)")


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default="sqlite,redis")
    parser.add_argument("--keys", default="10,1000000")
    parser.add_argument("--pairs", type=int, default=30_000, help="in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    random.seed(args.seed)
    logging.basicConfig(level=logging.WARNING)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    print(f"python {sys.version.split()[0]}, {args.pairs:,} pairs a round, {args.rounds} rounds, seed {args.seed}")
    keys = [int(count) for count in args.keys.split(",")]
    uvloop.run(measure(args.stores.split(","), keys, args.pairs, args.rounds))


if __name__ == "__main__":
    main()

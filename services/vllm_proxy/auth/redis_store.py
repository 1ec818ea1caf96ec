"""The journal in Redis or Valkey, written by the one replica that leads.

What is appended while a batch is on its way is the next batch. A batch is sent until Redis has answered for it; its
number keeps it from being applied twice, its fence from being applied for a deposed leader. Batches that were answered
lately are kept for a while: a Redis that comes back without its last moments (a crash, a failover) gets them again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError

from vllm_proxy.auth.config import AuthConfig
from vllm_proxy.auth.leadership import DataLost, Deposed, Leadership
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.redis_batch import Batch, Keys
from vllm_proxy.auth.redis_read import page_of_keys, read_audit, read_key, read_keys, read_state, read_usage
from vllm_proxy.auth.redis_scripts import APPEND
from vllm_proxy.auth.redis_url import FAULTS, Client, connect, disconnect, is_outage, parse
from vllm_proxy.auth.store import (
    AuditQuery,
    KeyQuery,
    NumberedAuditEntry,
    Record,
    StoredKey,
    StoredState,
    UsageQuery,
    UsageRow,
)
from vllm_proxy.common.errors import AuthUnavailable
from vllm_proxy.common.lifecycle import cancel_all, spawn

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Records in one batch: a few milliseconds of Redis.
_MAX_RECORDS = 2000
_RETRY_S = 0.05
#: Answered batches that are kept, by age and in bytes. Redis syncs its file each second, if not at each write.
_KEEP_S = 15.0
_KEEP_BYTES = 64 * 1024 * 1024
#: Ledger rows stay in Redis for so many graces: a start needs one.
_GRACES_KEPT = 2

_SHA = hashlib.sha1(APPEND.encode(), usedforsecurity=False).hexdigest()

_Queued = tuple[Sequence[Record], Callable[[], None]]


class RedisStore:
    """Use `open`."""

    def __init__(self, client: Client, config: AuthConfig, metrics: AuthMetrics) -> None:
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.place = str(parse(config.redis_url))
        self._client = client
        self._keys = Keys(config.redis.prefix)
        self._metrics = metrics
        self._outage_after_s = config.redis.timeout_s
        self._open_on_outage = config.redis.fail_open
        self._max_buffered = config.redis.outage_buffer
        self._keep_rows_ms = _GRACES_KEPT * config.settle_grace_ns // 1_000_000
        self.leadership = Leadership(client, self._keys, config.redis.leadership_ttl_s, metrics)
        self._queue: deque[_Queued] = deque()
        self._queued_records = 0
        #: Of the batch that is on its way.
        self._unanswered: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._number = 0
        self._kept: deque[tuple[int, float, Batch]] = deque()
        self._kept_bytes = 0
        self._out = False
        self._sha = ""
        self._loaded = StoredState()
        self._tasks: set[asyncio.Task[Any]] = set()
        metrics.undurable_records.set_function(lambda: self._queued_records)

    @classmethod
    async def open(
        cls, config: AuthConfig, metrics: AuthMetrics, since: Callable[[], tuple[int, int, int]]
    ) -> RedisStore:
        """Waits until this replica leads, and reads the state. Raises ConfigError. `since`, what `load` is
        given, is asked once it leads."""
        url = parse(config.redis_url)
        store = cls(connect(url, config.redis.timeout_s), config, metrics)
        try:
            await store.leadership.acquire()
            store.start()
            store._loaded = await read_state(store._client, store._keys, *since())
            await store._warn_about_durability()
        except BaseException as e:
            await store.close()
            if isinstance(e, FAULTS):
                raise OSError(f"Redis cannot be read: {type(e).__name__}") from None
            raise
        return store

    def start(self) -> None:
        """Keeps the lead, and writes."""
        for work, name in ((self.leadership.keep(), "auth-leadership"), (self._write_all(), "auth-store")):
            spawn(self._tasks, self._or_fail(work), name)

    @property
    def accepting(self) -> bool:
        """Whether new requests may be admitted."""
        if self._open_on_outage:
            return not self.failed.done() and self._queued_records <= self._max_buffered
        return not self._out and self.leadership.holds

    def load(self, recent_since_ms: int, day_since_ms: int, month_since_ms: int) -> StoredState:
        """What `open` has read."""
        state, self._loaded = self._loaded, StoredState()
        return state

    def append(self, records: Sequence[Record], durable: Callable[[], None]) -> None:
        if self._out and self._open_on_outage:
            asyncio.get_running_loop().call_soon(durable)
            durable = _nothing
        self._queue.append((records, durable))
        self._queued_records += len(records)
        self._idle.clear()
        self._wake.set()

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        return await self._ask(read_usage(self._client, self._keys, query))

    async def stored_key(self, digest_prefix: bytes) -> StoredKey | None:
        return await self._ask(read_key(self._client, self._keys, digest_prefix))

    async def stored_keys(self, query: KeyQuery) -> list[StoredKey]:
        return page_of_keys(await self._ask(read_keys(self._client, self._keys)), query)

    async def audit(self, query: AuditQuery) -> list[NumberedAuditEntry]:
        return await self._ask(read_audit(self._client, self._keys, query))

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except FAULTS as e:
            if is_outage(e):
                raise AuthUnavailable("The auth service cannot reach its store.") from e
            raise

    async def close(self) -> None:
        """Waits for Redis as long as it answers; then gives the lead back."""
        idle: asyncio.Future[Any] = asyncio.ensure_future(self._idle.wait())
        while self._tasks and not (idle.done() or self.failed.done() or self._out):
            await asyncio.wait([idle, asyncio.shield(self.failed)], timeout=_RETRY_S, return_when="FIRST_COMPLETED")
        idle.cancel()
        if self._queued_records:
            log.error("stopped before everything was in Redis", extra={"records": self._queued_records})
        await cancel_all(self._tasks)
        await self.leadership.release()
        await disconnect(self._client)

    async def _or_fail(self, work: Any) -> None:
        try:
            await work
        except Exception as e:
            if not self.failed.done():
                if isinstance(e, Deposed):
                    log.critical("deposed: another replica leads")
                elif isinstance(e, DataLost):
                    log.critical("Redis has lost data: usage and leases that it had are gone", extra={"detail": str(e)})
                else:
                    log.critical("the store cannot be written", exc_info=e)
                self.failed.set_result(e)

    async def _write_all(self) -> None:
        while True:
            while not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            groups, records = self._next_groups()
            self._unanswered = [durable for _, durable in groups]
            if records:
                started = time.perf_counter()
                await self._write(Batch((records for records, _ in groups), self._keep_rows_ms))
                self._metrics.commit_seconds.observe(time.perf_counter() - started)
                self._metrics.committed_records.inc(records)
            self._queued_records -= records
            answered, self._unanswered = self._unanswered, []
            for durable in answered:
                durable()

    def _next_groups(self) -> tuple[list[_Queued], int]:
        groups, records = [], 0
        while self._queue and records < _MAX_RECORDS:
            groups.append(self._queue.popleft())
            records += len(groups[-1][0])
        return groups, records

    async def _write(self, batch: Batch) -> None:
        """Returns once Redis has it. Raises Deposed, DataLost, or what Redis answers to a batch that it cannot use."""
        self._number += 1
        self._keep(batch)
        since = time.monotonic()
        while True:
            try:
                await self._send_until(self._number)
            except FAULTS as e:
                if not is_outage(e):
                    raise
                if time.monotonic() - since >= self._outage_after_s and not self._out:
                    self._outage_began(e)
                await asyncio.sleep(_RETRY_S)
            else:
                if self._out:
                    self._outage_ended()
                return

    async def _send_until(self, number: int) -> None:
        sending = number
        while True:
            status, *last = await self._send(sending)
            if status == b"ok" and sending == number:
                return
            if status == b"deposed":
                raise Deposed("another replica leads")
            if status == b"lost":
                raise DataLost("it came back empty")
            # Redis lacks what it had answered for: it gets that again.
            if status == b"behind":
                log.error("Redis has lost its last moments", extra={"batches": number - 1 - last[0]})
                self._metrics.replayed_batches.inc(number - 1 - last[0])
            sending = last[0] + 1

    async def _send(self, number: int) -> list[Any]:
        batch = next((batch for kept, _, batch in self._kept if kept == number), None)
        if batch is None:
            raise DataLost(f"more than its last {_KEEP_S:g} s")
        keys = [self._keys[name] for name in batch.names]
        fence, generation = self.leadership.fence, self.leadership.generation
        arguments: tuple[Any, ...] = (len(keys), *keys, fence, number, generation, batch.message)
        try:
            if self._sha:
                return list(await self._client.evalsha(self._sha, *arguments))
        except NoScriptError:
            self._sha = ""
        answer = list(await self._client.eval(APPEND, *arguments))
        self._sha = _SHA
        return answer

    def _keep(self, batch: Batch) -> None:
        now = time.monotonic()
        self._kept.append((self._number, now, batch))
        self._kept_bytes += len(batch.message)
        while len(self._kept) > 1 and (self._kept[0][1] < now - _KEEP_S or self._kept_bytes > _KEEP_BYTES):
            self._kept_bytes -= len(self._kept.popleft()[2].message)

    def _outage_began(self, error: BaseException) -> None:
        self._out = True
        self._metrics.store_outage.set(1)
        mode = "fail_open: requests are admitted, what they use is kept in memory until Redis is back"
        if not self._open_on_outage:
            mode = "fail_closed: no request is admitted until Redis is back"
        log.error("Redis is away", extra={"detail": type(error).__name__, "mode": mode})
        if self._open_on_outage:
            self._answer_early()

    def _outage_ended(self) -> None:
        self._out = False
        self._metrics.store_outage.set(0)
        log.warning("Redis is back", extra={"undurable_records": self._queued_records})

    def _answer_early(self) -> None:
        """fail_open: tells everybody that what is only in memory is durable. The records stay queued."""
        waiting, self._unanswered = [*self._unanswered, *(durable for _, durable in self._queue)], []
        self._queue = deque((records, _nothing) for records, _ in self._queue)
        for durable in waiting:
            durable()

    async def _warn_about_durability(self) -> None:
        """Some hosted Redis does not tell."""
        try:
            info = await self._client.info("persistence")
        except FAULTS:
            return
        if not info.get("aof_enabled", 1):
            log.warning("Redis keeps no append-only file: what it holds is lost when it restarts (appendonly yes)")


def _nothing() -> None:
    pass

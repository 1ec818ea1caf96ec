"""Who pays for what ended here: ends that an edge has not acknowledged, and settling them without it.

The edge settles with the host's counts and then acknowledges the end. If its session breaks first, the host
settles itself over its own auth session. A killed host loses this book; the edge then settles by what it saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import NamedTuple

import grpc
import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.rpc.channel import open_channel
from vllm_proxy.common.settings import Grpc

log = logging.getLogger(__name__)

#: Settlements in one message.
BATCH = 2000


class End(NamedTuple):
    """What is to be settled for a request that ended."""

    #: Without one there is nothing to settle.
    lease_id: str
    attempt: int
    outcome: auth_pb2.Outcome
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    model: str
    host: str
    base_model: str = ""
    #: Of the host's span, if the request is traced.
    traceparent: str = ""

    def settlement(self, seq: int) -> auth_pb2.SettleRequest:
        return auth_pb2.SettleRequest(
            seq=seq,
            lease_id=self.lease_id,
            attempt=self.attempt,
            source=auth_pb2.SOURCE_HOST,
            outcome=self.outcome,
            usage=auth_pb2.TokenUsage(
                prompt_tokens=self.prompt_tokens,
                cached_tokens=self.cached_tokens,
                completion_tokens=self.completion_tokens,
            ),
            model=self.model,
            host=self.host,
            base_model=self.base_model,
            traceparent=self.traceparent,
        )


class UnacknowledgedEnds:
    """One session's ended requests, oldest first. What exceeds the limit goes to the settler."""

    def __init__(self, limit: int, settler: Settler) -> None:
        self._limit = limit
        self._settler = settler
        self._ends: dict[int, End] = {}
        self._broken = False
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, stream_id: int, end: End) -> None:
        """An end without a lease costs nobody anything and is not kept."""
        if not end.lease_id:
            return
        if self._broken:
            self._settler.submit((end,))
            return
        self._ends[stream_id] = end
        self._empty.clear()
        if len(self._ends) > self._limit:
            oldest = next(iter(self._ends))
            self._settler.submit((self._ends.pop(oldest),))

    def acknowledge(self, stream_ids: Iterable[int]) -> None:
        for stream_id in stream_ids:
            self._ends.pop(stream_id, None)
        if not self._ends:
            self._empty.set()

    def session_broke(self) -> None:
        """The edge is gone: all that it did not acknowledge, and all that still ends, is the settler's."""
        self._broken = True
        self._settler.submit(self._ends.values())
        self._ends.clear()
        self._empty.set()

    async def wait_empty(self) -> None:
        await self._empty.wait()


class Settler:
    """Settles over an auth session of its own, opened when first needed, until each settlement is durable.

    Holds at most `limit`; beyond it the oldest is given up and named in the log (its lease then lapses uncharged).
    """

    def __init__(self, address: str, settings: Grpc, owner_id: str, limit: int) -> None:
        self._address = address
        self._settings = settings
        self._owner_id = owner_id
        self._limit = limit
        self._pending: dict[int, auth_pb2.SettleRequest] = {}
        self._unsent: list[auth_pb2.SettleRequest] = []
        self._next_seq = 1
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._pending)

    def submit(self, ends: Iterable[End]) -> None:
        """Settles each that has a lease."""
        for end in ends:
            if not end.lease_id:
                continue
            settlement = end.settlement(self._next_seq)
            self._next_seq += 1
            self._pending[settlement.seq] = settlement
            self._unsent.append(settlement)
            if len(self._pending) > self._limit:
                lost = self._pending.pop(next(iter(self._pending)))
                log.error("settlement given up", extra={"lease_id": lost.lease_id, "attempt": lost.attempt})
        if self._pending:
            self._empty.clear()
            self._wake.set()

    async def flush(self, timeout_s: float) -> int:
        """Waits until everything is durable, at most so long; returns how many are not."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        return len(self._pending)

    async def run(self) -> None:
        """Forever, until cancelled. Survives every restart of the auth service."""
        backoff_s = self._settings.reconnect_min_s
        out_of_reach = False
        async with open_channel(self._address, self._settings) as channel:
            stub = auth_pb2_grpc.AuthServiceStub(channel)
            while True:
                while not self._pending:
                    self._wake.clear()
                    await self._wake.wait()
                waiting = len(self._pending)
                try:
                    await self._session(stub)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as e:
                    # The second is how an intercepted call (with a token) tells of a peer that is gone, and what it
                    # makes of a cancellation.
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise asyncio.CancelledError from None
                    # Once for each time that it goes away, not for each try.
                    level = logging.DEBUG if out_of_reach else logging.WARNING
                    log.log(level, "auth session ended", extra={"detail": str(e), "unsettled": len(self._pending)})
                out_of_reach = len(self._pending) >= waiting
                backoff_s = min(backoff_s * 2, self._settings.reconnect_max_s)
                if not out_of_reach:
                    backoff_s = self._settings.reconnect_min_s
                if self._pending:
                    await asyncio.sleep(backoff_s)

    async def _session(self, stub: auth_pb2_grpc.AuthServiceStub) -> None:
        """One session, until it breaks. Returns after its end, or raises AioRpcError or InvalidStateError."""
        call = stub.Session()
        self._unsent = list(self._pending.values())
        hello = auth_pb2.SessionHello(owner_id=self._owner_id, source=auth_pb2.SOURCE_HOST)
        try:
            await call.write(auth_pb2.SessionRequest(hello=hello))
            writer = asyncio.create_task(self._write(call))
            reader = asyncio.create_task(self._read(call))
            try:
                await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            finally:
                writer.cancel()
                reader.cancel()
                results = await asyncio.gather(writer, reader, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, asyncio.InvalidStateError):
                    raise result
        finally:
            call.cancel()

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            if self._unsent:
                batch, self._unsent = self._unsent[:BATCH], self._unsent[BATCH:]
                await call.write(auth_pb2.SessionRequest(settles=batch))
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            for answer in message.settles:
                self._pending.pop(answer.seq, None)
            if not self._pending:
                self._empty.set()

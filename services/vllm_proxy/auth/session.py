"""One peer's session: a reader that decides, a writer that answers, batches in both directions.

The reader hands each message's records to the store as one group; what they let through joins the outbox when they
are durable, what needs no record at once. The writer sends whatever is in the outbox as one message, and again as
soon as that write is done.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Any

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.decision import Decision
from vllm_proxy.auth.session_trace import SessionTrace
from vllm_proxy.auth.store import Record, Store
from vllm_proxy.auth.wait_queue import Waiter
from vllm_proxy.auth.wire import admit_response, ask_of, settlement_of, unavailable
from vllm_proxy.common.errors import InvalidRequest

#: Answers in one message; well under 1 MiB.
_MAX_ANSWERS = 2048
#: Answers that a peer may leave unread before its requests are left unread too.
_MAX_BACKLOG = 65_536


class Session:
    def __init__(self, admission: Admission, store: Store, context: Any, trace: SessionTrace | None = None) -> None:
        self._admission = admission
        self._store = store
        self._context = context
        self._trace = trace
        self._owner_id = ""
        self._admits: deque[pb.AdmitResponse] = deque()
        #: `seq` and whether it was applied.
        self._settles: deque[tuple[int, bool]] = deque()
        #: Admissions that wait for room, by their `seq`.
        self._waiting: dict[int, Waiter] = {}
        #: Groups that the store has not made durable yet.
        self._undurable = 0
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()
        self._pong = False
        self._ending = False
        self._reading: asyncio.Task[None] | None = None

    def finish(self) -> None:
        """Reads nothing more; `run` returns once everything that was read is answered."""
        self._ending = True
        self._leave_queue()
        self._ready.set()
        if self._reading is not None:
            self._reading.cancel()

    async def run(self) -> None:
        """Until the peer closes its side, `finish`, or cancellation. Raises InvalidRequest for a peer that does not
        say hello."""
        self._reading = asyncio.create_task(self._read(), name="auth-session-read")
        writing = asyncio.create_task(self._write(), name="auth-session-write")
        try:
            if self._ending:
                self._reading.cancel()
            await asyncio.wait([self._reading, writing], return_when=asyncio.FIRST_COMPLETED)
            self._ending = True
            self._ready.set()
            # The writer first: a call cannot be aborted with a reason while a write is on its way.
            await writing
            if self._reading.done() and not self._reading.cancelled():
                self._reading.result()
        finally:
            self._reading.cancel()
            writing.cancel()
            await asyncio.gather(self._reading, writing, return_exceptions=True)
            self._leave_queue()
            if self._owner_id:
                self._admission.book.owner_disconnected(self._owner_id)

    async def _read(self) -> None:
        first = await self._context.read()
        if first is grpc.aio.EOF:
            return
        if not first.hello.owner_id:
            raise InvalidRequest("The first message of a session must say hello with an owner_id.")
        self._owner_id = first.hello.owner_id
        self._admission.book.owner_connected(self._owner_id)
        self._decide(first)
        while (message := await self._context.read()) is not grpc.aio.EOF:
            self._decide(message)
            while len(self._admits) + len(self._settles) > _MAX_BACKLOG:
                self._drained.clear()
                await self._drained.wait()

    def _decide(self, message: pb.SessionRequest) -> None:
        admission, owner_id = self._admission, self._owner_id
        if self._trace is not None:
            self._trace.received(message)
        if message.ping:
            self._pong = True
            self._ready.set()
        if message.renew_lease_ids:
            admission.book.renew(owner_id, message.renew_lease_ids)
        records: list[Record] = []
        admits: list[pb.AdmitResponse] = []
        settles: list[tuple[int, bool]] = []
        # Settlements first: what they free is there for the admissions beside them.
        for settle in message.settles:
            if not settle.lease_id:
                settles.append((settle.seq, False))
                continue
            verdict = admission.book.settle(settlement_of(settle))
            records += verdict.records
            settles.append((settle.seq, verdict.applied))
        admission.waiting.serve()
        for seq in message.cancel_admit_seqs:
            if (waiter := self._waiting.pop(seq, None)) is not None:
                admission.waiting.cancel(waiter)
                self._admits.append(pb.AdmitResponse(seq=seq))
        for admit in message.admits:
            decision = self._admit(admit) if self._store.accepting else unavailable()
            if decision is None:
                continue
            response = admit_response(admit.seq, decision)
            if decision.record is not None:
                records.append(decision.record)
                admits.append(response)
            else:
                self._admits.append(response)
        if self._admits:
            self._ready.set()
        # A repeated settlement has no records, but must not be answered before those of the first are durable.
        if records or settles:
            self._undurable += 1
            self._store.append(records, lambda: self._durable(admits, settles))

    def _admit(self, admit: pb.AdmitRequest) -> Decision | None:
        """None if it waits."""
        seq = admit.seq
        outcome = self._admission.admit_or_wait(
            ask_of(admit, self._owner_id), lambda decision: self._decided(seq, decision)
        )
        if isinstance(outcome, Decision):
            return outcome
        self._waiting[seq] = outcome
        return None

    def _decided(self, seq: int, decision: Decision) -> None:
        """The last word on one that waited."""
        del self._waiting[seq]
        response = admit_response(seq, decision)
        if decision.record is not None:
            self._undurable += 1
            self._store.append([decision.record], lambda: self._durable([response], []))
        else:
            self._admits.append(response)
            self._ready.set()

    def _leave_queue(self) -> None:
        """The peer asks again elsewhere."""
        for waiter in self._waiting.values():
            self._admission.waiting.cancel(waiter)
        self._waiting.clear()

    def _durable(self, admits: list[pb.AdmitResponse], settles: list[tuple[int, bool]]) -> None:
        self._undurable -= 1
        self._admits += admits
        self._settles += settles
        self._ready.set()

    async def _write(self) -> None:
        await self._context.write(pb.SessionResponse(lease_ttl_ms=self._admission.lease_ttl_ms))
        while True:
            while self._admits or self._settles or self._pong:
                answers = pb.SessionResponse(admits=_pop(self._admits, _MAX_ANSWERS), pong=self._pong)
                for seq, applied in _pop(self._settles, _MAX_ANSWERS):
                    answer = answers.settles.add()
                    answer.seq = seq
                    answer.applied = applied
                self._pong = False
                if self._trace is not None:
                    self._trace.answered(answers)
                await self._context.write(answers)
            self._drained.set()
            if self._ending and not self._undurable:
                return
            self._ready.clear()
            await self._ready.wait()


def _pop(queue: deque[Any], count: int) -> list[Any]:
    if len(queue) <= count:
        items = list(queue)
        queue.clear()
        return items
    return [queue.popleft() for _ in itertools.repeat(None, count)]

"""Admission and settlement over one stream to the auth service.

An outage of the auth service stops nobody who was admitted: settlements wait here until they are durable there,
and leases are announced again after every reconnection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.common.errors import AuthUnavailable, ServiceError, from_reason
from vllm_proxy.common.settings import Grpc
from vllm_proxy.edge.errors import HeaderList
from vllm_proxy.edge.session_link import SessionLink

log = logging.getLogger(__name__)

#: Frames of one kind in one batch; far below 1 MiB.
MAX_BATCH_FRAMES = 2048
#: Settlements that may wait for the auth service. Beyond it the oldest are given up, and said so in the log:
#: about 100 MB, hours of an outage.
MAX_UNSETTLED = 200_000
RENEWALS_PER_TTL = 3
#: So often a silent auth service is asked for a sign of life before it counts as frozen.
PINGS_PER_SILENCE = 3
#: A settlement waits so long for an admission to go with. The auth service reads settlements first, so the next
#: request of the same client finds what this one freed.
SETTLE_DELAY_S = 0.002


class AdmissionRefused(Exception):
    """The auth service said no. `error` is what the client is told."""

    def __init__(self, error: ServiceError, answer: pb.AdmitResponse) -> None:
        self.error = error
        self.answer = answer
        super().__init__(error.message)


@dataclass(slots=True)
class Settlement:
    """What became of a lease. `on_durable` is called once it is in the auth service's book."""

    lease_id: str
    attempt: int
    outcome: pb.Outcome
    model: str
    host: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    on_durable: Callable[[], None] | None = None
    #: The base of `model`, or `model` itself; empty if it is not known.
    base_model: str = ""
    #: Of the request, if it is traced.
    traceparent: str = ""


#: Gets the auth service's word, refusals included, or AuthUnavailable.
Answered = Callable[[pb.AdmitResponse | ServiceError], None]


@dataclass(slots=True)
class _Waiting:
    request: pb.AdmitRequest
    answered: Answered
    #: By the event loop's clock.
    deadline: float


class AuthClient:
    """This worker's `AuthService.Session`. Runs in `run`, which never returns."""

    def __init__(
        self,
        dial: Callable[[], grpc.aio.Channel],
        owner_id: str,
        settings: Grpc,
        admission_timeout_s: float,
        silence_timeout_s: float = 60.0,
    ) -> None:
        """`dial` makes a channel, which `run` closes: another one for each auth service that has fallen silent, as its
        connection is as good as ever."""
        self._dial = dial
        self._channel = dial()
        self._owner_id = owner_id
        self.silence_timeout_s = silence_timeout_s
        self._heard = False
        self._pings = False
        #: Of requests that ask from now on.
        self.timeout_s = admission_timeout_s
        self._link = SessionLink("auth", self._open_session, self, settings)
        self._seq = 0
        self._admits: dict[int, _Waiting] = {}
        self._admit_outbox: deque[int] = deque()
        #: Admissions that were sent and that nobody waits for any more, with the model that they named.
        self._orphans: dict[int, str] = {}
        self._cancels: list[int] = []
        self._settles: dict[int, Settlement] = {}
        self._settle_outbox: deque[int] = deque()
        self._running: set[str] = set()
        self._renewals: Iterator[str] = iter(())
        self._expiry: asyncio.TimerHandle | None = None
        self._lease_ttl_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def unsettled(self) -> int:
        return len(self._settles)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._link.run(), name="auth-session")
                tasks.create_task(self._renew(), name="auth-renewals")
                tasks.create_task(self._listen(), name="auth-silence")
        finally:
            await self._channel.close()

    def ask(self, request: pb.AdmitRequest, answered: Answered) -> int:
        """Asks whether a request may go ahead; an outage is waited through. `answered` is called once, unless
        `abandon` is called first, with the number that this returns.

        A lease in the answer is kept alive from then on and must be settled by whoever got it. After the admission
        timeout the answer is AuthUnavailable.
        """
        self._seq = seq = self._seq + 1
        request.seq = seq
        loop = asyncio.get_running_loop()
        self._admits[seq] = _Waiting(request, answered, loop.time() + self.timeout_s)
        self._admit_outbox.append(seq)
        self._link.wake()
        if self._expiry is None:
            self._expiry = loop.call_later(self.timeout_s, self._expire)
        return seq

    def abandon(self, seq: int) -> None:
        """Nobody waits for an answer any more. A lease that still comes is settled here."""
        waiting = self._admits.pop(seq, None)
        if waiting is not None:
            self._orphans[seq] = waiting.request.model
            self._cancels.append(seq)
            self._link.wake()

    async def admit(self, request: pb.AdmitRequest) -> pb.AdmitResponse:
        """`ask` as a coroutine. Raises AdmissionRefused, AuthUnavailable."""
        future: asyncio.Future[pb.AdmitResponse | ServiceError] = asyncio.get_running_loop().create_future()
        seq = self.ask(request, partial(self._resolve, future, request.model))
        try:
            answer = await future
        except BaseException:
            self.abandon(seq)
            if not future.cancelled():
                # The answer had come, but the waiter did not run any more.
                self._settle_unwanted(future.result(), request.model)
            raise
        if isinstance(answer, ServiceError):
            raise answer
        if not answer.admitted:
            raise AdmissionRefused(refusal(answer), answer)
        return answer

    def _resolve(
        self,
        future: asyncio.Future[pb.AdmitResponse | ServiceError],
        model: str,
        answer: pb.AdmitResponse | ServiceError,
    ) -> None:
        if future.done():
            self._settle_unwanted(answer, model)
        else:
            future.set_result(answer)

    def _expire(self) -> None:
        """Gives up what has waited too long. Those who ask wait in the order of their deadlines: one timer does."""
        self._expiry = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._admits:
            seq, waiting = next(iter(self._admits.items()))
            if waiting.deadline > now:
                self._expiry = loop.call_at(waiting.deadline, self._expire)
                return
            self.abandon(seq)
            waiting.answered(AuthUnavailable(retry_after_s=1))

    def settle(self, settlement: Settlement) -> None:
        """Closes a lease. Never blocks; repeated until the auth service has it."""
        self._running.discard(settlement.lease_id)
        self._seq = seq = self._seq + 1
        if len(self._settles) >= MAX_UNSETTLED:
            lost = self._settles.pop(next(iter(self._settles)))
            log.error("settlement given up", extra={"lease_id": lost.lease_id, "host": lost.host})
        self._settles[seq] = settlement
        self._settle_outbox.append(seq)
        self._idle.clear()
        self._link.wake_within(SETTLE_DELAY_S)

    async def wait_settled(self) -> None:
        """Returns when everything that was to be settled is durable."""
        await self._idle.wait()

    # The link's side.

    def hello(self) -> pb.SessionRequest:
        self._renewals = iter(tuple(self._running))
        return pb.SessionRequest(
            hello=pb.SessionHello(owner_id=self._owner_id, source=pb.SOURCE_EDGE),
            renew_lease_ids=list(islice(self._renewals, MAX_BATCH_FRAMES)),
        )

    def next_batch(self) -> pb.SessionRequest | None:
        batch = pb.SessionRequest()
        admits, settles = self._admits, self._settles
        outbox = self._settle_outbox
        room = MAX_BATCH_FRAMES
        while outbox and room:
            seq = outbox.popleft()
            if (settlement := settles.get(seq)) is not None:
                _fill_settle(batch.settles.add(), seq, settlement)
                room -= 1
        outbox = self._admit_outbox
        room = MAX_BATCH_FRAMES
        while outbox and room:
            seq = outbox.popleft()
            if (waiting := admits.get(seq)) is not None:
                batch.admits.append(waiting.request)
                room -= 1
            else:
                self._orphans.pop(seq, None)
        if self._cancels:
            # One that was not sent yet is no orphan any more.
            batch.cancel_admit_seqs.extend(seq for seq in self._cancels if seq in self._orphans)
            self._cancels.clear()
        batch.renew_lease_ids.extend(islice(self._renewals, MAX_BATCH_FRAMES))
        if self._pings:
            batch.ping, self._pings = True, False
            return batch
        is_empty = not (batch.settles or batch.admits or batch.renew_lease_ids or batch.cancel_admit_seqs)
        return None if is_empty else batch

    def received(self, message: pb.SessionResponse) -> None:
        self._heard = True
        if message.lease_ttl_ms:
            self._lease_ttl_s = message.lease_ttl_ms / 1000
        for answer in message.admits:
            waiting = self._admits.pop(answer.seq, None)
            if waiting is None:
                self._settle_unwanted(answer, self._orphans.pop(answer.seq, ""))
                continue
            if answer.lease_id:
                self._running.add(answer.lease_id)
            waiting.answered(answer)
        for settled in message.settles:
            settlement = self._settles.pop(settled.seq, None)
            if settlement is not None and settlement.on_durable is not None:
                settlement.on_durable()
        if not self._settles:
            self._idle.set()

    def lost(self) -> None:
        self._orphans.clear()
        self._cancels.clear()
        self._settle_outbox = deque(self._settles)
        self._admit_outbox = deque(self._admits)
        self._link.wake()

    def _settle_unwanted(self, answer: pb.AdmitResponse | ServiceError, model: str) -> None:
        if not isinstance(answer, ServiceError) and answer.lease_id:
            self.settle(Settlement(answer.lease_id, 1, pb.OUTCOME_NOT_SENT, model))

    def _open_session(self) -> Any:
        return auth_pb2_grpc.AuthServiceStub(self._channel).Session(wait_for_ready=True)

    async def _listen(self) -> None:
        """Looks for another replica when nothing is heard: a frozen one keeps its connections. Also while one is looked
        for, as it may have frozen in the middle of the connection's start."""
        missed = 0
        while True:
            await asyncio.sleep(self.silence_timeout_s / PINGS_PER_SILENCE)
            missed = 0 if self._heard else missed + 1
            self._heard = False
            if missed >= PINGS_PER_SILENCE:
                missed = 0
                silent, self._channel = self._channel, self._dial()
                self._link.give_up()
                await silent.close()
            elif self.connected:
                self._pings = True
                self._link.wake()

    async def _renew(self) -> None:
        """Keeps the running leases alive."""
        while True:
            await asyncio.sleep((self._lease_ttl_s or 1.0) / RENEWALS_PER_TTL)
            if self._running and self.connected:
                self._renewals = iter(tuple(self._running))
                self._link.wake()


def _fill_settle(frame: pb.SettleRequest, seq: int, settlement: Settlement) -> None:
    # Field by field: half the cost of a constructor, and nothing is copied into the batch.
    frame.seq = seq
    frame.lease_id = settlement.lease_id
    frame.attempt = settlement.attempt
    frame.source = pb.SOURCE_EDGE
    frame.outcome = settlement.outcome
    frame.model = settlement.model
    frame.base_model = settlement.base_model
    frame.host = settlement.host
    if settlement.traceparent:
        frame.traceparent = settlement.traceparent
    usage = frame.usage
    usage.prompt_tokens = settlement.prompt_tokens
    usage.cached_tokens = settlement.cached_tokens
    usage.completion_tokens = settlement.completion_tokens


def refusal(answer: pb.AdmitResponse) -> ServiceError:
    """What the client is told."""
    retry_after_s = answer.retry_after_ms / 1000 if answer.HasField("retry_after_ms") else None
    metadata = {"limit": answer.limit_name} if answer.limit_name else {}
    return from_reason(answer.reason, answer.message, retry_after_s=retry_after_s, metadata=metadata)


def rate_limit_headers(answer: pb.AdmitResponse) -> HeaderList:
    """`x-ratelimit-*` as OpenAI writes them. A limit that the key does not have is left out."""
    headers: HeaderList = []
    for name, state in ((b"requests", answer.requests), (b"tokens", answer.tokens)):
        if state.limit:
            headers.append((b"x-ratelimit-limit-" + name, b"%d" % state.limit))
            headers.append((b"x-ratelimit-remaining-" + name, b"%d" % state.remaining))
            headers.append((b"x-ratelimit-reset-" + name, duration(state.reset_ms)))
    return headers


def duration(milliseconds: int) -> bytes:
    """A time as OpenAI's reset headers tell it: `120ms`, `1s`, `1.5s`, `6m0s`, `1h0m0s`."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}.{rest:03d}".rstrip("0") if rest else str(seconds)
    if hours:
        return f"{hours}h{minutes}m{text}s".encode()
    return f"{minutes}m{text}s".encode() if minutes else f"{text}s".encode()

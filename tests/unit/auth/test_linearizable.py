"""Many peers at once: whatever the interleaving, there is an order of their requests, one after the other, in which
the rules give exactly the answers that were given (linearizability, Herlihy and Wing 1990)."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc.aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.auth.fakes import Desk, MemoryStore, api_key

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.limits import Limits
from vllm_proxy.auth.policy import Policy
from vllm_proxy.auth.session import Session

PEERS = 4
#: Each request reserves one token and uses it.
CONCURRENT, QUOTA = 3, 8


@dataclass(eq=False)
class Operation:
    """An admission, or the settlement of an admission that was answered before it."""

    settles: Operation | None
    invoked: int
    answered: int = -1
    admitted: bool = False
    lease_id: str = ""


class Peer:
    """A session's peer without a network, and what it asked."""

    def __init__(self, desk: Desk, store: MemoryStore, name: str) -> None:
        self.incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: deque[pb.SessionResponse] = deque()
        self.asked: dict[int, Operation] = {}
        self.incoming.put_nowait(pb.SessionRequest(hello=pb.SessionHello(owner_id=name)))
        self.running = asyncio.create_task(Session(desk.admission, store, self).run())

    async def read(self) -> Any:
        return await self.incoming.get()

    async def write(self, message: pb.SessionResponse) -> None:
        self.answers.append(message)

    def send(self, operation: Operation, key_sha256: bytes) -> None:
        seq = len(self.asked) + 1
        self.asked[seq] = operation
        if operation.settles is None:
            ask = pb.AdmitRequest(
                seq=seq,
                api_key_sha256=key_sha256,
                operation=pb.OPERATION_INFERENCE,
                response_tokens=1,
                model="m",
            )
            self.incoming.put_nowait(pb.SessionRequest(admits=[ask]))
        else:
            usage = pb.TokenUsage(completion_tokens=1)
            settle = pb.SettleRequest(seq=seq, lease_id=operation.settles.lease_id, attempt=1, usage=usage)
            self.incoming.put_nowait(pb.SessionRequest(settles=[settle]))

    def receive(self, now: int) -> None:
        while self.answers:
            message = self.answers.popleft()
            for admit in message.admits:
                operation = self.asked[admit.seq]
                operation.answered, operation.admitted, operation.lease_id = now, admit.admitted, admit.lease_id
            for settle in message.settles:
                self.asked[settle.seq].answered = now
                assert settle.applied


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.integers(0, PEERS - 1)),
        st.tuples(st.just("admit"), st.integers(0, PEERS - 1)),
        st.tuples(st.just("settle"), st.integers(0, PEERS - 1)),
        st.tuples(st.sampled_from(("commit", "turn")), st.just(0)),
    ),
    min_size=10,
    max_size=40,
)


@given(STEPS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_interleaved_sessions_answer_as_if_one_after_the_other(steps: list[tuple[str, int]]) -> None:
    history = asyncio.run(_play(steps))
    assert all(operation.answered >= 0 for operation in history)
    assert _is_linearizable(history), [(o.invoked, o.answered, o.admitted, bool(o.settles)) for o in history]


async def _play(steps: list[tuple[str, int]]) -> list[Operation]:
    key = api_key("k", user="u", quota=QUOTA)
    desk = Desk(key, policy=Policy(user_limits=Limits(concurrent=CONCURRENT)))
    store = MemoryStore()
    store.hold = True
    peers = [Peer(desk, store, f"edge-{number}") for number in range(PEERS)]
    history: list[Operation] = []
    settled: set[Operation] = set()
    now = 0

    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
        for peer in peers:
            peer.receive(now)

    for kind, which in steps:
        now += 1
        if kind == "admit":
            operation = Operation(None, now)
        elif kind == "settle":
            running = [o for o in history if o.admitted and o not in settled]
            if not running:
                continue
            operation = Operation(running[0], now)
            settled.add(running[0])
        else:
            if kind == "commit":
                store.release()
            await turns(1)
            continue
        history.append(operation)
        peers[which].send(operation, key.digest)
    for _ in range(1000):
        if all(operation.answered >= 0 for operation in history):
            break
        now += 1
        store.release()
        await turns(1)
    for peer in peers:
        peer.incoming.put_nowait(grpc.aio.EOF)
        await peer.running
    return history


def _is_linearizable(history: list[Operation]) -> bool:
    """Searches for an order that keeps real time and that the rules explain (Wing and Gong 1993)."""
    dead_ends: set[frozenset[int]] = set()

    def search(left: frozenset[int]) -> bool:
        if not left:
            return True
        if left in dead_ends:
            return False
        done = [operation for index, operation in enumerate(history) if index not in left]
        running = sum(o.admitted for o in done if o.settles is None) - sum(o.settles is not None for o in done)
        used = sum(o.settles is not None for o in done)
        first_answer = min(history[index].answered for index in left)
        # Whatever was answered before one was asked comes before it. Of several that are alike, the one that was
        # answered first may as well be first.
        next_ones: dict[tuple[bool, bool], int] = {}
        for index in sorted(left, key=lambda index: history[index].answered):
            operation = history[index]
            if operation.invoked <= first_answer:
                next_ones.setdefault((operation.settles is None, operation.admitted), index)
        for (admits, admitted), index in next_ones.items():
            passes = running < CONCURRENT and used + running < QUOTA
            if admits and admitted != passes:
                continue
            if search(left - {index}):
                return True
        dead_ends.add(left)
        return False

    return search(frozenset(range(len(history))))


def test_the_search_finds_what_no_order_explains() -> None:
    one_too_many = [Operation(None, n, 10, admitted=True) for n in range(CONCURRENT + 1)]
    assert not _is_linearizable(one_too_many)
    first, second = Operation(None, 1, 2, admitted=False), Operation(None, 3, 4, admitted=True)
    assert not _is_linearizable([first, second]), "refused while nothing ran"

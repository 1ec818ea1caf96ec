"""Whatever happens, the journal says what memory says: a service that restarts from it goes on with the same book."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.auth.fakes import Desk, api_key

from vllm_proxy.auth.lease import Source
from vllm_proxy.auth.store import Balance, LeaseOpened, LeaseReported, Record, StoredState

OWNERS = ("edge-1", "edge-2")
KEYS = (api_key("alice", quota=5000), api_key("bob"))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.sampled_from(OWNERS), st.sampled_from(KEYS), st.integers(0, 500)),
        st.tuples(
            st.just("settle"),
            st.integers(0, 30),
            st.sampled_from([Source.EDGE, Source.HOST, Source.HOST, Source.TOOL]),
            st.integers(1, 3),
            st.integers(0, 500),
        ),
        st.tuples(st.sampled_from(["connect", "disconnect", "renew"]), st.sampled_from(OWNERS)),
        st.tuples(st.just("wait"), st.floats(0, 40)),
    ),
    max_size=60,
)


def stored(records: list[Record]) -> StoredState:
    """What a store makes of records, said as plainly as can be."""
    state, leases, reports = StoredState(), {}, {}
    for record in records:
        if isinstance(record, LeaseOpened):
            leases[record.lease_id] = record
        elif isinstance(record, LeaseReported):
            assert record.lease_id in leases
            reports[record.lease_id] = record
        else:
            assert record.closes == (record.lease_id in leases), "each lease is closed once, and corrected only later"
            leases.pop(record.lease_id, None)
            reports.pop(record.lease_id, None)
            balance = state.balances.setdefault(record.account, Balance())
            balance.prompt_tokens += record.prompt_tokens
            balance.cached_tokens += record.cached_tokens
            balance.completion_tokens += record.completion_tokens
            balance.requests += record.requests
            balance.charged_tokens += record.charged_tokens
            balance.last_used_ms = record.settled_at_ms
            state.recent.append(record)
    state.leases, state.reports = list(leases.values()), list(reports.values())
    return state


def book(desk: Desk) -> dict[str, tuple[Balance, int, int]]:
    return {
        key.user: (desk.account(key).balance(), desk.account(key).running, desk.account(key).reserved_tokens)
        for key in KEYS
    }


def undated(book: dict[str, tuple[Balance, int, int]]) -> dict[str, tuple[Balance, int, int]]:
    return {user: (replace(balance, last_used_ms=0), *held) for user, (balance, *held) in book.items()}


class Life:
    """A desk to which events happen: what it wrote, and the leases that it gave."""

    def __init__(self) -> None:
        self.desk = Desk(*KEYS)
        self.records: list[Record] = []
        self.leases: list[str] = []
        self._sessions = dict.fromkeys(OWNERS, 0)

    def happens(self, kind: str, *what: Any) -> list[Record]:
        """Returns what it wrote of it."""
        desk, before = self.desk, len(self.records)
        if kind == "admit":
            owner, key, response = what
            decision = desk.admit(key, owner=owner, response=response)
            if decision.record is not None:
                self.records.append(decision.record)
                self.leases.append(decision.lease_id)
        elif kind == "settle" and self.leases:
            which, source, attempt, completion = what
            lease_id = self.leases[which % len(self.leases)]
            self.records += desk.settle(lease_id, 10, completion, source=source, attempt=attempt).records
        elif kind == "connect":
            desk.admission.book.owner_connected(what[0])
            self._sessions[what[0]] += 1
        elif kind == "disconnect" and self._sessions[what[0]]:
            desk.admission.book.owner_disconnected(what[0])
            self._sessions[what[0]] -= 1
        elif kind == "renew":
            desk.admission.book.renew(what[0], self.leases)
        elif kind == "wait":
            desk.clock.advance(what[0])
            self.records += desk.admission.tick()
        return self.records[before:]


@given(EVENTS)
def test_a_restart_finds_the_same_book(events: list[tuple]) -> None:
    life = Life()
    desk = life.desk
    for event in events:
        life.happens(*event)
        state = stored(life.records)
        running = {key.user: [lease for lease in state.leases if lease.account == key.digest] for key in KEYS}
        assert book(desk) == {
            key.user: (
                state.balances.get(key.digest, Balance()),
                len(running[key.user]),
                sum(lease.reserved_tokens for lease in running[key.user]),
            )
            for key in KEYS
        }
        assert {lease.lease_id for lease, _ in desk.admission.leases()} == {lease.lease_id for lease in state.leases}

    again = Desk(*KEYS)
    again.clock = desk.clock
    again.admission._clock = again.admission.book._clock = desk.clock
    again.admission.restore(stored(life.records))
    assert book(again) == book(desk)
    # The same late word changes the same in both.
    for lease in life.leases:
        before, after = (one.settle(lease, 10, 77, source=Source.HOST, attempt=4) for one in (desk, again))
        assert before.applied == after.applied and len(before.records) == len(after.records)
    desk.clock.advance(100)
    desk.admission.tick()
    again.admission.tick()
    # The new process waits for the owners for a while, so it may take the last word later.
    assert undated(book(again)) == undated(book(desk))

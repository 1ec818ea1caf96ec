from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.auth.fakes import Desk, api_key

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth import closed_leases
from vllm_proxy.auth.keys import DEFAULT_KEY
from vllm_proxy.auth.lease import Operation, Outcome, Source
from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.limits import Limits
from vllm_proxy.auth.store import Balance, LeaseOpened, LeaseReported, LedgerEntry, StoredState


def test_the_numbers_are_the_protos() -> None:
    for ours, theirs in ((Operation, pb.Operation), (Outcome, pb.Outcome)):
        assert {f"{ours.__name__.upper()}_{item.name}": int(item) for item in ours} == dict(theirs.items())
    assert {item.name: int(item) for item in Source if item} == {"EDGE": 1, "HOST": 2, "TOOL": 3}
    assert (pb.SOURCE_EDGE, pb.SOURCE_HOST, pb.SOURCE_TOOL) == (1, 2, 3)


# Keys


def test_an_unknown_key_is_refused_without_a_trace() -> None:
    desk = Desk()
    decision = desk.admit(api_key("stranger"))
    assert decision.refusal is not None and decision.refusal.reason == "INVALID_API_KEY"
    assert decision.record is None and not desk.admission._accounts._accounts


def test_a_hash_of_the_wrong_length_is_an_unknown_key() -> None:
    desk = Desk()
    for digest in (b"", desk.key.digest[:31], desk.key.digest + b"x"):
        refusal = desk.admit(replace(desk.key, digest=digest)).refusal
        assert refusal is not None and refusal.reason == "INVALID_API_KEY"


def test_a_disabled_key_is_told_so() -> None:
    key = api_key("alice", enabled=False)
    refusal = Desk(key).admit(key).refusal
    assert refusal is not None and refusal.reason == "KEY_DISABLED"


def test_the_default_key_works_from_this_machine_only() -> None:
    desk = Desk(api_key(DEFAULT_KEY, user="default"))
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.reason == "INVALID_API_KEY"
    assert desk.admit(local=True).refusal is None


@pytest.mark.parametrize(
    ("user", "operation", "reason"),
    [
        ("alice", Operation.READ, None),
        ("alice", Operation.INFERENCE, None),
        ("alice", Operation.ADMIN, "PERMISSION_DENIED"),
        ("admin", Operation.ADMIN, None),
        ("admin", Operation.UNSPECIFIED, "INVALID_REQUEST"),
    ],
)
def test_who_may_do_what(user: str, operation: Operation, reason: str | None) -> None:
    refusal = Desk(api_key("k", user=user)).admit(operation=operation).refusal
    assert (refusal.reason if refusal else None) == reason


def test_reading_and_administering_count_nothing() -> None:
    desk = Desk(api_key("k", user="admin", quota=0), limits=Limits(qps=1, concurrent=1, tokens_per_minute=1))
    for operation in (Operation.READ, Operation.ADMIN) * 5:
        decision = desk.admit(operation=operation)
        assert decision.refusal is None and decision.record is None and not decision.lease_id


def test_a_removed_key_is_refused_and_its_lease_still_settles() -> None:
    desk = Desk()
    lease = desk.opened()
    desk.admission.declare_keys([])
    assert desk.admit().refusal is not None
    assert desk.settle(lease).applied
    assert desk.used() == 15


# What is reserved


def test_what_is_reserved() -> None:
    desk = Desk()
    assert desk.admit(prompt=10, response=90).reserved_tokens == 100
    assert desk.admit(prompt=10, response=None, choices=0).reserved_tokens == 1034
    assert desk.admit(prompt=10, response=None, choices=3).reserved_tokens == 10 + 3 * 1024
    assert desk.account().running == 3


def test_the_tokens_per_minute_reservation_stops_at_the_burst() -> None:
    desk = Desk(limits=Limits(tokens_per_minute=600))
    decision = desk.admit(prompt=100, response=100_000)
    assert decision.refusal is None
    assert decision.tokens is not None and decision.tokens.remaining == 0
    refusal = desk.admit(prompt=1, response=0).refusal
    assert refusal is not None and refusal.limit_name == "tokens_per_minute"
    desk.settle(decision.lease_id, 100, 100)
    assert desk.admit(prompt=1, response=398).refusal is None


# Limits


def test_requests_per_second() -> None:
    desk = Desk(limits=Limits(qps=2))
    desk.opened()
    desk.opened()
    decision = desk.admit()
    refusal = decision.refusal
    assert refusal is not None and refusal.reason == "RATE_LIMITED" and refusal.limit_name == "requests_per_second"
    assert refusal.retry_after_ns == NS_PER_SECOND // 2 and "2 requests per second" in refusal.message
    assert decision.requests == (2, 0, NS_PER_SECOND) and decision.tokens is None
    desk.clock.advance(0.5)
    desk.opened()


def test_concurrency_is_the_number_of_open_leases() -> None:
    desk = Desk(limits=Limits(concurrent=2))
    first = desk.opened()
    desk.opened()
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.limit_name == "concurrency" and refusal.retry_after_ns == NS_PER_SECOND
    desk.settle(first)
    desk.opened()


def test_limits_are_each_keys_own() -> None:
    alice, bob = api_key("alice"), api_key("bob")
    desk = Desk(alice, bob, limits=Limits(concurrent=1, qps=1, tokens_per_minute=100))
    desk.opened(alice)
    desk.opened(bob)


@pytest.mark.parametrize(
    "limits", [Limits(qps=1, concurrent=1), Limits(qps=1, tokens_per_minute=100), Limits(qps=1)], ids=str
)
def test_a_refusal_consumes_nothing(limits: Limits) -> None:
    desk = Desk(api_key("a", quota=1000), limits=limits)
    lease = desk.opened(prompt=50, response=50)
    before = desk.admission.account_of(desk.key)
    level = before.requests.level if before.requests else 0
    for _ in range(20):
        assert desk.admit(prompt=50, response=50).refusal is not None
    assert before.requests is not None and before.requests.level == level
    assert (before.running, before.reserved_tokens) == (1, 100)
    desk.settle(lease, 50, 50)
    desk.clock.advance(60)
    desk.opened(prompt=50, response=50)


@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.booleans(), st.integers(0, 200), st.integers(0, 300)),
        min_size=1,
        max_size=40,
    )
)
def test_a_lone_client_that_waits_as_told_passes(steps: list[tuple[int, bool, int, int]]) -> None:
    desk = Desk(limits=Limits(qps=1.5, tokens_per_minute=500))
    leases: list[str] = []
    for gap_ms, settles, prompt, response in steps:
        desk.clock.advance(gap_ms / 1000)
        if settles and leases:
            desk.settle(leases.pop(), prompt, response)
            continue
        decision = desk.admit(prompt=prompt, response=response)
        if decision.refusal is not None:
            wait_ns = decision.refusal.retry_after_ns
            assert wait_ns
            desk.clock.ns += wait_ns - 1
            assert desk.admit(prompt=prompt, response=response).refusal is not None
            desk.clock.ns += 1
            decision = desk.admit(prompt=prompt, response=response)
            assert decision.refusal is None
        leases.append(decision.lease_id)


def test_of_several_limits_the_longest_wait_is_told() -> None:
    desk = Desk(limits=Limits(qps=1, tokens_per_minute=60))
    desk.opened(prompt=60, response=0)
    refusal = desk.admit(prompt=30, response=0).refusal
    assert refusal is not None and refusal.limit_name == "tokens_per_minute"
    assert refusal.retry_after_ns == 30 * NS_PER_SECOND


def test_limits_change_while_requests_run() -> None:
    desk = Desk()
    leases = [desk.opened() for _ in range(3)]
    desk.limit(Limits(concurrent=3, qps=1, tokens_per_minute=1000))
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.limit_name == "concurrency"
    desk.settle(leases[0])
    desk.opened()
    desk.limit(Limits())
    desk.opened()
    desk.limit(Limits(tokens_per_minute=1000))
    for lease in leases[1:]:
        desk.settle(lease)
    state = desk.admit(prompt=0, response=0).tokens
    assert state is not None and state.remaining == 1000


def test_settling_puts_the_tokens_per_minute_right() -> None:
    desk = Desk(limits=Limits(tokens_per_minute=1000))
    lease = desk.opened(prompt=100, response=900)
    assert desk.admit(prompt=1, response=0).refusal is not None
    desk.settle(lease, 100, 100)
    decision = desk.admit(prompt=0, response=0)
    assert decision.tokens is not None and decision.tokens.remaining == 800


def test_an_overrun_is_debt() -> None:
    desk = Desk(limits=Limits(tokens_per_minute=1000))
    lease = desk.opened(prompt=100, response=900)
    desk.settle(lease, 100, 1900)
    refusal = desk.admit(prompt=1000, response=0).refusal
    assert refusal is not None and refusal.retry_after_ns == 120 * NS_PER_SECOND


# Quota


def test_a_spent_quota_says_that_waiting_does_not_help() -> None:
    desk = Desk(api_key("a", quota=100))
    desk.settle(desk.opened(prompt=10, response=90), 10, 90)
    decision = desk.admit()
    refusal = decision.refusal
    assert refusal is not None and (refusal.reason, refusal.limit_name) == ("QUOTA_EXCEEDED", "quota")
    assert refusal.retry_after_ns is None and "100" in refusal.message
    assert decision.quota_remaining == 0


def test_a_quota_that_running_requests_hold_is_worth_waiting_for() -> None:
    desk = Desk(api_key("a", quota=100))
    lease = desk.opened(prompt=10, response=90)
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.reason == "QUOTA_EXCEEDED" and refusal.retry_after_ns == NS_PER_SECOND
    desk.settle(lease, 10, 5)
    assert desk.admit().reserved_tokens == 85


def test_a_small_rest_can_still_be_used() -> None:
    desk = Desk(api_key("a", quota=50))
    decision = desk.admit(prompt=10, response=1000)
    assert decision.refusal is None and decision.reserved_tokens == 50 and decision.quota_remaining == 0


def test_a_prompt_that_does_not_fit_the_rest_is_refused_for_good() -> None:
    refusal = Desk(api_key("a", quota=50)).admit(prompt=51, response=1).refusal
    assert refusal is not None and refusal.limit_name == "quota" and refusal.retry_after_ns is None


def test_a_spent_quota_is_told_even_when_other_limits_refuse_too() -> None:
    desk = Desk(api_key("a", quota=6), limits=Limits(qps=1, concurrent=1))
    desk.settle(desk.opened(prompt=5, response=5), 5, 5)
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.limit_name == "quota"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 300)), max_size=80), st.integers(0, 1000))
def test_concurrent_requests_never_reserve_more_than_the_quota(steps: list[tuple[bool, int, int]], quota: int) -> None:
    desk = Desk(api_key("a", quota=quota))
    leases: list[tuple[str, int, int]] = []
    for settles, prompt, response in steps:
        if settles and leases:
            lease, reserved, _ = leases.pop(prompt % len(leases))
            desk.settle(lease, min(prompt, reserved), min(response, reserved - min(prompt, reserved)))
        else:
            decision = desk.admit(prompt=prompt, response=response)
            if decision.refusal is None:
                leases.append((decision.lease_id, decision.reserved_tokens, prompt))
        account = desk.account()
        assert account.reserved_tokens == sum(reserved for _, reserved, _ in leases)
        assert account.balance().charged_tokens + account.reserved_tokens <= quota
        assert account.running == len(leases)


# Who settles


def test_an_edge_settles_once() -> None:
    desk = Desk(limits=Limits(concurrent=1))
    lease = desk.opened()
    verdict = desk.settle(lease, 10, 20)
    (entry,) = verdict.records
    assert isinstance(entry, LedgerEntry) and entry.closes and entry.requests == 1
    assert (entry.user, entry.prompt_tokens, entry.completion_tokens) == ("alice", 10, 20)
    again = desk.settle(lease, 10, 999)
    assert again.applied and not again.records
    assert desk.used() == 30 and desk.account().running == 0 and desk.account().balance().requests == 1


def test_an_unknown_lease_is_not_applied() -> None:
    assert not Desk().settle("nobody").applied


def test_a_hosts_count_waits_for_the_connected_owner_and_then_wins() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    report = desk.settle(lease, 10, 50, source=Source.HOST)
    assert report.applied and isinstance(report.records[0], LeaseReported)
    assert desk.used() == 0 and desk.account().running == 1
    assert desk.settle(lease, 10, 40).applied
    assert desk.used() == 60


def test_the_edges_later_try_beats_a_hosts_report_of_an_earlier_one() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    desk.settle(lease, 10, 50, source=Source.HOST, attempt=1)
    desk.settle(lease, 10, 7, attempt=2)
    assert desk.used() == 17


def test_a_hosts_later_report_replaces_an_earlier_one_not_the_other_way_round() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    assert desk.settle(lease, 10, 7, source=Source.HOST, attempt=2).applied
    assert not desk.settle(lease, 10, 50, source=Source.HOST, attempt=1).applied
    desk.settle(lease, 10, 1, attempt=2)
    assert desk.used() == 17


def test_a_host_settles_at_once_when_the_owner_is_gone() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    desk.admission.book.owner_disconnected("edge-1")
    desk.clock.advance(2)
    assert desk.admission.tick() == []
    verdict = desk.settle(lease, 10, 50, source=Source.HOST)
    assert verdict.applied and isinstance(verdict.records[0], LedgerEntry)
    assert desk.used() == 60 and desk.account().running == 0


def test_a_waiting_report_is_taken_once_the_owner_stays_away() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease, other = desk.opened(), desk.opened()
    desk.settle(lease, 10, 50, source=Source.HOST)
    desk.admission.book.owner_disconnected("edge-1")
    desk.clock.advance(1.9)
    assert desk.admission.tick() == []
    desk.clock.advance(0.1)
    (entry,) = desk.admission.tick()
    assert isinstance(entry, LedgerEntry) and entry.lease_id == lease and entry.source == Source.HOST
    assert desk.used() == 60 and desk.account().running == 1
    assert not desk.settle(lease, 10, 40).applied, "the host's count of the same try is worth more"
    assert desk.settle(other).applied


def test_an_owner_that_reconnects_in_time_keeps_its_word() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    desk.settle(lease, 10, 50, source=Source.HOST)
    desk.admission.book.owner_disconnected("edge-1")
    desk.clock.advance(1.5)
    desk.admission.book.owner_connected("edge-1")
    desk.clock.advance(10)
    assert desk.admission.tick() == []
    desk.settle(lease, 1, 1, attempt=2)
    assert desk.used() == 2


def test_an_owner_with_two_sessions_is_there_until_the_last_ends() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    desk.settle(lease, 10, 50, source=Source.HOST)
    desk.admission.book.owner_disconnected("edge-1")
    desk.clock.advance(10)
    assert desk.admission.tick() == []


def test_a_hosts_count_corrects_an_edges_within_the_grace() -> None:
    desk = Desk(limits=Limits(tokens_per_minute=1000))
    lease = desk.opened()
    desk.settle(lease, 10, 40)
    desk.clock.advance(299)
    desk.admission.tick()
    (row,) = desk.settle(lease, 10, 55, source=Source.HOST).records
    assert isinstance(row, LedgerEntry) and not row.closes
    assert (row.prompt_tokens, row.completion_tokens, row.requests) == (0, 15, 0)
    assert desk.used() == 65 and desk.account().balance().requests == 1
    assert desk.settle(lease, 10, 55, source=Source.HOST).records == []
    assert not desk.settle(lease, 10, 1).applied


def test_a_correction_may_lower_what_was_charged() -> None:
    desk = Desk()
    lease = desk.opened()
    desk.settle(lease, 10, 40)
    (row,) = desk.settle(lease, 10, 30, source=Source.HOST).records
    assert isinstance(row, LedgerEntry) and row.completion_tokens == -10
    assert desk.used() == 40


def test_a_correction_after_the_grace_is_too_late() -> None:
    desk = Desk()
    lease = desk.opened()
    desk.settle(lease, 10, 40)
    desk.clock.advance(300)
    desk.admission.tick()
    assert not desk.settle(lease, 10, 55, source=Source.HOST).applied
    assert desk.used() == 50


def test_a_later_try_replaces_what_an_earlier_one_was_charged() -> None:
    desk = Desk()
    lease = desk.opened()
    desk.settle(lease, 10, 50, source=Source.HOST, attempt=1)
    assert desk.used() == 60
    assert desk.settle(lease, 10, 7, attempt=2).applied
    assert desk.used() == 17
    assert not desk.settle(lease, 10, 50, source=Source.HOST, attempt=1).applied
    assert desk.used() == 17 and desk.account().balance().requests == 1


def test_closed_leases_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_leases, "MAX_CLOSED", 3)
    desk = Desk()
    leases = [desk.opened() for _ in range(5)]
    for lease in leases:
        desk.settle(lease)
    desk.admission.tick()
    assert [desk.settle(lease).applied for lease in leases] == [False, False, True, True, True]


# Time


def test_a_lease_that_nobody_renews_lapses_and_costs_nothing() -> None:
    desk = Desk(limits=Limits(concurrent=1, tokens_per_minute=100))
    lease = desk.opened()
    desk.clock.advance(29.9)
    assert desk.admission.tick() == []
    desk.clock.advance(0.1)
    (entry,) = desk.admission.tick()
    assert isinstance(entry, LedgerEntry) and entry.closes
    assert (entry.attempt, entry.requests, entry.prompt_tokens) == (0, 0, 0)
    assert desk.used() == 0 and desk.account().running == 0 and desk.account().reserved_tokens == 0
    # Its owner was only cut off: the truth is still taken.
    assert desk.settle(lease, 10, 20).applied
    assert desk.used() == 30 and desk.account().running == 0 and desk.account().balance().requests == 1


def test_a_lease_that_lapses_is_charged_by_its_report() -> None:
    desk = Desk()
    desk.admission.book.owner_connected("edge-1")
    lease = desk.opened()
    desk.settle(lease, 10, 50, source=Source.HOST)
    desk.clock.advance(30)
    (entry,) = desk.admission.tick()
    assert isinstance(entry, LedgerEntry) and entry.source == Source.HOST
    assert desk.used() == 60


def test_renewal_moves_the_expiry_of_the_owners_own_leases() -> None:
    desk = Desk()
    mine, theirs = desk.opened(owner="edge-1"), desk.opened(owner="edge-2")
    for _ in range(400):
        desk.clock.advance(10)
        desk.admission.book.renew("edge-1", [mine, theirs, "unknown"])
        desk.admission.tick()
    assert [lease.lease_id for lease, _ in desk.admission.leases()] == [mine]
    ((_, expires_at_ms),) = desk.admission.leases()
    assert expires_at_ms == desk.clock.unix_ms() + 30_000


# A new start


def test_a_restart_goes_on_with_balances_leases_and_recent_settlements() -> None:
    desk = Desk(api_key("a", quota=1000), limits=Limits(concurrent=2, tokens_per_minute=1000))
    digest, now_ms = desk.key.digest, desk.clock.unix_ms()

    def row(lease: str, source: Source, completion: int, age_s: int, closes: bool = True) -> LedgerEntry:
        at_ms = now_ms - age_s * 1000
        return LedgerEntry(
            lease, digest, "a", "r", "m", "h", 1, source, 1, 0, 0, completion, 1, closes, at_ms, completion
        )

    desk.admission.restore(
        StoredState(
            balances={digest: Balance(100, 0, 200, 7, 300)},
            leases=[
                LeaseOpened("open-1", digest, "edge-1", "r1", "m", 100, now_ms - 3_000, "a"),
                LeaseOpened("open-2", digest, "edge-1", "r2", "m", 50, now_ms - 3_000, "a"),
            ],
            reports=[LeaseReported("open-2", 1, 1, 10, 0, 30, "m", "h")],
            recent=[row("done", Source.EDGE, 200, 30), row("done", Source.HOST, 10, 29, closes=False)],
        )
    )
    account = desk.account()
    assert (account.balance().charged_tokens, account.running, account.reserved_tokens) == (300, 2, 150)
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.limit_name == "concurrency"
    # 210 tokens leaked away in half a minute at 1000 a minute; 150 came three seconds ago, 50 of them are gone
    # but for a millisecond, since times are kept in whole ones.
    assert account.tokens is not None and account.tokens.state(desk.clock.ns).remaining == 1000 - 100 - 1
    assert not desk.settle("done", 0, 5).applied
    assert desk.settle("done", 0, 300, source=Source.HOST, attempt=2).applied
    assert desk.used() == 300 + 90
    desk.clock.advance(2)
    (entry,) = desk.admission.tick()
    assert isinstance(entry, LedgerEntry) and entry.lease_id == "open-2" and entry.completion_tokens == 30
    desk.clock.advance(28)
    (lapsed,) = desk.admission.tick()
    assert isinstance(lapsed, LedgerEntry) and lapsed.lease_id == "open-1" and lapsed.attempt == 0
    assert desk.account().running == 0 and desk.account().reserved_tokens == 0


def test_debt_of_the_last_minutes_outlives_a_restart() -> None:
    desk = Desk(limits=Limits(tokens_per_minute=60))
    at_ms = desk.clock.unix_ms() - 60_000
    row = LedgerEntry("l", desk.key.digest, "a", "r", "m", "h", 1, 1, 1, 0, 0, 240, 1, True, at_ms, 240)
    desk.admission.restore(StoredState(recent=[row]))
    refusal = desk.admit(prompt=60, response=0).refusal
    assert refusal is not None and 0 <= refusal.retry_after_ns - 180 * NS_PER_SECOND <= 1_000_000

"""Limits of users, of everybody, of a key for some models; quotas by the calendar; what a key may use at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.unit.auth.fakes import CONFIG, Desk, api_key

from vllm_proxy.auth.keys import ApiKey
from vllm_proxy.auth.lease import Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.limits import KeyRules, LimitOverrides, Limits
from vllm_proxy.auth.policy import Policy, UserRules
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.auth.store import Balance, LeaseOpened, LedgerEntry, PeriodUsage, StoredState
from vllm_proxy.common.settings import Settings


def unix_ms(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc]


def ruled(name: str, user: str | None = None, **rules: object) -> ApiKey:
    return api_key(name, user=user, rules=KeyRules(**rules))  # type: ignore[arg-type]


def refused(desk: Desk, key: ApiKey | None = None, **wishes: object) -> tuple[str, str]:
    refusal = desk.admit(key, **wishes).refusal  # type: ignore[arg-type]
    assert refusal is not None
    return refusal.limit_name, refusal.scope.name if refusal.scope is not None else ""


# Who shares what


def test_all_keys_of_a_user_share_the_users_limits() -> None:
    home, work, bob = api_key("home", user="alice"), api_key("work", user="alice"), api_key("b", user="bob")
    desk = Desk(home, work, bob, policy=Policy(user_limits=Limits(concurrent=2)))
    lease = desk.opened(home)
    desk.opened(work)
    decision = desk.admit(home)
    assert decision.refusal is not None and decision.refusal.scope is not None
    assert decision.refusal.scope.name == "user" and "of the user 'alice'" in decision.refusal.message
    desk.opened(bob)
    desk.settle(lease)
    desk.opened(work)


def test_a_user_may_have_limits_and_a_quota_of_its_own() -> None:
    users = {"alice": UserRules(LimitOverrides(concurrent=None), quota=100)}
    home, work, bob = api_key("home", user="alice"), api_key("work", user="alice"), api_key("b", user="bob")
    desk = Desk(home, work, bob, policy=Policy(user_limits=Limits(concurrent=1), users=users))
    desk.settle(desk.opened(home, response=40), 10, 40)
    decision = desk.admit(work, prompt=10, response=80)
    assert decision.reserved_tokens == 50 == 100 - 50 and decision.quota_remaining == 0
    assert refused(desk, home) == ("quota", "user")
    desk.opened(bob)
    assert refused(desk, bob) == ("concurrency", "user")


def test_everybody_shares_the_global_limits() -> None:
    alice, bob = api_key("alice"), api_key("bob")
    desk = Desk(alice, bob, policy=Policy(global_limits=Limits(qps=2, tokens_per_minute=1000)))
    desk.opened(alice, prompt=0, response=600)
    assert refused(desk, bob, prompt=0, response=500) == ("tokens_per_minute", "global")
    desk.opened(bob, prompt=0, response=100)
    assert refused(desk, alice, prompt=0, response=0) == ("requests_per_second", "global")


def test_a_key_has_limits_of_its_own() -> None:
    strict, free = ruled("strict", limits=LimitOverrides(concurrent=1)), ruled("free", limits=LimitOverrides(qps=None))
    desk = Desk(strict, free, limits=Limits(qps=2, concurrent=3))
    desk.opened(strict)
    assert refused(desk, strict) == ("concurrency", "key")
    for _ in range(3):
        desk.opened(free)
    assert refused(desk, free) == ("concurrency", "key"), "what it does not say is the default"


def test_a_key_has_limits_for_some_models() -> None:
    key = ruled(
        "k",
        model_limits=(("big-*", LimitOverrides(concurrent=2)), ("big-one", LimitOverrides(concurrent=1))),
    )
    desk = Desk(key)
    desk.opened(model="big-one")
    assert refused(desk, model="big-one") == ("concurrency", "model:big-one"), "a name comes before patterns"
    desk.opened(model="big-two")
    desk.opened(model="big-three")
    assert refused(desk, model="big-four") == ("concurrency", "model:big-*"), "all that it matches share it"
    for _ in range(5):
        desk.opened(model="small")
    assert refused(desk, model="")[1].startswith("model:"), "the engine might choose any of them"


def test_a_refusal_by_one_scope_consumes_nothing_of_the_others() -> None:
    key = ruled("k", "u", model_limits=(("m", LimitOverrides(concurrent=1)),))
    policy = Policy(Limits(qps=5, tokens_per_minute=1000), Limits(qps=5), Limits(qps=5))
    desk = Desk(key, policy=policy)
    desk.opened(prompt=50, response=50)
    account = desk.account()
    before = [(scope.running, scope.reserved_tokens, scope.requests.level) for scope in account.path.limited]  # type: ignore[union-attr]
    for _ in range(10):
        assert refused(desk, prompt=50, response=50) == ("concurrency", "model:m")
    after = [(scope.running, scope.reserved_tokens, scope.requests.level) for scope in account.path.limited]  # type: ignore[union-attr]
    assert before == after and len(before) == 3
    desk.clock.advance(1)
    decision = desk.admit(model="other", prompt=0, response=0)
    assert decision.requests is not None and decision.requests.remaining == 4


def test_the_longest_wait_of_all_scopes_is_told() -> None:
    desk = Desk(api_key("a"), policy=Policy(Limits(qps=1), Limits(tokens_per_minute=60), Limits(qps=0.5)))
    desk.opened(prompt=60, response=0)
    refusal = desk.admit(prompt=30, response=0).refusal
    assert refusal is not None and refusal.scope is not None and refusal.scope.name == "user"
    assert refusal.retry_after_ns == 30 * NS_PER_SECOND
    desk.clock.ns += 30 * NS_PER_SECOND
    desk.opened(prompt=30, response=0)


def test_headers_tell_the_limit_with_least_left() -> None:
    desk = Desk(policy=Policy(Limits(qps=10), Limits(qps=3), Limits(qps=100)))
    decision = desk.admit()
    assert decision.requests is not None and (decision.requests.limit, decision.requests.remaining) == (3, 2)


def test_scopes_without_limits_are_not_asked() -> None:
    desk = Desk()
    desk.opened()
    assert desk.account().path.limited == () and len(desk.account().path.scopes) == 3


def test_settling_frees_every_scope() -> None:
    key = ruled("k", "u", model_limits=(("m", LimitOverrides(tokens_per_minute=1000)),))
    desk = Desk(key, policy=Policy(Limits(tokens_per_minute=1000), Limits(concurrent=1), Limits(concurrent=1)))
    lease = desk.opened(prompt=0, response=1000)
    desk.settle(lease, 0, 100)
    scopes = desk.account().path_for("m").scopes
    assert [(scope.running, scope.reserved_tokens) for scope in scopes] == [(0, 0)] * 4
    assert desk.admit(prompt=0, response=900).refusal is None


# Changes while requests run


def test_limits_that_come_later_count_what_runs_already() -> None:
    desk = Desk(api_key("a", user="u"))
    leases = [desk.opened() for _ in range(3)]
    desk.use(Policy(user_limits=Limits(concurrent=3)))
    assert refused(desk) == ("concurrency", "user")
    desk.use(Policy(global_limits=Limits(concurrent=3)))
    assert refused(desk) == ("concurrency", "global")
    changed = ruled("a", "u", model_limits=(("m", LimitOverrides(concurrent=3)),))
    desk.use(Policy())
    desk.admission.declare_keys([changed])
    assert refused(desk) == ("concurrency", "model:m")
    desk.settle(leases[0])
    desk.opened()


def test_a_key_that_changes_hands_pays_for_whom_it_ran() -> None:
    before, after = api_key("k", user="alice"), api_key("k", user="bob")
    rules = {name: UserRules(quota=1000) for name in ("alice", "bob")}
    desk = Desk(before, policy=Policy(users=rules))
    lease = desk.opened(response=100)
    desk.admission.declare_keys([after])
    (row,) = desk.settle(lease, 10, 90).records
    assert isinstance(row, LedgerEntry) and row.user == "alice"
    assert desk.admit(after, prompt=0, response=0).quota_remaining == 1000
    desk.admission.declare_keys([before])
    assert desk.admit(before, prompt=0, response=0).quota_remaining == 900


def test_changing_a_key_keeps_what_it_used() -> None:
    desk = Desk(api_key("k", quota=100), limits=Limits(tokens_per_minute=600))
    desk.settle(desk.opened(prompt=10, response=50), 10, 50)
    changed = replace(api_key("k", quota=200), rules=KeyRules(LimitOverrides(tokens_per_minute=1200)))
    desk.admission.declare_keys([changed])
    decision = desk.admit(changed, prompt=0, response=0)
    assert decision.quota_remaining == 140
    assert decision.tokens is not None and decision.tokens.remaining == 1200 - 60


# Quotas by the calendar


@pytest.mark.parametrize(
    ("period", "next_start"),
    [("day", (2027, 3, 1)), ("month", (2027, 3, 1))],
)
def test_a_quota_is_whole_again_in_the_next_period(period: str, next_start: tuple[int, ...]) -> None:
    desk = Desk(api_key("a", quota=100, quota_period=period))
    at_ms = unix_ms(2027, 2, 28, 23, 59, 50)
    desk.clock.epoch_ms = at_ms - desk.clock.ns // 1_000_000
    desk.settle(desk.opened(prompt=10, response=90), 10, 90)
    refusal = desk.admit().refusal
    assert refusal is not None and refusal.limit_name == "quota" and f"a {period}" in refusal.message
    assert refusal.retry_after_ns == (unix_ms(*next_start) - at_ms) * 1_000_000 == 10 * NS_PER_SECOND
    desk.clock.ns += refusal.retry_after_ns - 1_000_000
    assert desk.admit().refusal is not None
    desk.clock.ns += 1_000_000
    assert desk.admit().reserved_tokens == 100


def test_a_day_is_not_a_month() -> None:
    day, month = api_key("d", quota=100, quota_period="day"), api_key("m", quota=100, quota_period="month")
    desk = Desk(day, month)
    desk.clock.epoch_ms = unix_ms(2027, 2, 10) - desk.clock.ns // 1_000_000
    for key in (day, month):
        desk.settle(desk.opened(key, prompt=10, response=90), 10, 90)
    desk.clock.advance(86_400)
    desk.opened(day)
    assert refused(desk, month) == ("quota", "key")


def test_a_request_that_no_period_has_room_for_is_not_worth_waiting() -> None:
    refusal = Desk(api_key("a", quota=50, quota_period="day")).admit(prompt=51).refusal
    assert refusal is not None and refusal.limit_name == "quota" and refusal.retry_after_ns is None


def test_a_restart_knows_what_was_used_in_the_period() -> None:
    key = api_key("a", user="u", quota=100, quota_period="day")
    users = {"u": UserRules(quota=500, quota_period="month")}
    desk = Desk(key, policy=Policy(users=users))
    desk.admission.restore(
        StoredState(
            balances={key.digest: Balance(charged_tokens=5000)},
            periods=[PeriodUsage(key.digest, "u", 60, 200), PeriodUsage(b"x" * 32, "u", 0, 100)],
        )
    )
    assert desk.admit(prompt=0, response=0).quota_remaining == 40
    desk.clock.advance(86_400)
    assert desk.admit(prompt=0, response=0).quota_remaining == 100, "a new day, and 200 of the month are left"
    assert desk.account().user.quota_left(Calendar(desk.clock.unix_ms())) == 200


def test_months_have_their_lengths() -> None:
    calendar = Calendar(unix_ms(2028, 2, 29, 12))
    assert (calendar.month_start_ms, calendar.month_end_ms) == (unix_ms(2028, 2, 1), unix_ms(2028, 3, 1))
    calendar.advance(unix_ms(2028, 12, 31, 23))
    assert calendar.left_ms("day") == calendar.left_ms("month") == 3_600_000
    calendar.advance(unix_ms(2028, 12, 31, 22))
    assert calendar.day_start_ms == unix_ms(2028, 12, 31), "a clock that is set back changes nothing"


# What a key may use


def test_a_key_may_expire() -> None:
    desk = Desk()
    key = api_key("k", expires_at_ms=desk.clock.unix_ms() + 1000)
    desk.admission.declare_keys([key])
    desk.opened(key)
    desk.clock.advance(1)
    for operation in (Operation.INFERENCE, Operation.READ):
        refusal = desk.admit(key, operation=operation).refusal
        assert refusal is not None and refusal.reason == "KEY_EXPIRED"


def test_a_key_may_be_for_some_models_only() -> None:
    key = ruled("k", models=("qwen-*", "pirate"))
    desk = Desk(key)
    for model in ("qwen-7b", "qwen-", "pirate"):
        desk.opened(model=model)
    for model in ("Pirate", "pirate2", "xqwen-7b", ""):
        refusal = desk.admit(model=model).refusal
        assert refusal is not None and refusal.reason == "MODEL_NOT_ALLOWED", model
    assert desk.admit(operation=Operation.READ).models == ("qwen-*", "pirate")
    assert desk.account().running == 3
    refusal = Desk(ruled("none", models=())).admit().refusal
    assert refusal is not None and refusal.reason == "MODEL_NOT_ALLOWED"


def capped(desk: Desk, **wishes: object) -> Refusal | None:
    decision = desk.admit(**wishes)  # type: ignore[arg-type]
    return decision.refusal


def test_the_longest_answer_may_be_limited() -> None:
    key = ruled(
        "k",
        limits=LimitOverrides(max_response_tokens=100),
        model_limits=(("small", LimitOverrides(max_response_tokens=10)),),
    )
    desk = Desk(key, config=replace(CONFIG, max_response_tokens=500))
    decision = desk.admit(prompt=0, response=None, choices=3)
    assert (decision.max_response_tokens, decision.reserved_tokens) == (100, 300), "an open end reserves the cap"
    assert capped(desk, response=300, choices=3) is None
    for wishes in ({"response": 101}, {"response": 301, "choices": 3}, {"response": 11, "model": "small"}):
        refusal = capped(desk, **wishes)
        assert refusal is not None and refusal.reason == "TOO_MANY_RESPONSE_TOKENS"
        assert refusal.limit_name == "max_response_tokens" and refusal.retry_after_ns is None
    assert desk.account().running == 2
    assert Desk(config=replace(CONFIG, max_response_tokens=500)).admit().max_response_tokens == 500
    free = Desk(ruled("f", limits=LimitOverrides(max_response_tokens=None)), config=desk.config)
    assert free.admit(response=10_000).max_response_tokens is None


def test_the_rest_of_a_quota_bounds_the_answer() -> None:
    desk = Desk(api_key("a", quota=1100))
    assert desk.admit(prompt=10, response=500).max_response_tokens is None, "there is enough left"
    lease = desk.opened(prompt=10, response=500)
    first = desk.admit(prompt=10, response=200, choices=2)
    assert (first.reserved_tokens, first.max_response_tokens) == (80, 35), (
        "each of two answers gets half of what is left"
    )
    desk.settle(lease, 10, 0)
    open_end = desk.admit(prompt=10, response=None)
    assert (open_end.reserved_tokens, open_end.max_response_tokens) == (500, 490)
    desk.settle(open_end.lease_id, 0, 488)
    assert refused(desk, prompt=12, response=1) == ("quota", "key"), (
        "the prompt alone would leave nothing for an answer"
    )
    assert refused(desk, prompt=11, response=2, choices=2) == ("quota", "key")
    assert desk.admit(prompt=12, response=0).max_response_tokens is None, "an embedding has no answer"


def test_the_rest_of_a_quota_does_not_loosen_the_longest_answer() -> None:
    key = ruled("k", limits=LimitOverrides(max_response_tokens=20))
    desk = Desk(replace(key, quota=100))
    assert desk.admit(prompt=10, response=None, choices=6).max_response_tokens == 15
    desk = Desk(replace(key, quota=200))
    assert desk.admit(prompt=10, response=None, choices=6).max_response_tokens == 20


@pytest.mark.parametrize(("priority", "number"), [(None, 0), ("high", -10), (7, 7), ("unknown", 0)])
def test_a_priority_is_a_class_or_a_number(priority: str | int | None, number: int) -> None:
    assert Desk(ruled("k", priority=priority)).admit().priority == number


# What is charged


def test_cached_tokens_are_charged_at_their_weight_rounded_up() -> None:
    key = api_key("a", quota=1000)
    desk = Desk(key, policy=Policy(Limits(tokens_per_minute=1000)), config=replace(CONFIG, cached_weight_ppm=100_000))
    lease = desk.opened(prompt=100, response=100)
    given = Settlement(lease, 1, Source.EDGE, Outcome.FINISHED, Usage(100, 35, 20), "m", "h")
    (row,) = desk.admission.book.settle(given).records
    assert isinstance(row, LedgerEntry) and row.charged_tokens == 65 + 4 + 20
    decision = desk.admit(prompt=0, response=0)
    assert decision.quota_remaining == 1000 - 89
    assert decision.tokens is not None and decision.tokens.remaining == 1000 - 89
    better = given._replace(source=Source.HOST, usage=Usage(100, 100, 20))
    (row,) = desk.admission.book.settle(better).records
    assert isinstance(row, LedgerEntry) and row.charged_tokens == 30 - 89
    assert desk.used() == 30


# A new start


def test_a_restart_holds_every_scope_again() -> None:
    key = ruled("k", "u", model_limits=(("m", LimitOverrides(concurrent=2)),))
    desk = Desk(key, policy=Policy(Limits(qps=2), Limits(concurrent=5), Limits(tokens_per_minute=1000)))
    now_ms = desk.clock.unix_ms()
    opened = [LeaseOpened(f"l{i}", key.digest, "edge-1", "r", "m", 100, now_ms - 100, "u") for i in range(2)]
    desk.admission.restore(StoredState(leases=opened))
    scopes = desk.account().path_for("m").scopes
    assert [(scope.running, scope.reserved_tokens) for scope in scopes] == [(2, 200)] * 4
    assert refused(desk) == ("concurrency", "model:m")
    refusal = desk.admit(model="other").refusal
    assert refusal is not None and refusal.limit_name == "requests_per_second", "the second is not over"
    assert refusal.retry_after_ns == NS_PER_SECOND // 2 - 99_000_000
    desk.settle("l0", 0, 0)
    desk.clock.advance(0.5)
    decision = desk.admit(prompt=0, response=0)
    assert decision.refusal is None and decision.tokens is not None and decision.tokens.remaining >= 900


def test_requests_that_ended_before_a_restart_count_for_their_second() -> None:
    desk = Desk(limits=Limits(qps=2))
    at_ms = desk.clock.unix_ms() - 200
    rows = [
        LedgerEntry(f"l{i}", desk.key.digest, "a", "r", "m", "h", 1, 1, 1, 0, 0, 0, 1, True, at_ms, 0, "", at_ms)
        for i in range(2)
    ]
    desk.admission.restore(StoredState(recent=rows))
    assert refused(desk) == ("requests_per_second", "key")


def test_a_lease_of_the_first_schema_has_its_keys_user() -> None:
    desk = Desk(api_key("a", user="u"))
    desk.admission.restore(StoredState(leases=[LeaseOpened("l", desk.key.digest, "e", "r", "m", 1, 0, "")]))
    (row,) = desk.settle("l").records
    assert isinstance(row, LedgerEntry) and row.user == "u"


def test_the_policy_is_the_configurations() -> None:
    settings = Settings.model_validate(
        {
            "rate_limit": {"qps": 1},
            "user_rate_limit": {"concurrent": 2},
            "global_rate_limit": {"tokens_per_minute": 3},
            "users": {"alice": {"concurrent": None, "quota": 5, "quota_period": "day"}, "bob": {"qps": 9}},
        }
    )
    policy = Policy.from_settings(settings)
    assert policy.key_limits == Limits(qps=1) and policy.global_limits == Limits(tokens_per_minute=3)
    alice, bob, eve = (policy.user_rules(name) for name in ("alice", "bob", "eve"))
    assert alice.limits.over(policy.user_limits) == Limits() and (alice.quota, alice.quota_period) == (5, "day")
    assert bob.limits.over(policy.user_limits) == Limits(qps=9, concurrent=2)
    assert eve.limits.over(policy.user_limits) == Limits(concurrent=2) and eve.quota is None

"""Every account and every user that was asked for, made when they first are, kept in step with keys and limits."""

from __future__ import annotations

from typing import NamedTuple

from vllm_proxy.auth.account import Account
from vllm_proxy.auth.keys import ApiKey, KeyRing
from vllm_proxy.auth.policy import Policy
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.scope import Scope
from vllm_proxy.auth.store import Balance, StoredState


class Holding(NamedTuple):
    """What a key has used and holds now."""

    balance: Balance
    running: int
    reserved_tokens: int
    #: Tokens that count against its quota in the period now.
    quota_used: int
    #: Unix milliseconds; None: never, or no quota.
    quota_resets_at_ms: int | None


class User(Scope):
    __slots__ = ("policy",)

    def __init__(self, name: str) -> None:
        super().__init__("user", f"of the user {name!r}")
        self.policy: Policy | None = None


class Accounts:
    def __init__(self, keys: KeyRing, policy: Policy, max_response_tokens: int | None, now_ns: int) -> None:
        self.keys = keys
        self._policy = policy
        self._policy_since_ns = now_ns
        self._max_response_tokens = max_response_tokens
        self._everybody = Scope("global", "of this gateway")
        self._everybody.apply(policy.global_limits, None, None, now_ns)
        self._accounts: dict[bytes, Account] = {}
        self._users: dict[str, User] = {}
        # What is stored of those that were not asked for yet.
        self._balances: dict[bytes, Balance] = {}
        self._periods: dict[bytes, tuple[int, int]] = {}
        self._user_totals: dict[str, int] = {}
        self._user_periods: dict[str, tuple[int, int]] = {}
        self._stored_at: Calendar | None = None

    def restore(self, state: StoredState, calendar: Calendar) -> None:
        self._balances = state.balances
        self._user_totals = {user: balance.charged_tokens for user, balance in state.user_balances.items()}
        for account, user, day_tokens, month_tokens in state.periods:
            _add(self._periods, account, day_tokens, month_tokens)
            _add(self._user_periods, user, day_tokens, month_tokens)
        self._stored_at = Calendar(calendar.now_ms)

    def use_policy(self, policy: Policy, max_response_tokens: int | None, now_ns: int) -> bool:
        """Each account takes it when it is next asked for. Returns whether anything is different."""
        if policy == self._policy and max_response_tokens == self._max_response_tokens:
            return False
        self._max_response_tokens = max_response_tokens
        self._policy, self._policy_since_ns = policy, now_ns
        self._everybody.apply(policy.global_limits, None, None, now_ns)
        return True

    def of_key(self, key: ApiKey, now_ns: int) -> Account:
        account = self._accounts.get(key.digest)
        if account is None or account.key is not key or account.policy is not self._policy:
            account = self._configured(key.digest, key, key.user, now_ns)
        return account

    def of_digest(self, digest: bytes, user: str, now_ns: int) -> Account:
        """Also of a key that is gone; `user` is whose it was."""
        account = self._accounts.get(digest)
        if account is not None:
            return account
        key = self.keys.of_account(digest)
        return self._configured(digest, key, key.user if key is not None else user, now_ns)

    def holding_of(self, key: ApiKey, calendar: Calendar, now_ns: int) -> Holding:
        """Makes no account for a key that was never asked for: all keys may be looked at."""
        if key.digest in self._accounts:
            scope = self.of_key(key, now_ns)
        else:
            scope = Account(self._balances.get(key.digest) or Balance())
            scope.quota, scope.quota_period = key.quota, key.quota_period
            self._take_up(scope, self._periods.get(key.digest))
        resets_at_ms = None
        if key.quota is not None and key.quota_period is not None:
            resets_at_ms = calendar.day_end_ms if key.quota_period == "day" else calendar.month_end_ms
        used = scope.used_tokens(calendar)
        return Holding(scope.balance(), scope.running, scope.reserved_tokens, used, resets_at_ms)

    def user(self, name: str, now_ns: int) -> User:
        user = self._users.get(name)
        if user is None:
            user = self._users[name] = User(name)
            user.total_tokens = self._user_totals.pop(name, 0)
            self._take_up(user, self._user_periods.pop(name, None))
        if user.policy is not self._policy:
            since_ns = now_ns if user.policy is None else self._policy_since_ns
            rules = self._policy.user_rules(name)
            user.apply(rules.limits.over(self._policy.user_limits), rules.quota, rules.quota_period, since_ns)
            user.policy = self._policy
        return user

    def _configured(self, digest: bytes, key: ApiKey | None, user: str, now_ns: int) -> Account:
        account = self._accounts.get(digest)
        since_ns = now_ns
        if account is None:
            balance = self._balances.pop(digest, None)
            account = self._accounts[digest] = Account(balance or Balance())
            self._take_up(account, self._periods.pop(digest, None))
        elif account.key is key:
            since_ns = self._policy_since_ns
        account.configure(
            key, self._policy, self.user(user, now_ns), self._everybody, self._max_response_tokens, since_ns
        )
        return account

    def _take_up(self, scope: Scope, period_tokens: tuple[int, int] | None) -> None:
        if period_tokens is not None and self._stored_at is not None:
            scope.day_start_ms, scope.month_start_ms = self._stored_at.day_start_ms, self._stored_at.month_start_ms
            day_tokens, month_tokens = period_tokens
            scope.day_start_tokens = scope.total_tokens - day_tokens
            scope.month_start_tokens = scope.total_tokens - month_tokens


def _add(sums: dict, name: bytes | str, day_tokens: int, month_tokens: int) -> None:  # type: ignore[type-arg]
    day, month = sums.get(name, (0, 0))
    sums[name] = day + day_tokens, month + month_tokens

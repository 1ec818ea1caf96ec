"""A key's own scope, and the others that its requests pass: its user's, everybody's, those for some models."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from vllm_proxy.auth.keys import ApiKey
from vllm_proxy.auth.lease import Usage
from vllm_proxy.auth.limiter import LimitState
from vllm_proxy.auth.limits import DEFAULT, NO_RULES, KeyRules, LimitOverrides
from vllm_proxy.auth.policy import Policy
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.auth.scope import UNLIMITED, Scope, longer
from vllm_proxy.auth.store import Balance
from vllm_proxy.common.model_patterns import ModelPatterns, patterns_of


class Path(NamedTuple):
    """What the requests of a key for a model pass."""

    #: All that count them: the key's own first, then its user's.
    scopes: tuple[Scope, ...]
    #: Those of them that limit anything.
    limited: tuple[Scope, ...]
    #: Tokens of one answer; None: unlimited.
    max_response_tokens: int | None

    def refusal(self, least_tokens: int, wanted_tokens: int, now_ns: int, calendar: Calendar) -> Refusal | None:
        refusal = None
        for scope in self.limited:
            if found := scope.refusal(least_tokens, wanted_tokens, now_ns, calendar):
                refusal = longer(refusal, found)
        return refusal

    def room(self, wanted_tokens: int, calendar: Calendar) -> int:
        """The tokens that may be reserved of the quotas."""
        for scope in self.limited:
            if (left := scope.quota_left(calendar)) is not None and left < wanted_tokens:
                wanted_tokens = left
        return wanted_tokens

    def quota_remaining(self, calendar: Calendar) -> int | None:
        lefts = [left for scope in self.limited if (left := scope.quota_left(calendar)) is not None]
        return min(lefts) if lefts else None

    def states(self, now_ns: int) -> tuple[LimitState | None, LimitState | None]:
        """Of the requests and tokens per time, the limit that has least left."""
        requests = tokens = None
        for scope in self.limited:
            if scope.requests is not None:
                state = scope.requests.state(now_ns)
                if requests is None or state.remaining < requests.remaining:
                    requests = state
            if scope.tokens is not None:
                state = scope.tokens.state(now_ns)
                if tokens is None or state.remaining < tokens.remaining:
                    tokens = state
        return requests, tokens


class Account(Scope):
    __slots__ = ("_max_response_tokens", "_model_patterns", "_model_scopes", "_paths", "_sums", "key", "path",
                 "policy", "user")  # fmt: skip

    def __init__(self, balance: Balance) -> None:
        super().__init__("key", "of this API key")
        self.total_tokens = balance.charged_tokens
        # The rest of the balance: prompt, cached and completion tokens, requests, Unix milliseconds of the last one.
        # An array, since numbers of a million accounts that are objects each lie all over the memory.
        self._sums = array(
            "q",
            (
                balance.prompt_tokens,
                balance.cached_tokens,
                balance.completion_tokens,
                balance.requests,
                balance.last_used_ms,
            ),
        )
        #: What it was configured by; None: not yet.
        self.key: ApiKey | None = None
        self.policy: Policy | None = None
        self.user: Scope
        #: Of requests for models that have no limits of their own.
        self.path: Path
        self._max_response_tokens: int | None = None
        self._model_patterns: ModelPatterns | None = None
        # Pattern -> the limits of this key for what it matches. None while there are none.
        self._model_scopes: dict[str, tuple[Scope, LimitOverrides]] | None = None
        self._paths: dict[str, Path] | None = None

    def configure(
        self,
        key: ApiKey | None,
        policy: Policy,
        user: Scope,
        everybody: Scope,
        max_response_tokens: int | None,
        now_ns: int,
    ) -> None:
        """Takes the limits of its key; None: the key is gone, and only what it still runs is counted."""
        rules = key.rules if key is not None else NO_RULES
        overrides = rules.limits
        limits = UNLIMITED if key is None else overrides.over(policy.key_limits)
        self.apply(limits, key.quota if key else None, key.quota_period if key else None, now_ns)
        self.key, self.policy, self.user = key, policy, user
        own = overrides.max_response_tokens
        self._max_response_tokens = max_response_tokens if own is DEFAULT else own
        self._configure_models(rules, now_ns)
        self.path = _path((self, user, everybody), self._max_response_tokens)

    def _configure_models(self, rules: KeyRules, now_ns: int) -> None:
        before = self._model_scopes or {}
        if not rules.model_limits:
            self._model_scopes = self._paths = self._model_patterns = None
            return
        self._model_patterns = patterns_of(tuple(pattern for pattern, _ in rules.model_limits))
        self._model_scopes, self._paths = {}, {}
        for pattern, overrides in rules.model_limits:
            scope = (
                before[pattern][0]
                if pattern in before
                else Scope(f"model:{pattern}", f"of this API key for {pattern!r}")
            )
            scope.apply(overrides.over(UNLIMITED), None, None, now_ns)
            self._model_scopes[pattern] = scope, overrides

    def path_for(self, model: str) -> Path:
        if self._model_scopes is None:
            return self.path
        assert self._model_patterns is not None and self._paths is not None
        # A request that names no model gets one that the engine chooses: it counts for all of them.
        pattern = self._model_patterns.match(model) if model else ""
        if pattern is None:
            return self.path
        if (path := self._paths.get(pattern)) is None:
            rows = [self._model_scopes[pattern]] if pattern else list(self._model_scopes.values())
            caps = [self._max_response_tokens, *(limits.max_response_tokens for _, limits in rows)]
            path = self._paths[pattern] = _path(
                (*self.path.scopes, *(scope for scope, _ in rows)),
                min((cap for cap in caps if type(cap) is int), default=None),
            )
        return path

    def charge_usage(self, used: Usage, charged: int, requests: int, calendar: Calendar) -> None:
        """Adds to what the key has used. Differences may be negative."""
        sums = self._sums
        sums[0] += used.prompt
        sums[1] += used.cached
        sums[2] += used.completion
        sums[3] += requests
        sums[4] = calendar.now_ms
        self.charge(charged, calendar)

    def balance(self) -> Balance:
        prompt, cached, completion, requests, last_used_ms = self._sums
        return Balance(prompt, cached, completion, requests, self.total_tokens, last_used_ms)


def _path(scopes: tuple[Scope, ...], max_response_tokens: int | None) -> Path:
    return Path(scopes, tuple(scope for scope in scopes if scope.is_limited), max_response_tokens)

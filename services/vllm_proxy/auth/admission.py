"""The one decision point: who is admitted, and what the lease holds.

Everything is decided in memory, on one thread, so no limit can be raced past. Each decision returns the records
that the caller must make durable before it tells anybody.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator

from vllm_proxy.auth.account import Account, Path
from vllm_proxy.auth.accounts import Accounts, Holding
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.config import AuthConfig
from vllm_proxy.auth.decision import Ask, Decision, Standing
from vllm_proxy.auth.keys import ApiKey, KeyRing
from vllm_proxy.auth.lease import Lease, Operation
from vllm_proxy.auth.lease_book import LeaseBook
from vllm_proxy.auth.limiter import NS_PER_SECOND, Reservation
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.permission import not_allowed, too_many_response_tokens
from vllm_proxy.auth.prompt_estimate import PromptEstimates
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.refusal import Refusal
from vllm_proxy.auth.scope import Scope
from vllm_proxy.auth.store import LeaseOpened, Record, StoredState
from vllm_proxy.auth.wait_queue import Waiter, WaitQueue
from vllm_proxy.common.errors import InvalidApiKey

log = logging.getLogger(__name__)

_DEFAULT_PRIORITY = "normal"
#: How often what the prompt estimates learned is stored.
_STORE_RATIOS_NS = 30 * NS_PER_SECOND


class Admission:
    def __init__(self, config: AuthConfig, keys: KeyRing, metrics: AuthMetrics, clock: Clock) -> None:
        self._clock = clock
        self._metrics = metrics
        self._config = config
        self._calendar = Calendar(clock.unix_ms())
        self._estimates = PromptEstimates()
        self._ratios_stored_ns = clock.now_ns()
        self._accounts = Accounts(keys, config.policy, config.max_response_tokens, clock.now_ns())
        self._unknown_classes: set[str] = set()
        self._lease_prefix = secrets.token_hex(8)
        self._lease_numbers = itertools.count(1)
        self.keys = keys
        self.book = LeaseBook(
            self._accounts,
            self._estimates,
            metrics,
            clock,
            self._calendar,
            ttl_ns=config.lease_ttl_ns,
            grace_ns=config.settle_grace_ns,
            cached_weight_ppm=config.cached_weight_ppm,
        )
        self.waiting = WaitQueue(self._decide, metrics, clock, config.admission_queue_size)
        self.book.on_release = self.waiting.released
        metrics.leases.set_function(lambda: len(self.book))
        metrics.waiting.set_function(lambda: len(self.waiting))

    @property
    def lease_ttl_ms(self) -> int:
        return self.book.ttl_ns // 1_000_000

    def restore(self, state: StoredState) -> None:
        """Takes up where the store's last process ended. Call once, first."""
        self._accounts.restore(state, self._calendar)
        self.keys.lapse(self._clock.unix_ms())
        self._estimates.restore(state.ratios)
        self.book.restore(state)

    # Keys and limits

    def declare_keys(self, keys: Iterable[ApiKey]) -> None:
        """Replaces the keys of the declared file."""
        self.keys.declare(keys)
        self._keys_changed()

    def put_key(self, key: ApiKey) -> None:
        """Takes a key that the API made or changed; the caller makes it durable."""
        is_new = self.keys.of_account(key.digest) is None
        self.keys.put(key)
        if is_new:
            self._metrics.keys.set(len(self.keys))
        else:
            self._keys_changed()

    def remove_key(self, digest: bytes) -> None:
        """Takes away a key that the API made. What it runs goes on and settles."""
        self.keys.remove(digest)
        self._keys_changed()

    def _keys_changed(self) -> None:
        self._metrics.keys.set(len(self.keys))
        self.book.attach_new_scopes()
        self._limits_changed()

    def use_config(self, config: AuthConfig) -> None:
        """Takes what a changed configuration may change while requests run: the limits, and what is reserved, in which
        order and how long requests wait."""
        self._config = config
        self._unknown_classes.clear()
        if self._accounts.use_policy(config.policy, config.max_response_tokens, self._clock.now_ns()):
            self._limits_changed()

    def _limits_changed(self) -> None:
        self.waiting.changed()
        self.waiting.serve()

    def account_of(self, key: ApiKey) -> Account:
        return self._accounts.of_key(key, self._clock.now_ns())

    def holding_of(self, key: ApiKey) -> Holding:
        self._calendar.advance(self._clock.unix_ms())
        return self._accounts.holding_of(key, self._calendar, self._clock.now_ns())

    def standing_of(self, key: ApiKey) -> Standing:
        """A key's limits and what is left of them now, for requests that no limit for single models concerns."""
        now_ns = self._clock.now_ns()
        self._calendar.advance(self._clock.unix_ms())
        account = self._accounts.of_key(key, now_ns)
        path = account.path
        return Standing(
            account.limits, path.max_response_tokens, *path.states(now_ns), path.quota_remaining(self._calendar)
        )

    def leases(self) -> Iterator[tuple[Lease, int]]:
        """The open leases, each with its expiry in Unix milliseconds."""
        now_ns, now_ms = self._clock.now_ns(), self._clock.unix_ms()
        for lease in self.book:
            yield lease, now_ms + (lease.expires_ns - now_ns) // 1_000_000

    def tick(self) -> list[Record]:
        """What time alone decides. Call a few times a second."""
        self.keys.lapse(self._clock.unix_ms())
        records = self.book.tick()
        self.waiting.serve()
        now_ns = self._clock.now_ns()
        if now_ns - self._ratios_stored_ns >= _STORE_RATIOS_NS:
            self._ratios_stored_ns = now_ns
            records += self._estimates.changes()
        return records

    # Admissions

    def admit(self, ask: Ask) -> Decision:
        """Decides at once."""
        decision = self._decide(ask)
        self._count(ask, decision)
        return decision

    def admit_or_wait(self, ask: Ask, decided: Callable[[Decision], None]) -> Decision | Waiter:
        """Decides at once, or lets it wait for room; `decided` is called then, unless it is given up before with
        `waiting.cancel`."""
        crowded = self._crowded(ask) if len(self.waiting) else None
        decision = self._decide(ask, take=crowded is None)
        refusal = decision.refusal
        if refusal.may_wait if refusal is not None else crowded is not None:
            key = self.keys.find(ask.key_sha256)
            assert key is not None
            scope = crowded or (refusal.scope if refusal is not None else None)
            if (wait_ns := self._wait_ns(key)) and scope is not None:

                def last_word(decision: Decision) -> None:
                    self._count(ask, decision)
                    decided(decision)

                if waiter := self.waiting.add(ask, key.digest, scope, refusal, self._priority(key), wait_ns, last_word):
                    return waiter
            if refusal is None:
                # It may not wait, so it need not stand behind those who do.
                decision = self._decide(ask)
        self._count(ask, decision)
        return decision

    def _crowded(self, ask: Ask) -> Scope | None:
        """Where somebody waits whom this one must not pass."""
        key = self.keys.find(ask.key_sha256)
        if key is None or ask.operation is not Operation.INFERENCE:
            return None
        return self.waiting.crowded(self._accounts.of_key(key, self._clock.now_ns()).path_for(ask.model).limited)

    def _wait_ns(self, key: ApiKey) -> int:
        own = key.rules.admission_wait_ms
        wait_ms = self._config.admission_wait_ms if own is None else own
        return min(wait_ms, self._config.max_admission_wait_ms) * 1_000_000

    def _count(self, ask: Ask, decision: Decision) -> None:
        if decision.refusal is None:
            self._metrics.admissions["admitted", ""] += 1
        else:
            self._refused(ask, decision, decision.refusal)

    def _decide(self, ask: Ask, *, take: bool = True) -> Decision:
        """Admits, or says why not. Without `take` it only looks whether it would."""
        key = self.keys.find(ask.key_sha256)
        if key is None:
            return Decision(Refusal(InvalidApiKey.reason, InvalidApiKey.default_message))
        decision = Decision(key_id=key.key_id, user=key.user)
        now_ms = self._clock.unix_ms()
        decision.refusal = not_allowed(key, ask, now_ms)
        if decision.refusal is not None:
            return decision
        if ask.operation is not Operation.INFERENCE:
            decision.models = key.rules.models
            return decision
        now_ns = self._clock.now_ns()
        calendar = self._calendar
        calendar.advance(now_ms)
        path = self._accounts.of_key(key, now_ns).path_for(ask.model)
        decision.max_response_tokens = cap = path.max_response_tokens
        choices = max(1, ask.choices)
        response = ask.response_tokens
        if response is None:
            response = choices * min(self._config.default_response_tokens, cap or self._config.default_response_tokens)
        elif cap is not None and response > cap * choices:
            decision.refusal = too_many_response_tokens(cap)
            return decision
        estimate = ask.prompt_tokens
        if ask.prompt_bytes:
            estimate += self._estimates.tokens(ask.model, ask.prompt_script, ask.prompt_bytes)
        wanted = estimate + response
        if path.limited:
            decision.refusal = path.refusal(estimate + min(choices, response), wanted, now_ns, calendar)
        if decision.refusal is None and take:
            self._grant(ask, key, path, estimate, wanted, decision, now_ns)
            if decision.reserved_tokens < wanted and response:
                # The rest of a quota: no more than that may be answered.
                rest = (decision.reserved_tokens - estimate) // choices
                decision.max_response_tokens = rest if cap is None else min(rest, cap)
        if path.limited:
            decision.requests, decision.tokens = path.states(now_ns)
            decision.quota_remaining = path.quota_remaining(calendar)
        return decision

    def _grant(
        self, ask: Ask, key: ApiKey, path: Path, estimate: int, wanted: int, decision: Decision, now_ns: int
    ) -> None:
        reserved = wanted
        reservations: tuple[Reservation, ...] = ()
        if path.limited:
            reserved = path.room(wanted, self._calendar)
            for scope in path.limited:
                if (reservation := scope.spend(wanted, now_ns)) is not None:
                    reservations += (reservation,)
        for scope in path.scopes:
            scope.running += 1
            scope.reserved_tokens += reserved
        lease_id = f"{self._lease_prefix}-{next(self._lease_numbers):x}"
        decision.lease_id, decision.reserved_tokens = lease_id, reserved
        decision.priority = self._priority(key)
        decision.record = record = LeaseOpened(
            lease_id, key.digest, ask.owner_id, ask.request_id, ask.model, reserved, self._calendar.now_ms, key.user
        )
        lease = Lease(
            *record,
            expires_ns=now_ns + self.book.ttl_ns,
            scopes=path.scopes,
            reservations=reservations,
        )
        # Beside other things (images), a prompt's count says nothing about its text.
        if ask.prompt_bytes and not ask.prompt_tokens:
            lease.prompt_bytes, lease.prompt_script = ask.prompt_bytes, ask.prompt_script
            lease.prompt_estimate = estimate
        self.book.add(lease)

    def _priority(self, key: ApiKey) -> int:
        priority = key.rules.priority
        if isinstance(priority, int):
            return priority
        number = self._config.priority_classes.get(priority or _DEFAULT_PRIORITY)
        if number is None:
            if priority not in self._unknown_classes:
                self._unknown_classes.add(priority or "")
                log.warning("a key names a priority class that is not configured", extra={"detail": priority})
            return self._config.priority_classes[_DEFAULT_PRIORITY]
        return number

    def _refused(self, ask: Ask, decision: Decision, refusal: Refusal) -> None:
        self._metrics.admissions[refusal.reason.lower(), refusal.limit_name] += 1
        log.info(
            "refused",
            extra={
                "request_id": ask.request_id,
                "key_id": decision.key_id,
                "user": decision.user,
                "model": ask.model,
                "reason": refusal.reason,
                "limit": refusal.limit_name,
                "scope": refusal.scope.name if refusal.scope is not None else "",
                "detail": refusal.message,
            },
        )

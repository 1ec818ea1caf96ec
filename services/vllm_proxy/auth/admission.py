"""The one decision point: who is admitted, what a lease holds, what is charged.

Everything is decided in memory, on one thread, so no limit can be raced past. Each decision returns the records
that the caller must make durable before it tells anybody.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Iterable, Iterator

from vllm_proxy.auth.account import Account, Refusal
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.closed_leases import ClosedLeases, outranks
from vllm_proxy.auth.config import AuthConfig
from vllm_proxy.auth.decision import Ask, Decision, Verdict
from vllm_proxy.auth.keys import ApiKey, KeyRing, key_id_of
from vllm_proxy.auth.lease import ClosedLease, Lease, Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.limits import Limits
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.store import Balance, LeaseOpened, LeaseReported, LedgerEntry, Record, StoredState
from vllm_proxy.common.errors import InvalidApiKey, InvalidRequest, KeyDisabled, PermissionDenied
from vllm_proxy.common.logging import log_fields

log = logging.getLogger(__name__)

#: How long an owner may be away (a reconnect) before a host's count of its leases is taken.
OWNER_GRACE_NS = 2 * NS_PER_SECOND


class Admission:
    def __init__(self, config: AuthConfig, keys: KeyRing, metrics: AuthMetrics, clock: Clock) -> None:
        self._clock = clock
        self._metrics = metrics
        self._limits = config.limits
        self._default_response_tokens = config.default_response_tokens
        self._cached_weight_ppm = config.cached_weight_ppm
        self._ttl_ns = config.lease_ttl_ns
        self._limits_since_ns = clock.now_ns()
        self._accounts: dict[bytes, Account] = {}
        # Of keys that were not asked for yet.
        self._balances: dict[bytes, Balance] = {}
        # Ordered by expiry: every opening and renewal puts a lease last.
        self._open: dict[str, Lease] = {}
        self._closed = ClosedLeases(config.settle_grace_ns)
        self._sessions: dict[str, int] = {}
        # Owners without a session, until their grace is over.
        self._away: dict[str, int] = {}
        self._lease_prefix = secrets.token_hex(8)
        self._lease_numbers = itertools.count(1)
        self.keys = keys
        metrics.leases.set_function(lambda: len(self._open))

    @property
    def lease_ttl_ms(self) -> int:
        return self._ttl_ns // 1_000_000

    def restore(self, state: StoredState) -> None:
        """Takes up where the store's last process ended: balances, open leases (good for another ttl), the recent
        settlements, and with them what was used of the tokens per minute. Call once, first."""
        now_ns, now_ms = self._clock.now_ns(), self._clock.unix_ms()
        self._balances = state.balances
        for opened in state.leases:
            lease = Lease(*opened, expires_ns=now_ns + self._ttl_ns)
            account = self._account(lease.account, now_ns)
            account.running += 1
            account.reserved_tokens += lease.reserved_tokens
            self._open[lease.lease_id] = lease
            self._away[lease.owner_id] = now_ns + OWNER_GRACE_NS
        for report in state.reports:
            if (held := self._open.get(report.lease_id)) is not None:
                held.report = _settlement_of(report)
        self._closed.restore(state.recent, now_ns, now_ms)
        spent = [
            *((lease.opened_at_ms, lease.account, lease.reserved_tokens, lease) for lease in self._open.values()),
            *((row.settled_at_ms, row.account, max(0, row.charged_tokens), None) for row in state.recent),
        ]
        for at_ms, digest, tokens, holder in sorted(spent, key=lambda event: event[0]):
            at_ns = now_ns - max(0, now_ms - at_ms) * 1_000_000
            account = self._account(digest, now_ns)
            reservation = account.spend_again(tokens, at_ns, still_open=holder is not None)
            if holder is not None:
                holder.reservation = reservation

    # Keys and limits

    def declare_keys(self, keys: Iterable[ApiKey]) -> None:
        """Replaces the keys of the declared file."""
        self.keys.declare(keys)
        self._metrics.keys.set(len(self.keys))

    def put_key(self, key: ApiKey) -> None:
        """Takes a key that the API made or changed; the caller makes it durable."""
        self.keys.put(key)
        self._metrics.keys.set(len(self.keys))

    def remove_key(self, digest: bytes) -> None:
        """Takes away a key that the API made. What it runs goes on and settles."""
        self.keys.remove(digest)
        self._metrics.keys.set(len(self.keys))

    def use_limits(self, limits: Limits) -> None:
        if limits == self._limits:
            return
        # Each account takes them when it is next asked for.
        self._limits, self._limits_since_ns = limits, self._clock.now_ns()

    def account_of(self, key: ApiKey) -> Account:
        return self._account(key.digest, self._clock.now_ns())

    def leases(self) -> Iterator[tuple[Lease, int]]:
        """The open leases, each with its expiry in Unix milliseconds."""
        now_ns, now_ms = self._clock.now_ns(), self._clock.unix_ms()
        for lease in self._open.values():
            yield lease, now_ms + (lease.expires_ns - now_ns) // 1_000_000

    # Admissions

    def admit(self, ask: Ask) -> Decision:
        key = self.keys.find(ask.key_sha256)
        if key is None:
            return self._refused(ask, Decision(Refusal(InvalidApiKey.reason, InvalidApiKey.default_message)))
        decision = Decision(key_id=key.key_id, user=key.user)
        decision.refusal = _not_allowed(key, ask)
        if decision.refusal is not None:
            return self._refused(ask, decision)
        if ask.operation is not Operation.INFERENCE:
            self._metrics.admissions["admitted", ""] += 1
            return decision
        now_ns = self._clock.now_ns()
        account = self._account(key.digest, now_ns)
        response = ask.response_tokens
        if response is None:
            response = self._default_response_tokens * max(1, ask.choices)
        wanted = ask.prompt_tokens + response
        decision.refusal = account.refusal(key, ask.prompt_tokens, wanted, now_ns)
        if decision.refusal is None:
            self._grant(ask, key, account, wanted, decision, now_ns)
        if account.requests is not None:
            decision.requests = account.requests.state(now_ns)
        if account.tokens is not None:
            decision.tokens = account.tokens.state(now_ns)
        decision.quota_remaining = account.quota_remaining(key)
        return decision if decision.refusal is None else self._refused(ask, decision)

    def _grant(self, ask: Ask, key: ApiKey, account: Account, wanted: int, decision: Decision, now_ns: int) -> None:
        reserved, reservation = account.take(key, wanted, now_ns)
        lease_id = f"{self._lease_prefix}-{next(self._lease_numbers):x}"
        decision.lease_id, decision.reserved_tokens = lease_id, reserved
        decision.record = LeaseOpened(
            lease_id,
            key.digest,
            ask.owner_id,
            ask.request_id,
            ask.model,
            reserved,
            self._clock.unix_ms(),
            key.user,
        )
        self._open[lease_id] = Lease(*decision.record, expires_ns=now_ns + self._ttl_ns, reservation=reservation)
        self._metrics.admissions["admitted", ""] += 1

    def _refused(self, ask: Ask, decision: Decision) -> Decision:
        refusal = decision.refusal
        assert refusal is not None
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
                "retry_after_ms": None if refusal.retry_after_ns is None else refusal.retry_after_ns // 1_000_000,
                "detail": refusal.message,
            },
        )
        return decision

    # Owners

    def owner_connected(self, owner_id: str) -> None:
        self._sessions[owner_id] = self._sessions.get(owner_id, 0) + 1
        self._away.pop(owner_id, None)

    def owner_disconnected(self, owner_id: str) -> None:
        """Its leases live on until they expire; hosts' counts of them are taken once its grace is over."""
        self._sessions[owner_id] -= 1
        if not self._sessions[owner_id]:
            del self._sessions[owner_id]
            self._away[owner_id] = self._clock.now_ns() + OWNER_GRACE_NS

    def renew(self, owner_id: str, lease_ids: Iterable[str]) -> None:
        """Moves the expiry of the owner's own leases to now + ttl; passes over others."""
        expires_ns = self._clock.now_ns() + self._ttl_ns
        for lease_id in lease_ids:
            lease = self._open.get(lease_id)
            if lease is not None and lease.owner_id == owner_id:
                del self._open[lease_id]
                lease.expires_ns = expires_ns
                self._open[lease_id] = lease

    # Settlements

    def settle(self, given: Settlement) -> Verdict:
        lease = self._open.get(given.lease_id)
        if lease is None:
            return self._correct(given)
        report = lease.report
        if given.source is Source.HOST:
            if report is not None and given.attempt < report.attempt:
                return Verdict(False)
            if lease.owner_id in self._sessions or lease.owner_id in self._away:
                lease.report = given
                return Verdict(True, [_report_of(given)])
        elif report is not None and report.attempt >= given.attempt:
            # The engine host counted the same try: its count is the truth, the edge's a copy of it at best.
            given = report
        return Verdict(True, [self._close(lease, given)])

    def tick(self) -> list[Record]:
        """What time alone decides: leases that lapse, owners that do not come back. Call a few times a second."""
        now_ns = self._clock.now_ns()
        lapsed = list(itertools.takewhile(lambda lease: lease.expires_ns <= now_ns, self._open.values()))
        records: list[Record] = [self._close(lease, lease.report or _nothing(lease)) for lease in lapsed]
        gone = {owner_id for owner_id, until_ns in self._away.items() if until_ns <= now_ns}
        if gone:
            for owner_id in gone:
                del self._away[owner_id]
            reported = [lease for lease in self._open.values() if lease.report and lease.owner_id in gone]
            records += [self._close(lease, lease.report) for lease in reported if lease.report]
        self._closed.forget(now_ns)
        return records

    def _close(self, lease: Lease, by: Settlement) -> LedgerEntry:
        now_ns = self._clock.now_ns()
        del self._open[lease.lease_id]
        account = self._account(lease.account, now_ns)
        charged = by.usage.charged(self._cached_weight_ppm)
        account.release(lease.reserved_tokens, lease.reservation, charged, now_ns)
        requests = 1 if by.attempt else 0
        at_ms = self._clock.unix_ms()
        account.charge(by.usage, charged, requests, at_ms)
        self._closed.add(lease, by, charged, now_ns)
        metrics = self._metrics
        metrics.settlements["settled" if requests else "lapsed"] += 1
        metrics.prompt_tokens += by.usage.prompt
        metrics.completion_tokens += by.usage.completion
        return self._entry(by, lease, by.usage, charged, requests, at_ms)

    def _correct(self, given: Settlement) -> Verdict:
        """A settlement of a lease that is closed already: a later try, the host's own count, or the first word on
        one that lapsed."""
        closed = self._closed.get(given.lease_id)
        if closed is None:
            self._metrics.settlements["unknown"] += 1
            return Verdict(False)
        if not outranks(given, closed):
            self._metrics.settlements["repeated"] += 1
            return Verdict(given.attempt == closed.attempt and given.source is closed.source)
        now_ns = self._clock.now_ns()
        difference = Usage(*(new - old for new, old in zip(given.usage, closed.usage, strict=True)))
        account = self._account(closed.account, now_ns)
        requests = 0 if closed.attempt else 1
        charged = given.usage.charged(self._cached_weight_ppm)
        more = charged - closed.charged
        at_ms = self._clock.unix_ms()
        account.charge(difference, more, requests, at_ms)
        if account.tokens is not None and more > 0:
            account.tokens.add(more, now_ns)
        closed.attempt, closed.source, closed.usage, closed.charged = (
            given.attempt,
            given.source,
            given.usage,
            charged,
        )
        self._metrics.settlements["corrected"] += 1
        return Verdict(True, [self._entry(given, closed, difference, more, requests, at_ms)])

    def _entry(
        self, by: Settlement, of: Lease | ClosedLease, usage: Usage, charged: int, requests: int, at_ms: int
    ) -> LedgerEntry:
        closes = type(of) is Lease
        if log.isEnabledFor(logging.INFO):
            log_fields(
                log,
                "settled" if closes else "corrected",
                {
                    "request_id": of.request_id,
                    "lease_id": by.lease_id,
                    "key_id": key_id_of(of.account),
                    "user": of.user,
                    "model": by.model,
                    "host": by.host,
                    "reason": by.outcome.name if by.attempt else "LAPSED",
                    "source": by.source.name,
                    "attempt": by.attempt,
                    "prompt_tokens": usage.prompt,
                    "cached_tokens": usage.cached,
                    "completion_tokens": usage.completion,
                    "charged_tokens": charged,
                },
            )
        return LedgerEntry(
            by.lease_id, of.account, of.user, of.request_id, by.model, by.host, by.attempt, by.source, by.outcome,
            usage.prompt, usage.cached, usage.completion, requests, closes, at_ms, charged, by.base_model,
        )  # fmt: skip

    def _account(self, digest: bytes, now_ns: int) -> Account:
        account = self._accounts.get(digest)
        if account is None:
            balance = self._balances.pop(digest, None) or Balance()
            account = self._accounts[digest] = Account(self._limits, balance, now_ns)
        elif account.limits is not self._limits:
            account.apply(self._limits, self._limits_since_ns)
        return account


def _not_allowed(key: ApiKey, ask: Ask) -> Refusal | None:
    if not key.enabled:
        return Refusal(KeyDisabled.reason, KeyDisabled.default_message)
    if key.is_default and not ask.client_is_local:
        return Refusal(
            InvalidApiKey.reason, "The published default API key is accepted from the gateway's own machine only."
        )
    if ask.operation is Operation.ADMIN and not key.is_admin:
        return Refusal(PermissionDenied.reason, "This needs an API key of the user admin.")
    if ask.operation is Operation.UNSPECIFIED:
        return Refusal(InvalidRequest.reason, "The operation is not set.")
    return None


def _nothing(lease: Lease) -> Settlement:
    return Settlement(lease.lease_id, 0, Source.NOBODY, Outcome.UNSPECIFIED, Usage(), lease.model)


def _report_of(given: Settlement) -> LeaseReported:
    return LeaseReported(
        given.lease_id, given.attempt, given.outcome, *given.usage, given.model, given.host, given.base_model
    )


def _settlement_of(report: LeaseReported) -> Settlement:
    usage = Usage(report.prompt_tokens, report.cached_tokens, report.completion_tokens)
    return Settlement(
        report.lease_id,
        report.attempt,
        Source.HOST,
        Outcome(report.outcome),
        usage,
        report.model,
        report.host,
        report.base_model,
    )

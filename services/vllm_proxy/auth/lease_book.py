"""The open leases and those that closed lately: who may settle them, when they lapse, what is charged.

docs/ADMISSION.md has the rules. Every step returns the records that must be durable before anybody is told.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

from vllm_proxy.auth.accounts import Accounts
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.closed_leases import ClosedLeases, outranks
from vllm_proxy.auth.decision import Verdict
from vllm_proxy.auth.keys import key_id_of
from vllm_proxy.auth.lease import ClosedLease, Lease, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.owners import Owners
from vllm_proxy.auth.prompt_estimate import PromptEstimates
from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.scope import Scope
from vllm_proxy.auth.store import LeaseReported, LedgerEntry, Record, StoredState
from vllm_proxy.common.logging import log_fields

log = logging.getLogger("vllm_proxy.auth.admission")


class LeaseBook:
    def __init__(
        self,
        accounts: Accounts,
        estimates: PromptEstimates,
        metrics: AuthMetrics,
        clock: Clock,
        calendar: Calendar,
        *,
        ttl_ns: int,
        grace_ns: int,
        cached_weight_ppm: int,
    ) -> None:
        self._accounts = accounts
        self._estimates = estimates
        self._metrics = metrics
        self._clock = clock
        self._calendar = calendar
        self.ttl_ns = ttl_ns
        self._cached_weight_ppm = cached_weight_ppm
        # Ordered by expiry: every opening and renewal puts a lease last.
        self._open: dict[str, Lease] = {}
        self._closed = ClosedLeases(grace_ns)
        self.owners = Owners()
        #: Told which scopes have room again.
        self.on_release: Callable[[tuple[Scope, ...]], None] = lambda _: None

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._open.values())

    def add(self, lease: Lease) -> None:
        self._open[lease.lease_id] = lease

    def restore(self, state: StoredState) -> None:
        """Takes up where the store's last process ended: open leases (good for another ttl), the recent settlements,
        and with them what was used of the limits per time. Call once, first."""
        now_ns, now_ms = self._clock.now_ns(), self._clock.unix_ms()
        for opened in state.leases:
            lease = Lease(*opened, expires_ns=now_ns + self.ttl_ns)
            if not lease.user and (key := self._accounts.keys.of_account(lease.account)) is not None:
                lease.user = key.user
            account = self._accounts.of_digest(lease.account, lease.user, now_ns)
            lease.scopes = account.path_for(lease.model).scopes
            for scope in lease.scopes:
                scope.hold(lease.reserved_tokens)
            self._open[lease.lease_id] = lease
            self.owners.expect(lease.owner_id, now_ns)
        for report in state.reports:
            if (held := self._open.get(report.lease_id)) is not None:
                held.report = _settlement_of(report)
        self._closed.restore(state.recent, now_ns, now_ms)
        self._use_again(state.recent, now_ns, now_ms)

    def _use_again(self, recent: Iterable[LedgerEntry], now_ns: int, now_ms: int) -> None:
        """Counts what came before the restart in its limits per time, in the order of time."""
        events: list[tuple[int, tuple[Scope, ...], int | None, Lease | None]] = []
        for lease in self._open.values():
            events += [
                (lease.opened_at_ms, lease.scopes, None, None),
                (lease.opened_at_ms, lease.scopes, lease.reserved_tokens, lease),
            ]
        for row in recent:
            scopes = self._accounts.of_digest(row.account, row.user, now_ns).path_for(row.model).scopes
            if row.closes and row.opened_at_ms:
                events.append((row.opened_at_ms, scopes, None, None))
            if row.charged_tokens > 0:
                events.append((row.settled_at_ms, scopes, row.charged_tokens, None))
        for at_ms, scopes, tokens, holder in sorted(events, key=lambda event: event[0]):
            # Times are whole milliseconds: as late as it can have been.
            at_ns = now_ns - max(0, now_ms - at_ms - 1) * 1_000_000
            if tokens is None:
                for scope in scopes:
                    scope.start_again(at_ns)
                continue
            held = [scope.spend_again(tokens, at_ns, still_open=holder is not None) for scope in scopes]
            if holder is not None:
                holder.reservations = tuple(reservation for reservation in held if reservation is not None)

    def attach_new_scopes(self) -> None:
        """Lets limits for models that came while requests run count those that run."""
        now_ns = self._clock.now_ns()
        for lease in self._open.values():
            if (key := self._accounts.keys.of_account(lease.account)) is None or not key.rules.model_limits:
                continue
            for scope in self._accounts.of_key(key, now_ns).path_for(lease.model).scopes:
                # Whose the request was when it came stays.
                if scope not in lease.scopes and scope.name.startswith("model:"):
                    scope.hold(lease.reserved_tokens)
                    lease.scopes = (*lease.scopes, scope)

    # Owners and time

    def owner_connected(self, owner_id: str) -> None:
        self.owners.connected(owner_id)

    def owner_disconnected(self, owner_id: str) -> None:
        """Its leases live on until they expire; hosts' counts of them are taken once its grace is over."""
        self.owners.disconnected(owner_id, self._clock.now_ns())

    def renew(self, owner_id: str, lease_ids: Iterable[str]) -> None:
        """Moves the expiry of the owner's own leases to now + ttl; passes over others."""
        expires_ns = self._clock.now_ns() + self.ttl_ns
        for lease_id in lease_ids:
            lease = self._open.get(lease_id)
            if lease is not None and lease.owner_id == owner_id:
                del self._open[lease_id]
                lease.expires_ns = expires_ns
                self._open[lease_id] = lease

    def tick(self) -> list[Record]:
        """What time alone decides: leases that lapse, owners that do not come back. Call a few times a second."""
        now_ns = self._clock.now_ns()
        lapsed = list(itertools.takewhile(lambda lease: lease.expires_ns <= now_ns, self._open.values()))
        records: list[Record] = [self._close(lease, lease.report or _nothing(lease)) for lease in lapsed]
        if gone := self.owners.gone(now_ns):
            reported = [lease for lease in self._open.values() if lease.report and lease.owner_id in gone]
            records += [self._close(lease, lease.report) for lease in reported if lease.report]
        self._closed.forget(now_ns)
        return records

    # Settlements

    def settle(self, given: Settlement) -> Verdict:
        lease = self._open.get(given.lease_id)
        if lease is None:
            return self._correct(given)
        report = lease.report
        if given.source is Source.HOST:
            if report is not None and given.attempt < report.attempt:
                return Verdict(False)
            if self.owners.may_speak(lease.owner_id):
                lease.report = given
                return Verdict(True, [_report_of(given)])
        elif report is not None and report.attempt >= given.attempt:
            # The engine host counted the same try: its count is the truth, the edge's a copy of it at best.
            given = report
        return Verdict(True, [self._close(lease, given)])

    def _close(self, lease: Lease, by: Settlement) -> LedgerEntry:
        now_ns = self._clock.now_ns()
        calendar = self._calendar
        calendar.advance(self._clock.unix_ms())
        del self._open[lease.lease_id]
        usage = by.usage
        charged = usage.charged(self._cached_weight_ppm)
        reserved = lease.reserved_tokens
        for scope in lease.scopes:
            scope.running -= 1
            scope.reserved_tokens -= reserved
        for reservation in lease.reservations:
            reservation.settle(charged, now_ns)
        requests = 1 if by.attempt else 0
        self._charge(lease, usage, charged, requests, now_ns)
        self._closed.add(lease, by, charged, now_ns)
        self.on_release(lease.scopes)
        metrics = self._metrics
        metrics.settlements["settled" if requests else "lapsed"] += 1
        metrics.prompt_tokens += usage.prompt
        metrics.cached_tokens += usage.cached
        metrics.completion_tokens += usage.completion
        if lease.prompt_bytes and usage.prompt:
            self._estimates.learn(lease.model, lease.prompt_script, lease.prompt_bytes, usage.prompt)
            metrics.count_estimate(lease.prompt_estimate, usage.prompt)
        return self._entry(by, lease, usage, charged, requests, calendar.now_ms)

    def _charge(self, of: Lease | ClosedLease, usage: Usage, charged: int, requests: int, now_ns: int) -> None:
        account = self._accounts.of_digest(of.account, of.user, now_ns)
        account.charge_usage(usage, charged, requests, self._calendar)
        # Of before this process started, or of a key that has another user by now: whose it was pays.
        user = of.scopes[1] if of.scopes else self._accounts.user(of.user, now_ns)
        user.charge(charged, self._calendar)

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
        self._calendar.advance(self._clock.unix_ms())
        difference = Usage(*(new - old for new, old in zip(given.usage, closed.usage, strict=True)))
        charged = given.usage.charged(self._cached_weight_ppm)
        more = charged - closed.charged
        requests = 0 if closed.attempt else 1
        self._charge(closed, difference, more, requests, now_ns)
        if more > 0:
            account = self._accounts.of_digest(closed.account, closed.user, now_ns)
            for scope in closed.scopes or account.path_for(given.model).scopes:
                if scope.tokens is not None:
                    scope.tokens.add(more, now_ns)
        closed.attempt, closed.source = given.attempt, given.source
        closed.usage, closed.charged = given.usage, charged
        self._metrics.settlements["corrected"] += 1
        return Verdict(True, [self._entry(given, closed, difference, more, requests, self._calendar.now_ms)])

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
            of.opened_at_ms,
        )  # fmt: skip


def _nothing(lease: Lease) -> Settlement:
    return Settlement(lease.lease_id, 0, Source.NOBODY, Outcome.UNSPECIFIED, Usage(), lease.model)


def _report_of(given: Settlement) -> LeaseReported:
    return LeaseReported(
        given.lease_id, given.attempt, given.outcome, *given.usage, given.model, given.host, given.base_model
    )


def _settlement_of(report: LeaseReported) -> Settlement:
    usage = Usage(report.prompt_tokens, report.cached_tokens, report.completion_tokens)
    return Settlement(
        report.lease_id, report.attempt, Source.HOST, Outcome(report.outcome), usage, report.model, report.host,
        report.base_model,
    )  # fmt: skip

"""The leases that were settled lately: whether another count of one still changes what it was charged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from vllm_proxy.auth.lease import ClosedLease, Lease, Settlement, Source, Usage
from vllm_proxy.auth.store import LedgerEntry

#: Remembered at most; with more, the grace shrinks.
MAX_CLOSED = 100_000


class ClosedLeases:
    """Each is remembered for `grace_ns` after it closed."""

    def __init__(self, grace_ns: int) -> None:
        self._grace_ns = grace_ns
        # Ordered by closing.
        self._leases: dict[str, ClosedLease] = {}

    def get(self, lease_id: str) -> ClosedLease | None:
        return self._leases.get(lease_id)

    def add(self, lease: Lease, by: Settlement, charged: int, now_ns: int) -> None:
        self._leases[lease.lease_id] = ClosedLease(
            lease.account,
            lease.user,
            lease.request_id,
            lease.opened_at_ms,
            by.attempt,
            by.source,
            by.usage,
            charged,
            now_ns,
            lease.scopes,
        )

    def restore(self, entries: Iterable[LedgerEntry], now_ns: int, now_ms: int) -> None:
        """Rebuilds them from ledger rows, oldest first: of a lease the first row, then corrections (differences)."""
        for entry in entries:
            usage = Usage(entry.prompt_tokens, entry.cached_tokens, entry.completion_tokens)
            closed_ns = now_ns - max(0, now_ms - entry.settled_at_ms) * 1_000_000
            charged = entry.charged_tokens
            before = self._leases.get(entry.lease_id)
            if before is not None:
                charged += before.charged
                usage = Usage(*(a + b for a, b in zip(before.usage, usage, strict=True)))
                closed_ns = before.closed_ns
            self._leases[entry.lease_id] = ClosedLease(
                entry.account,
                entry.user,
                entry.request_id,
                entry.opened_at_ms,
                entry.attempt,
                Source(entry.source),
                usage,
                charged,
                closed_ns,
            )

    def forget(self, now_ns: int) -> None:
        """Lets go of those whose grace is over."""
        surplus = len(self._leases) - MAX_CLOSED
        until_ns = now_ns - self._grace_ns
        old = list(
            itertools.takewhile(
                lambda item: item[0] < surplus or item[1][1].closed_ns <= until_ns, enumerate(self._leases.items())
            )
        )
        for _, (lease_id, _) in old:
            del self._leases[lease_id]


def outranks(given: Settlement, closed: ClosedLease) -> bool:
    """Whether a count replaces the one that was charged: a later try does, and of the same try a host's."""
    if given.attempt != closed.attempt:
        return given.attempt > closed.attempt
    return given.source is Source.HOST and closed.source is not Source.HOST

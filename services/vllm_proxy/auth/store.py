"""What the admission needs of a store: the state at start, and an ordered, durable journal of what it decided.

Decisions are made in memory (`admission.py`) and journalled here; the caller answers a peer only after the records
behind that answer are durable. A store that cannot write must not be written past: it fails for good, the service
ends, and its next start continues from what is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class LeaseOpened(NamedTuple):
    lease_id: str
    account: bytes
    owner_id: str
    request_id: str
    model: str
    reserved_tokens: int
    opened_at_ms: int


class LeaseReported(NamedTuple):
    """A host's count that waits on an open lease."""

    lease_id: str
    attempt: int
    outcome: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    model: str
    host: str


class LedgerEntry(NamedTuple):
    """One row of the ledger. Its tokens are added to the balance: a correction's are differences and may be
    negative. `closes` ends the lease."""

    lease_id: str
    account: bytes
    user: str
    request_id: str
    model: str
    host: str
    attempt: int
    source: int
    outcome: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    requests: int
    closes: bool
    settled_at_ms: int

    @property
    def charged(self) -> int:
        return self.prompt_tokens + self.completion_tokens


Record = LeaseOpened | LeaseReported | LedgerEntry


@dataclass(slots=True)
class Balance:
    """What a key has used."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0

    @property
    def charged(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class StoredState:
    balances: dict[bytes, Balance] = field(default_factory=dict)
    leases: list[LeaseOpened] = field(default_factory=list)
    reports: list[LeaseReported] = field(default_factory=list)
    #: Ledger rows of the last while, oldest first.
    recent: list[LedgerEntry] = field(default_factory=list)


class Store(Protocol):
    #: Completes with the fault once the store can no longer write.
    failed: asyncio.Future[Exception]

    def load(self, recent_since_ms: int) -> StoredState:
        """Everything that a start needs; `recent` reaches back to that Unix time."""

    def append(self, records: Sequence[Record], durable: Callable[[], None]) -> None:
        """Queues records. `durable` is called on the event loop once these and all earlier ones are; never if the
        store failed. Never blocks on the disk."""

    async def close(self) -> None:
        """Returns when everything that was appended is durable."""

"""What the admission needs of a store: the state at start, and an ordered, durable journal of what it decided.

Decisions are made in memory (`admission.py`) and journalled here; the caller answers a peer only after the records
behind that answer are durable. A store that cannot write must not be written past: it fails for good, the service
ends, and its next start continues from what is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol


class LeaseOpened(NamedTuple):
    lease_id: str
    account: bytes
    owner_id: str
    request_id: str
    model: str
    reserved_tokens: int
    opened_at_ms: int
    user: str


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
    base_model: str = ""


class LedgerEntry(NamedTuple):
    """One row of the ledger. Its tokens are added to the balance: a correction's are differences and may be
    negative. `charged_tokens` counts cached prompt tokens at their weight. `closes` ends the lease."""

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
    charged_tokens: int
    #: The base behind `model`, or `model` itself; empty if it is not known.
    base_model: str = ""
    #: When the request was admitted; 0: an older version wrote the row.
    opened_at_ms: int = 0


class KeyStored(NamedTuple):
    """A key that the API made or changed, as `key_entry.entry_of` writes it. Replaces one of the same hash."""

    digest: bytes
    data_json: str
    created_at_ms: int
    created_by: str


class KeyRevoked(NamedTuple):
    """The key is no longer in force. Its row stays, for the names in usage and audit."""

    digest: bytes
    revoked_at_ms: int


class AuditEntry(NamedTuple):
    """Somebody administered something. `outcome`: `ok`, or the reason why it failed."""

    at_ms: int
    actor_key_id: str
    actor_user: str
    action: str
    target: str
    outcome: str
    detail: str
    source_address: str
    request_id: str


class AuditForgotten(NamedTuple):
    """Entries of before that time go."""

    before_ms: int


class RatioLearned(NamedTuple):
    """What the prompt estimate learned of a model and a script: `tokens` were counted in `size_bytes`."""

    model: str
    script: int
    tokens: float
    size_bytes: float


Record = LeaseOpened | LeaseReported | LedgerEntry | KeyStored | KeyRevoked | AuditEntry | AuditForgotten | RatioLearned


@dataclass(slots=True)
class Balance:
    """What a key or a user has used."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    charged_tokens: int = 0
    #: Unix milliseconds of the last settlement; 0: none.
    last_used_ms: int = 0


class PeriodUsage(NamedTuple):
    """Tokens that were charged to a key of a user since the calendar day and month began (UTC)."""

    account: bytes
    user: str
    day_tokens: int
    month_tokens: int


@dataclass(slots=True)
class StoredState:
    balances: dict[bytes, Balance] = field(default_factory=dict)
    user_balances: dict[str, Balance] = field(default_factory=dict)
    periods: list[PeriodUsage] = field(default_factory=list)
    leases: list[LeaseOpened] = field(default_factory=list)
    reports: list[LeaseReported] = field(default_factory=list)
    #: Ledger rows of the last while, oldest first.
    recent: list[LedgerEntry] = field(default_factory=list)
    #: Those that are not revoked.
    keys: list[KeyStored] = field(default_factory=list)
    ratios: list[RatioLearned] = field(default_factory=list)


class StoredKey(NamedTuple):
    """A key that the API made, revoked or not."""

    digest: bytes
    data_json: str
    created_at_ms: int
    created_by: str
    revoked_at_ms: int | None


class KeyQuery(NamedTuple):
    """A page of made keys by `created_at_ms`, then `digest`. `after`: those of the last key of the page before; of
    the digest the first bytes are enough."""

    max_rows: int
    after: tuple[int, bytes] | None = None
    user: str | None = None
    with_revoked: bool = False


class AuditQuery(NamedTuple):
    """A page of the audit log, the newest first. `before`: the number of the last entry of the page before. Filters
    that are empty are open; `actor` is a user or a key id, `action` may end in a dot and is then a beginning."""

    max_rows: int
    before: int | None = None
    actor: str = ""
    action: str = ""
    target: str = ""
    from_ms: int = 0
    until_ms: int | None = None


class NumberedAuditEntry(NamedTuple):
    """`number` grows with every entry."""

    number: int
    entry: AuditEntry


UsageColumn = Literal["hour", "day", "key", "user", "model", "base_model", "adapter"]


class UsageQuery(NamedTuple):
    """A page of the sums of settled usage over whole hours, `from_ms` included and `until_ms` not, in the order of
    their groups. Filters that are None are open."""

    from_ms: int
    until_ms: int
    group_by: tuple[UsageColumn, ...] = ()
    #: The first bytes of the key's account.
    account_prefix: bytes | None = None
    user: str | None = None
    model: str | None = None
    #: The groups of the last row of the page before: `start_ms` in units of its column, the account as bytes.
    after: tuple[int | str | bytes, ...] | None = None
    max_rows: int = 10_000


class UsageRow(NamedTuple):
    """One group; a column that is not grouped by is empty. Sums may be negative: a correction of what was settled in
    an earlier hour."""

    #: Of the hour or day.
    start_ms: int
    #: The first bytes, which make the key's id.
    account: bytes
    user: str
    #: Empty for requests that no model answered.
    model: str
    #: `model` itself unless that is an adapter.
    base_model: str
    #: Empty if `model` is none.
    adapter: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_tokens: int
    requests: int


class Store(Protocol):
    #: Completes with the fault once the store can no longer write.
    failed: asyncio.Future[Exception]
    #: Where it is, without secrets, for the log.
    place: str

    @property
    def accepting(self) -> bool:
        """Whether new requests may be admitted: what they reserve can be made durable, and nobody else decides."""

    def load(self, recent_since_ms: int, day_since_ms: int, month_since_ms: int) -> StoredState:
        """Everything that a start needs. `recent` reaches back to the first of these Unix times; the others are
        when the calendar day and month began."""

    def append(self, records: Sequence[Record], durable: Callable[[], None]) -> None:
        """Queues records. `durable` is called on the event loop once these and all earlier ones are; never if the
        store failed. Never blocks on the disk."""

    # Questions of people and tools. None holds up the journal for long; what was durable before the call is in the
    # answer. A store that cannot sum or filter by itself may do so over its rows in Python.

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """At a cost that grows with the hours and groups asked for, not with the ledger. Without groups one row."""

    async def stored_key(self, digest_prefix: bytes) -> StoredKey | None:
        """The made key whose hash begins so, revoked or not."""

    async def stored_keys(self, query: KeyQuery) -> list[StoredKey]:
        """At a cost that grows with the page, not with the keys before or after it."""

    async def audit(self, query: AuditQuery) -> list[NumberedAuditEntry]: ...

    async def close(self) -> None:
        """Returns when everything that was appended is durable."""


async def make_durable(store: Store, records: Sequence[Record]) -> None:
    """Appends records and waits until they are durable."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def durable() -> None:
        if not done.cancelled():
            done.set_result(None)

    store.append(records, durable)
    await done

"""What the auth tests share: a clock that stands still, a ring of keys, an admission without a store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.audit_log import AuditLog
from vllm_proxy.auth.config import AuthConfig
from vllm_proxy.auth.decision import Ask, Decision, Verdict
from vllm_proxy.auth.key_administration import KeyAdministration
from vllm_proxy.auth.keys import ApiKey, KeyRing, digest_of
from vllm_proxy.auth.lease import Operation, Outcome, Settlement, Source, Usage
from vllm_proxy.auth.limiter import NS_PER_SECOND
from vllm_proxy.auth.limits import Limits
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.policy import Policy
from vllm_proxy.auth.scope import UNLIMITED
from vllm_proxy.auth.servicer import AuthServicer
from vllm_proxy.auth.store import (
    AuditEntry,
    AuditQuery,
    KeyQuery,
    KeyRevoked,
    KeyStored,
    LedgerEntry,
    NumberedAuditEntry,
    Record,
    Store,
    StoredKey,
    StoredState,
    UsageQuery,
    UsageRow,
)
from vllm_proxy.auth.usage_sums import MS_PER_HOUR, HourRow, sum_usage

T = TypeVar("T")

TTL_S = 30
GRACE_S = 300
CONFIG = AuthConfig(
    address="unix:auth.sock",
    api_keys_file=Path("api_keys.json"),
    store_path=Path("auth.db"),
    full_sync=False,
    policy=Policy(),
    default_response_tokens=1024,
    max_response_tokens=None,
    priority_classes={"high": -10, "normal": 0, "low": 10},
    admission_wait_ms=0,
    max_admission_wait_ms=9500,
    admission_queue_size=10_000,
    lease_ttl_ns=TTL_S * NS_PER_SECOND,
    settle_grace_ns=GRACE_S * NS_PER_SECOND,
    cached_weight_ppm=1_000_000,
    ledger_retention_days=90,
    audit_retention_days=365,
    rotation_overlap_ms=86_400_000,
    metrics_port=None,
    drain_timeout_s=1.0,
)


class FakeClock:
    def __init__(self) -> None:
        self.ns = 1_000_000 * NS_PER_SECOND
        self.epoch_ms = 1_700_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def unix_ms(self) -> int:
        return self.epoch_ms + self.ns // 1_000_000

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * NS_PER_SECOND)


def api_key(name: str, *, user: str | None = None, **fields: Any) -> ApiKey:
    return ApiKey(digest_of(name), "", user or name, **fields)


class MemoryStore:
    """A store whose commits the test decides over."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.groups: list[list[Record]] = []
        self.held: list[Callable[[], None]] = []
        self.hold = False
        self.accepting = True
        self.place = "memory"
        self.key_queries: list[KeyQuery] = []

    def load(self, recent_since_ms: int, day_since_ms: int, month_since_ms: int) -> StoredState:
        return StoredState()

    def append(self, records: Sequence[Record], durable: Callable[[], None]) -> None:
        self.groups.append(list(records))
        self.held.append(durable)
        if not self.hold:
            self.release()

    def release(self) -> None:
        held, self.held = self.held, []
        for durable in held:
            asyncio.get_running_loop().call_soon(durable)

    # Questions, over what was appended.

    def records(self, kind: type[T]) -> list[T]:
        return [record for group in self.groups for record in group if isinstance(record, kind)]

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        return sum_usage([hour_row(entry) for entry in self.records(LedgerEntry)], query)

    async def stored_key(self, digest_prefix: bytes) -> StoredKey | None:
        return next((key for key in self._keys() if key.digest.startswith(digest_prefix)), None)

    async def stored_keys(self, query: KeyQuery) -> list[StoredKey]:
        self.key_queries.append(query)
        found = sorted(self._keys(), key=lambda key: (key.created_at_ms, key.digest))
        if query.after is not None:
            at_ms, prefix = query.after
            found = [key for key in found if (key.created_at_ms, key.digest[: len(prefix)]) > (at_ms, prefix)]
        if query.user is not None:
            found = [key for key in found if json.loads(key.data_json)["user"] == query.user]
        return [key for key in found if query.with_revoked or key.revoked_at_ms is None][: query.max_rows]

    def _keys(self) -> list[StoredKey]:
        revoked = {record.digest: record.revoked_at_ms for record in self.records(KeyRevoked)}
        stored = {record.digest: record for record in self.records(KeyStored)}
        return [StoredKey(*record, revoked.get(digest)) for digest, record in stored.items()]

    async def audit(self, query: AuditQuery) -> list[NumberedAuditEntry]:
        entries = [NumberedAuditEntry(*row) for row in enumerate(self.records(AuditEntry), start=1)]
        return [row for row in reversed(entries) if query.before is None or row.number < query.before][: query.max_rows]

    async def close(self) -> None:
        pass


def hour_row(entry: LedgerEntry) -> HourRow:
    """What a store keeps of a settlement in its sums by the hour."""
    known = entry.model if entry.prompt_tokens or entry.completion_tokens else ""
    return HourRow(
        entry.settled_at_ms // MS_PER_HOUR, entry.account, entry.user, known, entry.base_model, entry.prompt_tokens,
        entry.cached_tokens, entry.completion_tokens, entry.charged_tokens, entry.requests,
    )  # fmt: skip


def servicer_of(desk: Desk, store: Store, keys_file: Path) -> AuthServicer:
    config = desk.config
    audit = AuditLog(store, desk.clock, config.audit_retention_days)
    keys = KeyAdministration(desk.admission, store, audit, desk.clock, keys_file, config.rotation_overlap_ms)
    return AuthServicer(desk.admission, store, keys, audit, desk.clock, keys_file, desk.metrics)


class Desk:
    """An admission with a few keys, and short ways to ask it."""

    def __init__(
        self, *keys: ApiKey, limits: Limits = UNLIMITED, policy: Policy | None = None, config: AuthConfig = CONFIG
    ) -> None:
        self.clock = FakeClock()
        self.metrics = AuthMetrics(CollectorRegistry())
        self.key = keys[0] if keys else api_key("alice")
        self.ring = KeyRing(keys or [self.key])
        self.config = replace(config, policy=policy or Policy(limits))
        self.admission = Admission(self.config, self.ring, self.metrics, self.clock)

    def admit(
        self,
        key: ApiKey | None = None,
        *,
        prompt: int = 10,
        response: int | None = 90,
        choices: int = 1,
        owner: str = "edge-1",
        operation: Operation = Operation.INFERENCE,
        local: bool = False,
        model: str = "m",
    ) -> Decision:
        digest = (key or self.key).digest
        return self.admission.admit(Ask(digest, operation, owner, "req-1", model, prompt, response, choices, local))

    def limit(self, limits: Limits) -> None:
        """Changes the limits of each key."""
        self.use(Policy(limits))

    def use(self, policy: Policy) -> None:
        """Changes the limits of everybody."""
        self.admission.use_config(replace(self.config, policy=policy))

    def opened(self, key: ApiKey | None = None, **wishes: object) -> str:
        decision = self.admit(key, **wishes)  # type: ignore[arg-type]
        assert decision.refusal is None, decision.refusal
        return decision.lease_id

    def settle(
        self, lease_id: str, prompt: int = 10, completion: int = 5, *, source: Source = Source.EDGE, attempt: int = 1
    ) -> Verdict:
        usage = Usage(prompt, 0, completion)
        return self.admission.book.settle(Settlement(lease_id, attempt, source, Outcome.FINISHED, usage, "m", "h"))

    def account(self, key: ApiKey | None = None):
        return self.admission.account_of(key or self.key)

    def used(self, key: ApiKey | None = None) -> int:
        return self.account(key).balance().charged_tokens

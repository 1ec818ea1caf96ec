"""What a group of records changes in Redis, as one message for the append script.

    leases, reports       hashes by lease id, of what is open
    balances, users       hashes of sums, by account and by user
    hours:N               a hash of sums of the hour N since 1970, by account, user, model and base; `hours` lists them
    day:MS, month:MS      hashes of what was charged since then, by account and user; they expire
    ledger, audit         streams; a ledger entry is one batch's rows and stays as long as a start needs it
    keys, made, revoked   hashes by digest: a key's data, who made it when, when it was revoked
    ratios                a hash by model and script

A lease that opens and closes within one batch leaves only its ledger row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from vllm_proxy.auth.quota_period import Calendar
from vllm_proxy.auth.store import (
    AuditEntry,
    AuditForgotten,
    KeyRevoked,
    KeyStored,
    LeaseOpened,
    LeaseReported,
    LedgerEntry,
    RatioLearned,
    Record,
)
from vllm_proxy.auth.usage_sums import MS_PER_HOUR

#: The keys that the append script gets first.
_FIRST = ("fence", "progress", "generation")
_MS_PER_DAY = 24 * MS_PER_HOUR
#: How long after its last settlement the sums of a day and of a month stay.
_KEEP_DAY_MS, _KEEP_MONTH_MS = 3 * _MS_PER_DAY, 63 * _MS_PER_DAY

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder().decode

_Fields = dict[Any, msgspec.Raw | None]


class Keys:
    """The store's keys in Redis. The braces put all of them into one slot of a cluster."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __getitem__(self, name: str) -> str:
        return f"{{{self._prefix}}}:{name}"


class Batch:
    """Records of which each has changed something. `message` names keys by their place in `keys`, from 1."""

    def __init__(self, groups: Iterable[Sequence[Record]], keep_ledger_ms: int) -> None:
        self._keep_ledger_ms = keep_ledger_ms
        self._opened: set[str] = set()
        self._fields: dict[str, _Fields] = {}
        self._once: dict[str, _Fields] = {}
        self._sums: dict[str, dict[Any, list[int]]] = {}
        self._ledger: list[LedgerEntry] = []
        self._audit: list[AuditEntry] = []
        self._forget_audit_before_ms = 0
        for records in groups:
            for record in records:
                _ADD[type(record)](self, record)
        self.names: list[str] = list(_FIRST)
        self.message: bytes = pack(self._sections())

    def _sections(self) -> Sequence[Any]:
        sets, dels, once, sums = [], [], [], []
        rows: list[tuple[Any, ...]] = []
        for name, fields in self._fields.items():
            key = self._key(name)
            if kept := [part for field, value in fields.items() if value is not None for part in (_text(field), value)]:
                sets.append((key, kept))
            if gone := [_text(field) for field, value in fields.items() if value is None]:
                dels.append((key, gone))
        for name, fields in self._once.items():
            once.append((self._key(name), [part for field in fields for part in (_text(field), fields[field])]))
        for name, added in self._sums.items():
            kind = name.partition(":")[0]
            sum_of, keep_ms = _SUMS[kind]
            sums.append((self._key(name), sum_of, keep_ms, [_text(field) for field in added], list(added.values())))
        if self._ledger:
            rows.append((self._key("ledger"), self._keep_ledger_ms, _text(pack(self._ledger))))
        rows += [(self._key("audit"), 0, _text(pack(entry)), entry.at_ms) for entry in self._audit]
        trims = [(self._key("audit"), str(self._forget_audit_before_ms))] if self._forget_audit_before_ms > 0 else []
        return sets, dels, once, sums, rows, trims

    def _key(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name) + 1

    def _of(self, name: str) -> _Fields:
        return self._fields.setdefault(name, {})

    def _lease_opened(self, record: LeaseOpened) -> None:
        self._of("leases")[record.lease_id] = _text(pack(record))
        self._opened.add(record.lease_id)

    def _lease_reported(self, record: LeaseReported) -> None:
        self._of("reports")[record.lease_id] = _text(pack(record))

    def _settled(self, record: LedgerEntry) -> None:
        self._ledger.append(record)
        lease_id = record.lease_id
        if record.closes and lease_id in self._opened:
            self._of("leases").pop(lease_id)
            self._of("reports").pop(lease_id, None)
        elif record.closes:
            self._of("leases")[lease_id] = self._of("reports")[lease_id] = None
        prompt, cached, completion = record.prompt_tokens, record.cached_tokens, record.completion_tokens
        requests, charged, at_ms = record.requests, record.charged_tokens, record.settled_at_ms
        for name, who in (("balances", record.account), ("users", record.user)):
            held = self._sum(name, who, 6)
            held[0] += prompt
            held[1] += cached
            held[2] += completion
            held[3] += requests
            held[4] += charged
            held[5] = max(held[5], at_ms)
        hour = at_ms // MS_PER_HOUR
        self._of("hours")[str(hour)] = _EMPTY
        # A model that was asked for in vain may be any text: such requests share one name.
        model = record.model if prompt or completion else ""
        held = self._sum(f"hours:{hour}", pack((record.account, record.user, model, record.base_model)), 5)
        held[0] += prompt
        held[1] += cached
        held[2] += completion
        held[3] += charged
        held[4] += requests
        who = pack((record.account, record.user))
        for name in period_names(hour):
            self._sum(name, who, 1)[0] += charged

    def _key_stored(self, record: KeyStored) -> None:
        self._of("keys")[record.digest] = _text(record.data_json.encode())
        self._of("revoked")[record.digest] = None
        self._once.setdefault("made", {})[record.digest] = _text(pack((record.created_at_ms, record.created_by)))

    def _key_revoked(self, record: KeyRevoked) -> None:
        self._of("revoked")[record.digest] = _text(b"%d" % record.revoked_at_ms)

    def _audited(self, record: AuditEntry) -> None:
        self._audit.append(record)

    def _audit_forgotten(self, record: AuditForgotten) -> None:
        self._forget_audit_before_ms = max(self._forget_audit_before_ms, record.before_ms)

    def _ratio(self, record: RatioLearned) -> None:
        self._of("ratios")[pack((record.model, record.script))] = _text(pack(record))

    def _sum(self, name: str, field: Any, width: int) -> list[int]:
        fields = self._sums.get(name)
        if fields is None:
            fields = self._sums[name] = {}
        held = fields.get(field)
        if held is None:
            held = fields[field] = [0] * width
        return held


_ADD: dict[type, Any] = {
    LeaseOpened: Batch._lease_opened,
    LeaseReported: Batch._lease_reported,
    LedgerEntry: Batch._settled,
    KeyStored: Batch._key_stored,
    KeyRevoked: Batch._key_revoked,
    AuditEntry: Batch._audited,
    AuditForgotten: Batch._audit_forgotten,
    RatioLearned: Batch._ratio,
}
#: Hashes of sums by the beginning of their names: how many of a field's numbers are added (of the rest the greater
#: stays), and how long the hash is kept after its last change (0: for good).
_SUMS = {"balances": (5, 0), "users": (5, 0), "hours": (5, 0), "day": (1, _KEEP_DAY_MS), "month": (1, _KEEP_MONTH_MS)}


@functools.lru_cache(maxsize=64)
def period_names(hour: int) -> tuple[str, str]:
    """The hashes of the day and of the month that an hour belongs to."""
    calendar = Calendar(hour * MS_PER_HOUR)
    return f"day:{calendar.day_start_ms}", f"month:{calendar.month_start_ms}"


def _text(content: bytes | str) -> Any:
    """Bytes as a string of MessagePack: Redis' Lua reads no other kind, and takes any bytes in it."""
    if isinstance(content, str):
        return content
    return msgspec.Raw(b"\xdb" + len(content).to_bytes(4, "big") + content)


_EMPTY = _text(b"")

"""Makes, changes, rotates and revokes keys. Each change is in force at once, and durable, with its line in the audit
log, before it is answered. Keys of the declared file are read here, never changed."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.audit_log import Actor, AuditLog
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.key_entry import changed, entry_of, parse_entry, prefix_of
from vllm_proxy.auth.keys import ApiKey, KeySource, Rotation, digest_of, key_id_of
from vllm_proxy.auth.store import KeyQuery, KeyRevoked, KeyStored, Store, StoredKey, make_durable
from vllm_proxy.common.errors import InvalidRequest, KeyIsDeclared, KeyIsRevoked, KeyNotFound, ServiceError

#: 256 bits, 43 characters.
_SECRET_BYTES = 32
_KEY_ID_DIGITS = 12


class KeyRow(NamedTuple):
    """A key and what is known of it beside its rules."""

    key: ApiKey
    created_at_ms: int = 0
    created_by: str = ""
    revoked_at_ms: int | None = None


class DeclaredAfter(NamedTuple):
    """How many of the declared keys the pages before had."""

    keys: int


class MadeAfter(NamedTuple):
    """The last made key of the page before."""

    created_at_ms: int
    digest_prefix: bytes


Position = DeclaredAfter | MadeAfter


class KeyAdministration:
    def __init__(
        self,
        admission: Admission,
        store: Store,
        audit: AuditLog,
        clock: Clock,
        keys_file: Path,
        rotation_overlap_ms: int,
    ) -> None:
        self._admission = admission
        self._store = store
        self._audit = audit
        self._clock = clock
        self._keys_file = keys_file
        self._overlap_ms = rotation_overlap_ms

    async def create(self, fields: Mapping[str, Any], actor: Actor) -> tuple[KeyRow, str]:
        """A key with these fields of an entry (see key_entry) and its secret, which is kept nowhere.
        Raises InvalidRequest."""
        secret, digest = await self._new_secret()
        async with self._audited(actor, "key.create", ""):
            key = _parsed({**changed({}, fields), "key_sha256": digest.hex(), "prefix": prefix_of(secret)})
            row = KeyRow(key, self._clock.unix_ms(), actor.user)
            self._admission.put_key(key)
            entered = self._audit.entry(actor, "key.create", key.key_id, detail=f"user {key.user}")
            await make_durable(self._store, [_stored(row), entered])
            return row, secret

    async def get(self, key_id: str) -> KeyRow:
        """Raises KeyNotFound."""
        declared = self._admission.keys.declared_by_id(key_id)
        if declared is not None:
            return KeyRow(declared)
        stored = await self._store.stored_key(_prefix(key_id))
        if stored is None:
            raise KeyNotFound(f"There is no key {key_id}.")
        return self._row(stored)

    async def page(
        self, max_rows: int, after: Position, user: str | None, with_revoked: bool
    ) -> tuple[list[KeyRow], Position | None]:
        """Declared keys, then made ones from the oldest on; and where the next page begins, if there is one."""
        rows: list[KeyRow] = []
        if isinstance(after, DeclaredAfter):
            declared = (key for key in self._admission.keys.declared() if user in (None, key.user))
            rows = [KeyRow(key) for key in islice(declared, after.keys, after.keys + max_rows)]
            if len(rows) == max_rows:
                return rows, DeclaredAfter(after.keys + max_rows)
        last = after[:2] if isinstance(after, MadeAfter) else None
        # One more, to know whether there is another page.
        room = max_rows - len(rows)
        stored = await self._store.stored_keys(KeyQuery(room + 1, last, user, with_revoked))
        rows += [self._row(key) for key in stored[:room]]
        if len(stored) <= room:
            return rows, None
        last_key = stored[room - 1]
        return rows, MadeAfter(last_key.created_at_ms, _prefix(key_id_of(last_key.digest)))

    async def update(self, key_id: str, changes: Mapping[str, Any], actor: Actor) -> KeyRow:
        """Changes fields of its entry. Raises KeyNotFound, KeyIsDeclared, KeyIsRevoked, InvalidRequest."""
        async with self._audited(actor, "key.update", key_id):
            row = await self._changeable(key_id)
            if not changes:
                return row
            row = row._replace(key=_parsed(changed(entry_of(row.key), changes)))
            detail = ", ".join(sorted(changes))
            await self._change(row, self._audit.entry(actor, "key.update", key_id, detail=detail))
            return row

    async def rotate(self, key_id: str, overlap_ms: int | None, actor: Actor) -> tuple[KeyRow, str]:
        """Raises KeyNotFound, KeyIsDeclared, KeyIsRevoked."""
        async with self._audited(actor, "key.rotate", key_id):
            secret, digest = await self._new_secret()
            row = await self._changeable(key_id)
            key = row.key
            overlap_ms = self._overlap_ms if overlap_ms is None else overlap_ms
            old = key.rotation.secret if key.rotation is not None else key.digest
            expires_at_ms = self._clock.unix_ms() + overlap_ms if overlap_ms else 0
            rotated = replace(key, prefix=prefix_of(secret), rotation=Rotation(digest, old, expires_at_ms))
            row = row._replace(key=rotated)
            detail = f"old secret good for {overlap_ms / 1000:g} s"
            await self._change(row, self._audit.entry(actor, "key.rotate", key_id, detail=detail))
            return row, secret

    async def revoke(self, key_id: str, actor: Actor) -> KeyRow:
        """Also of a key that is revoked already. Raises KeyNotFound, KeyIsDeclared."""
        async with self._audited(actor, "key.revoke", key_id):
            try:
                row = await self._changeable(key_id)
            except KeyIsRevoked:
                return await self.get(key_id)
            now_ms = self._clock.unix_ms()
            self._admission.remove_key(row.key.digest)
            entered = self._audit.entry(actor, "key.revoke", key_id, detail=f"user {row.key.user}")
            await make_durable(self._store, [KeyRevoked(row.key.digest, now_ms), entered])
            return row._replace(revoked_at_ms=now_ms)

    async def _changeable(self, key_id: str) -> KeyRow:
        """The key as it is in force. What follows must change it before it lets go of the event loop."""
        if self._admission.keys.declared_by_id(key_id) is not None:
            raise KeyIsDeclared(
                f"The key {key_id} is declared in {self._keys_file}: change it there, then reload "
                "(POST /admin/reload-keys)."
            )
        row = await self.get(key_id)
        live = self._admission.keys.of_account(row.key.digest)
        if row.revoked_at_ms is not None or live is None:
            raise KeyIsRevoked(f"The key {key_id} is revoked for good; make another.")
        return row._replace(key=live)

    async def _change(self, row: KeyRow, entered: Any) -> None:
        self._admission.put_key(row.key)
        await make_durable(self._store, [_stored(row), entered])

    def _row(self, stored: StoredKey) -> KeyRow:
        # What is in force, since a change may be on its way to the disk.
        key = self._admission.keys.of_account(stored.digest) or parse_entry(json.loads(stored.data_json), KeySource.API)
        return KeyRow(key, stored.created_at_ms, stored.created_by, stored.revoked_at_ms)

    async def _new_secret(self) -> tuple[str, bytes]:
        """A secret whose key id nobody has."""
        while True:
            secret = f"sk-{secrets.token_urlsafe(_SECRET_BYTES)}"
            digest = digest_of(secret)
            key_id = key_id_of(digest)
            if self._admission.keys.declared_by_id(key_id) is None and not await self._store.stored_key(
                _prefix(key_id)
            ):
                return secret, digest

    @contextlib.asynccontextmanager
    async def _audited(self, actor: Actor, action: str, key_id: str) -> AsyncIterator[None]:
        """Enters a refusal; what succeeds enters itself, together with the change."""
        try:
            yield
        except ServiceError as e:
            await self._audit.failed(actor, action, key_id, e)
            raise


def _prefix(key_id: str) -> bytes:
    """The beginning of the hash that the id is made of. Raises KeyNotFound."""
    try:
        prefix = bytes.fromhex(key_id)
    except ValueError:
        prefix = b""
    if len(key_id) != _KEY_ID_DIGITS or not prefix:
        raise KeyNotFound(f"There is no key {key_id[:64]!r}: an id has {_KEY_ID_DIGITS} hexadecimal digits.")
    return prefix


def _parsed(entry: Mapping[str, Any]) -> ApiKey:
    """Raises InvalidRequest that names the field."""
    try:
        return parse_entry(entry, KeySource.API)
    except ValueError as e:
        message = str(e)
        field = message.split('"')[1] if message.startswith('"') else None
        raise InvalidRequest(message, metadata={"param": field} if field else None) from None


def _stored(row: KeyRow) -> KeyStored:
    return KeyStored(row.key.digest, json.dumps(entry_of(row.key)), row.created_at_ms, row.created_by)

"""AuthService's methods about keys and the audit log: protocol to domain and back."""

from __future__ import annotations

from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.audit_log import AuditLog
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.key_administration import KeyAdministration, KeyRow
from vllm_proxy.auth.key_wire import (
    actor_of,
    bad_token,
    changes_of,
    from_token,
    key_message,
    position_from,
    position_token,
    token_of,
)
from vllm_proxy.auth.store import AuditQuery, Store, make_durable
from vllm_proxy.auth.wire import STORE_AWAY
from vllm_proxy.common.errors import AuthUnavailable, InvalidRequest

DEFAULT_PAGE = 100
MAX_PAGE = 1000
#: A year.
MAX_OVERLAP_MS = 31_536_000_000


class KeyMethods:
    """Mixed into the servicer."""

    _admission: Admission
    _store: Store
    _clock: Clock
    _keys: KeyAdministration
    _audit: AuditLog

    def _message(self, row: KeyRow) -> pb.Key:
        return key_message(row, self._admission.holding_of(row.key), self._clock.unix_ms())

    def _must_accept(self) -> None:
        """A change that cannot be made durable now had better not be begun."""
        if not self._store.accepting:
            raise AuthUnavailable(STORE_AWAY)

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        self._must_accept()
        row, secret = await self._keys.create(changes_of(request.spec, ()), actor_of(request.actor, context))
        return pb.CreateKeyResponse(key=self._message(row), secret=secret)

    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:
        return pb.GetKeyResponse(key=self._message(await self._keys.get(request.key_id)))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        rows, after = await self._keys.page(
            page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE),
            position_from(request.page_token),
            request.user or None,
            request.show_revoked,
        )
        return pb.ListKeysResponse(keys=[self._message(row) for row in rows], next_page_token=position_token(after))

    async def UpdateKey(self, request: pb.UpdateKeyRequest, context: Any) -> pb.UpdateKeyResponse:
        self._must_accept()
        changes = changes_of(request.spec, request.update_mask.paths)
        row = await self._keys.update(request.key_id, changes, actor_of(request.actor, context))
        return pb.UpdateKeyResponse(key=self._message(row))

    async def DeleteKey(self, request: pb.DeleteKeyRequest, context: Any) -> pb.DeleteKeyResponse:
        self._must_accept()
        row = await self._keys.revoke(request.key_id, actor_of(request.actor, context))
        return pb.DeleteKeyResponse(key=self._message(row))

    async def RotateKey(self, request: pb.RotateKeyRequest, context: Any) -> pb.RotateKeyResponse:
        self._must_accept()
        overlap_ms = request.overlap_ms if request.HasField("overlap_ms") else None
        if overlap_ms is not None and overlap_ms > MAX_OVERLAP_MS:
            raise InvalidRequest("The overlap may be a year at most.", metadata={"param": "overlap_s"})
        row, secret = await self._keys.rotate(request.key_id, overlap_ms, actor_of(request.actor, context))
        return pb.RotateKeyResponse(key=self._message(row), secret=secret)

    async def RecordAction(self, request: pb.RecordActionRequest, context: Any) -> pb.RecordActionResponse:
        self._must_accept()
        if not request.action or not request.outcome:
            raise InvalidRequest("An action and its outcome must be named.")
        actor = actor_of(request.actor, context)
        entry = self._audit.entry(actor, request.action, request.target, request.outcome, request.detail)
        await make_durable(self._store, [entry])
        return pb.RecordActionResponse()

    async def ListAuditLog(self, request: pb.ListAuditLogRequest, context: Any) -> pb.ListAuditLogResponse:
        size = page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
        before = from_token(request.page_token) if request.page_token else None
        if before is not None and type(before) is not int:
            raise bad_token()
        found = await self._store.audit(
            AuditQuery(
                size + 1,
                before,
                request.actor,
                request.action,
                request.target,
                request.from_ms,
                request.to_ms or None,
            )
        )
        page = found[:size]
        return pb.ListAuditLogResponse(
            entries=[
                pb.AuditEntry(
                    at_ms=entry.at_ms,
                    actor=pb.Actor(
                        key_id=entry.actor_key_id,
                        user=entry.actor_user,
                        client_address=entry.source_address,
                        request_id=entry.request_id,
                    ),
                    action=entry.action,
                    target=entry.target,
                    outcome=entry.outcome,
                    detail=entry.detail,
                )
                for _, entry in page
            ],
            next_page_token=token_of(page[-1].number) if len(found) > size else "",
        )


def page_size(wanted: int, default: int, most: int) -> int:
    """Raises InvalidRequest for more than there may be."""
    if wanted > most:
        raise InvalidRequest(f"page_size may be {most} at most.", metadata={"param": "page_size"})
    return wanted or default

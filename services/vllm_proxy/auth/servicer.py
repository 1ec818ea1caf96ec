"""AuthService. The hot path is `session.py`; the unary forms are for people and tools."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.api.auth.v1 import auth_pb2_grpc
from vllm_proxy.auth.admission import Admission
from vllm_proxy.auth.audit_log import AuditLog
from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.key_administration import KeyAdministration
from vllm_proxy.auth.key_methods import KeyMethods
from vllm_proxy.auth.key_wire import actor_of
from vllm_proxy.auth.keys_file import UnreadableKeysFile, load_keys, warn_about_keys
from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.session import Session
from vllm_proxy.auth.session_trace import SessionTrace
from vllm_proxy.auth.store import Store, make_durable
from vllm_proxy.auth.usage_methods import UsageMethods
from vllm_proxy.auth.wire import STORE_AWAY, admit_response, ask_of, settlement_of
from vllm_proxy.common.errors import AuthUnavailable, InvalidRequest

if TYPE_CHECKING:
    from vllm_proxy.common.tracing.tracer import Tracer

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["AuthService"].full_name


class AuthServicer(KeyMethods, UsageMethods, auth_pb2_grpc.AuthServiceServicer):
    """Add to a gRPC server under SERVICE_NAME. `drain` before that server stops."""

    def __init__(
        self,
        admission: Admission,
        store: Store,
        keys: KeyAdministration,
        audit: AuditLog,
        clock: Clock,
        keys_file: Path,
        metrics: AuthMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._admission = admission
        self._store = store
        self._keys = keys
        self._audit = audit
        self._clock = clock
        self._keys_file = keys_file
        self._metrics = metrics
        self._tracer = tracer
        self._sessions: set[Session] = set()
        self._draining = False

    def drain(self) -> None:
        """Ends every session after what it has read is answered; peers dial again and find the next process."""
        self._draining = True
        for session in self._sessions:
            session.finish()

    async def Session(self, request_iterator: Any, context: Any) -> None:
        if self._draining:
            raise AuthUnavailable("The auth service is stopping.")
        trace = SessionTrace(self._tracer) if self._tracer is not None else None
        session = Session(self._admission, self._store, context, trace)
        self._sessions.add(session)
        self._metrics.sessions.inc()
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
            self._metrics.sessions.dec()

    async def Admit(self, request: pb.AdmitRequest, context: Any) -> pb.AdmitResponse:
        if not self._store.accepting:
            raise AuthUnavailable(STORE_AWAY)
        decision = self._admission.admit(ask_of(request, request.owner_id))
        if decision.record is not None:
            await make_durable(self._store, [decision.record])
        return admit_response(request.seq, decision)

    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleResponse:
        verdict = self._admission.book.settle(settlement_of(request))
        self._admission.waiting.serve()
        await make_durable(self._store, verdict.records)
        return pb.SettleResponse(seq=request.seq, applied=verdict.applied)

    async def ReloadKeys(self, request: pb.ReloadKeysRequest, context: Any) -> pb.ReloadKeysResponse:
        actor, target = actor_of(request.actor, context), str(self._keys_file)
        try:
            declared = await asyncio.to_thread(load_keys, self._keys_file)
        except UnreadableKeysFile as e:
            log.error("api keys not reloaded", extra={"detail": str(e)})
            error = InvalidRequest(str(e))
            await self._audit.failed(actor, "keys.reload", target, error)
            raise error from None
        warn_about_keys(self._keys_file, declared)
        self._admission.declare_keys(declared.keys)
        keys, skipped = len(self._admission.keys), len(declared.problems)
        log.info("api keys reloaded", extra={"keys": keys, "skipped": skipped})
        detail = f"{len(declared.keys)} keys, {skipped} entries skipped"
        await make_durable(self._store, [self._audit.entry(actor, "keys.reload", target, detail=detail)])
        return pb.ReloadKeysResponse(keys=keys, problems=declared.problems)

    async def ListLeases(self, request: pb.ListLeasesRequest, context: Any) -> pb.ListLeasesResponse:
        response = pb.ListLeasesResponse()
        for lease, expires_at_ms in self._admission.leases():
            response.leases.add(
                lease_id=lease.lease_id,
                key_id=lease.account.hex()[:12],
                owner_id=lease.owner_id,
                request_id=lease.request_id,
                reserved_tokens=lease.reserved_tokens,
                opened_at_ms=lease.opened_at_ms,
                expires_at_ms=expires_at_ms,
            )
        return response

"""Enters into the audit log what an admin route did by another service than auth, which enters its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

import grpc.aio
from fastapi import Request

from vllm_proxy.api.auth.v1 import auth_pb2, auth_pb2_grpc
from vllm_proxy.common.errors import InternalError, ServiceError
from vllm_proxy.edge.routes.authorization import actor_of

log = logging.getLogger(__name__)

OK = "ok"


class AuditTrail:
    def __init__(self, auth_service: auth_pb2_grpc.AuthServiceStub, timeout_s: float) -> None:
        self._auth_service = auth_service
        self._timeout_s = timeout_s

    @contextlib.asynccontextmanager
    async def action(self, request: Request, action: str, target: str, detail: str = "") -> AsyncIterator[None]:
        """Around what is done: enters how it ended, before the client hears of it."""
        try:
            yield
        except ServiceError as e:
            await self._enter(request, action, target, e.reason, e.message)
            raise
        except Exception:
            await self._enter(request, action, target, InternalError.reason, "")
            raise
        await self._enter(request, action, target, OK, detail)

    async def _enter(self, request: Request, action: str, target: str, outcome: str, detail: str) -> None:
        entry = auth_pb2.RecordActionRequest(
            actor=actor_of(request), action=action, target=target, outcome=outcome, detail=detail
        )
        try:
            await self._auth_service.RecordAction(entry, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as e:
            # It is done and cannot be undone: the log of this service has to tell of it.
            log.error(
                "action is not in the audit log",
                extra={
                    "action": action,
                    "target": target,
                    "outcome": outcome,
                    "key_id": entry.actor.key_id,
                    "user": entry.actor.user,
                    "client": entry.actor.client_address,
                    "request_id": entry.actor.request_id,
                    "detail": e.code().name,
                },
            )

"""The audit log: who administered what, and how it ended. Entries go through the store's journal and are never
changed; old ones are forgotten."""

from __future__ import annotations

import logging
from typing import NamedTuple

from vllm_proxy.auth.clock import Clock
from vllm_proxy.auth.store import AuditEntry, AuditForgotten, Record, Store, make_durable
from vllm_proxy.common.errors import ServiceError

log = logging.getLogger(__name__)

OK = "ok"
_MS_PER_DAY = 86_400_000
#: How often old entries are looked for.
_FORGET_EVERY_MS = 3_600_000
_MAX_TEXT = 512


class Actor(NamedTuple):
    """Who does something."""

    key_id: str
    user: str
    address: str
    request_id: str


class AuditLog:
    def __init__(self, store: Store, clock: Clock, retention_days: int) -> None:
        self._store = store
        self._clock = clock
        self._retention_ms = retention_days * _MS_PER_DAY
        self._forget_at_ms = 0

    def entry(self, actor: Actor, action: str, target: str, outcome: str = OK, detail: str = "") -> AuditEntry:
        """To be made durable together with what it tells of."""
        log.info(
            "administered",
            extra={
                "action": action,
                "target": target,
                "outcome": outcome,
                "key_id": actor.key_id,
                "user": actor.user,
                "client": actor.address,
                "request_id": actor.request_id,
            },
        )
        return AuditEntry(
            self._clock.unix_ms(),
            actor.key_id,
            actor.user,
            action,
            target[:_MAX_TEXT],
            outcome,
            detail[:_MAX_TEXT],
            actor.address,
            actor.request_id,
        )

    async def failed(self, actor: Actor, action: str, target: str, error: ServiceError) -> None:
        await make_durable(self._store, [self.entry(actor, action, target, error.reason, error.message)])

    def tick(self) -> list[Record]:
        """What is to be forgotten by now. Call a few times a second."""
        now_ms = self._clock.unix_ms()
        if now_ms < self._forget_at_ms:
            return []
        self._forget_at_ms = now_ms + _FORGET_EVERY_MS
        return [AuditForgotten(now_ms - self._retention_ms)]

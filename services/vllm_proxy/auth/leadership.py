"""Which of several auth replicas decides: a lease in Redis, fenced.

The leader renews its lease; who stands by takes it once it has run out or was given back. Nobody else's clock is
trusted: a leader counts from when it asked, and stops answering `MARGIN` of the lease before it could run out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from redis.exceptions import AuthenticationError, NoPermissionError

from vllm_proxy.auth.metrics import AuthMetrics
from vllm_proxy.auth.redis_batch import Keys
from vllm_proxy.auth.redis_scripts import ACQUIRE, RELEASE, RENEW
from vllm_proxy.auth.redis_url import FAULTS, Client, is_outage
from vllm_proxy.common.ids import new_incarnation
from vllm_proxy.common.settings import ConfigError

log = logging.getLogger(__name__)

#: The part of a lease at whose end its holder no longer trusts it.
MARGIN = 0.2
RENEWALS_PER_TTL = 4
#: How often who stands by looks, in seconds.
STANDBY_POLL_S = 0.2
#: A client that is being connected has it as the cause.
_NO_ENTRY = (AuthenticationError, NoPermissionError)


class Deposed(Exception):
    """Another replica leads."""


class DataLost(Exception):
    """Redis no longer has what it had."""


class Leadership:
    def __init__(
        self,
        client: Client,
        keys: Keys,
        ttl_s: float,
        metrics: AuthMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._keys = keys
        self._ttl_s = ttl_s
        self._clock = clock
        self._metrics = metrics
        self._holder = new_incarnation("auth")
        self._until = 0.0
        self.fence = ""
        self.generation = ""

    @property
    def holds(self) -> bool:
        """Whether nobody else can be leading now."""
        return self._clock() < self._until

    async def acquire(self) -> None:
        """Waits until this replica leads. Raises ConfigError if Redis does not let it in."""
        told, fresh = "", new_incarnation("store")
        keys = [self._keys[name] for name in ("leader", "epoch", "fence", "progress", "generation")]
        while True:
            asked_at = self._clock()
            try:
                held = await self._client.eval(ACQUIRE, len(keys), *keys, self._holder, self._ttl_ms, fresh)
            except FAULTS as e:
                refused = any(isinstance(fault, _NO_ENTRY) for fault in (e, e.__cause__))
                if refused or not is_outage(e):
                    raise ConfigError(f"auth.store: Redis refuses: {e}") from None
                said, pause_s = f"Redis cannot be reached: {type(e).__name__}", self._ttl_s / RENEWALS_PER_TTL
            else:
                if held:
                    break
                said, pause_s = "another replica leads", STANDBY_POLL_S
            if said != told:
                log.info("standing by", extra={"detail": said})
                told = said
            await asyncio.sleep(min(pause_s, STANDBY_POLL_S * 5))
        fence, generation = held
        self.fence, self.generation = fence.decode(), generation.decode()
        self._until = asked_at + self._ttl_s * (1 - MARGIN)
        self._metrics.leader.set(1)
        log.info("leading", extra={"fence": self.fence})
        if self.generation == fresh:
            log.warning("Redis was empty: nothing is known of earlier usage")

    async def keep(self) -> None:
        """Renews for good. Raises Deposed or DataLost; an outage of Redis only lets `holds` run out."""
        pause_s = self._ttl_s / RENEWALS_PER_TTL
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.renew()
            except FAULTS as e:
                log.warning("leadership not renewed", extra={"detail": type(e).__name__, "holds": self.holds})

    async def renew(self) -> None:
        asked_at = self._clock()
        keys = (self._keys["leader"], self._keys["fence"])
        kept = await self._client.eval(RENEW, 2, *keys, self._holder, self._ttl_ms, self.fence)
        if kept == 0:
            raise Deposed("another replica leads")
        if kept < 0:
            raise DataLost("it came back empty")
        self._until = asked_at + self._ttl_s * (1 - MARGIN)

    async def release(self) -> None:
        """Lets the next one lead at once."""
        self._until = 0.0
        self._metrics.leader.set(0)
        try:
            await self._client.eval(RELEASE, 1, self._keys["leader"], self._holder)
        except FAULTS as e:
            log.warning("leadership not given back; it runs out", extra={"detail": type(e).__name__})

    @property
    def _ttl_ms(self) -> int:
        return round(self._ttl_s * 1000)

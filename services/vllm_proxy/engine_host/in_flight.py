"""The requests that this host holds: whether it takes another, stopping them, waiting for them to end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.errors import EngineUnavailable, InternalError, NoCapacity, ServiceError
from vllm_proxy.engine_host.engines.base import UsageMeter

STARTING = "The engine is starting."
DRAINING = "The engine host is draining."
STOPPING = "The engine host is shutting down."
ABORTED = "The request was aborted by an operator."


class Running(Protocol):
    """A request, however it came."""

    @property
    def request_id(self) -> str: ...

    @property
    def meter(self) -> UsageMeter: ...

    def stop(self, outcome: auth_pb2.Outcome, error: ServiceError | None = None) -> None: ...


class InFlight:
    """Everything that runs. It begins closed; `open` lets requests in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: dict[int, Running] = {}
        self._refusal: Callable[[], ServiceError] | None = lambda: EngineUnavailable(STARTING)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._running)

    def completion_tokens(self) -> int:
        """What running requests have produced so far. Any thread may ask."""
        return sum(request.meter.completion_tokens for request in list(self._running.values()))

    def open(self) -> None:
        self._refusal = None

    def close(self, refusal: Callable[[], ServiceError] = lambda: EngineUnavailable(DRAINING)) -> None:
        """Takes no new requests: they are refused with what `refusal` makes. Running ones go on."""
        self._refusal = refusal

    def check(self) -> None:
        """Raises the reason why no request can be taken now: EngineUnavailable (it starts or stops), EngineFailed,
        NoCapacity."""
        if self._refusal is not None:
            raise self._refusal()
        if len(self._running) >= self._limit:
            raise NoCapacity(f"The engine host holds {self._limit} requests, which is its limit.", retry_after_s=1)

    def add(self, request: Running) -> None:
        """Raises as `check`."""
        self.check()
        self._running[id(request)] = request

    def remove(self, request: Running) -> None:
        """Without effect for a request that is not held."""
        if self._running.pop(id(request), None) is not None and not self._running:
            self._changed.set()

    def abort(self, request_id: str) -> int:
        """Stops every request of this id; returns how many there were."""
        named = [request for request in self._running.values() if request.request_id == request_id]
        for request in named:
            request.stop(auth_pb2.OUTCOME_CANCELLED, InternalError(ABORTED))
        return len(named)

    def stop_all(self, outcome: auth_pb2.Outcome, error: ServiceError) -> None:
        for request in list(self._running.values()):
            request.stop(outcome, error)

    async def wait_empty(self, timeout_s: float) -> int:
        """Waits until nothing runs, at most so long; returns how many still do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._running:
                    self._changed.clear()
                    await self._changed.wait()
        return len(self._running)

"""A running `Generate` call: typed generation, beside the OpenAI application."""

from __future__ import annotations

import asyncio
import secrets
import time

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.errors import EngineFailed, InternalError, ServiceError
from vllm_proxy.engine_host.engines.base import EngineDied, UsageMeter
from vllm_proxy.engine_host.request_record import RequestRecord


class GenerateCall:
    """The current task as a request in flight: stopping it cancels the task."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        #: Minted here: the engine must never see two requests of one id.
        self.engine_request_id = secrets.token_hex(16)
        self.meter = UsageMeter()
        self._task = asyncio.current_task()
        self._stopped_with: ServiceError | None = None
        self._started_at = time.monotonic()
        self._first_at: float | None = None

    def stop(self, outcome: auth_pb2.Outcome, error: ServiceError | None = None) -> None:
        if self._stopped_with is None and self._task is not None:
            self._stopped_with = error or InternalError()
            self._task.cancel()

    def produced(self) -> None:
        """Call for each delta."""
        if self._first_at is None:
            self._first_at = time.monotonic()

    def fault(self, error: BaseException) -> BaseException:
        """What the caller should get for an exception of the engine or of a cancellation."""
        if isinstance(error, EngineDied):
            return EngineFailed()
        if isinstance(error, asyncio.CancelledError) and self._stopped_with is not None and self._task is not None:
            self._task.uncancel()
            return self._stopped_with
        return error

    def record(self, model: str, fault: BaseException | None) -> RequestRecord:
        reason = fault.reason if isinstance(fault, ServiceError) else ""
        if fault is None:
            outcome = auth_pb2.OUTCOME_FINISHED
        elif isinstance(fault, asyncio.CancelledError) or self._stopped_with is not None:
            outcome = auth_pb2.OUTCOME_CANCELLED
        else:
            outcome = auth_pb2.OUTCOME_FAILED
            reason = reason or InternalError.reason
        return RequestRecord(
            request_id=self.request_id,
            engine_request_id=self.engine_request_id,
            key_id="",
            model=model,
            route="generate",
            status=0,
            outcome=outcome,
            reason=reason,
            meter=self.meter,
            ttft_s=None if self._first_at is None else self._first_at - self._started_at,
            duration_s=time.monotonic() - self._started_at,
            edge="tool",
        )

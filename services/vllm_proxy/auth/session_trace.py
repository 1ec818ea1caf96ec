"""One session's admissions and settlements that are traced: from the message that brought each to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm_proxy.api.auth.v1 import auth_pb2 as pb
from vllm_proxy.common.tracing.context import OpenSpan

if TYPE_CHECKING:
    from vllm_proxy.common.tracing.tracer import Tracer, Value


class SessionTrace:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        #: By `seq`.
        self._open: dict[int, OpenSpan] = {}

    def received(self, message: pb.SessionRequest) -> None:
        for frames in (message.admits, message.settles):
            for frame in frames:
                if frame.traceparent and (span := self._tracer.join(frame.traceparent)) is not None:
                    self._open[frame.seq] = span

    def answered(self, message: pb.SessionResponse) -> None:
        if not self._open:
            return
        for admit in message.admits:
            self._end(
                admit.seq,
                "admit",
                {
                    "vllm_proxy.key_id": admit.key_id,
                    "vllm_proxy.reason": admit.reason,
                    "vllm_proxy.limit": admit.limit_name,
                    "vllm_proxy.limit_scope": admit.limit_scope,
                    "vllm_proxy.lease_id": admit.lease_id,
                },
            )
        for settle in message.settles:
            self._end(settle.seq, "settle", {"vllm_proxy.applied": settle.applied})

    def _end(self, seq: int, name: str, attributes: Mapping[str, Value]) -> None:
        if (span := self._open.pop(seq, None)) is not None:
            self._tracer.end(span, name, "server", attributes)

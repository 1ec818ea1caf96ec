"""ServiceError <-> google.rpc.Status with ErrorInfo and RetryInfo."""

from __future__ import annotations

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from vllm_proxy.common.errors import EngineUnavailable, RequestTimeout, ServiceError, from_reason

DOMAIN = "vllm-proxy"


def to_status(error: ServiceError) -> status_pb2.Status:
    details = []
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details.append(_pack(info))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = code_pb2.Code.Value(error.grpc_code.name)
    return status_pb2.Status(code=code, message=error.message, details=details)


def from_rpc_error(error: grpc.RpcError, unreachable: type[ServiceError] = EngineUnavailable) -> ServiceError:
    """The error that a peer raised, rebuilt from its reason. `unreachable` is raised for a peer that cannot be
    asked at all."""
    status = rpc_status.from_call(error) if hasattr(error, "trailing_metadata") and error.trailing_metadata() else None
    if status is not None:
        reason, metadata, retry_after_s = "", {}, None
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        if reason:
            return from_reason(reason, status.message, retry_after_s=retry_after_s, metadata=metadata)
    code = error.code() if hasattr(error, "code") else None
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return RequestTimeout()
    return unreachable()


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed

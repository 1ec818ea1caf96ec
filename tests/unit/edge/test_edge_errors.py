"""Every error as HTTP."""

from __future__ import annotations

import json

import grpc
import pytest

from vllm_proxy.common.engine_routes import ErrorShape
from vllm_proxy.common.errors import (
    EngineFailed,
    EngineUnavailable,
    InvalidApiKey,
    ModelNotFound,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    RequestTooLarge,
    ServiceError,
    UnprocessableRequest,
    subclasses,
)
from vllm_proxy.common.rpc.status import from_rpc_error, to_status
from vllm_proxy.edge.admission import duration
from vllm_proxy.edge.errors import error_event, error_response

ALL = sorted(subclasses(), key=lambda cls: cls.__name__)


class Failure(grpc.RpcError):
    """An RpcError as grpc raises it, with a status in its trailing metadata."""

    def __init__(self, error: ServiceError) -> None:
        self._status = to_status(error)
        self._code = error.grpc_code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return str(self._status.message)

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", self._status.SerializeToString()),)


@pytest.mark.parametrize("cls", ALL)
def test_domain_wire_domain_http(cls: type[ServiceError]) -> None:
    there_and_back = from_rpc_error(Failure(cls("Said so.", retry_after_s=1.25)))
    assert type(there_and_back) is cls
    status, headers, body = error_response(there_and_back)
    named = dict(headers)
    assert 400 <= status < 600
    assert status == cls.http_status
    assert named[b"content-type"] == b"application/json"
    assert named[b"content-length"] == str(len(body)).encode()
    assert (named[b"retry-after"], named[b"retry-after-ms"]) == (b"2", b"1250")
    error = json.loads(body)["error"]
    assert error["message"] == "Said so."
    assert {"message", "type", "param", "code"} <= error.keys()
    assert error_event(there_and_back) == b"data: " + body + b"\n\n"


def test_a_spent_quota_says_that_waiting_is_no_use() -> None:
    assert dict(error_response(QuotaExceeded())[1])[b"x-should-retry"] == b"false"
    waiting_helps = dict(error_response(QuotaExceeded(retry_after_s=60))[1])
    assert b"x-should-retry" not in waiting_helps
    assert waiting_helps[b"retry-after"] == b"60"


def test_a_limit_is_named() -> None:
    _, _, body = error_response(RateLimited("Slow.", metadata={"limit": "tokens_per_minute"}))
    assert json.loads(body)["error"]["code"] == "tokens_per_minute"


def test_validation_has_its_own_status() -> None:
    assert error_response(UnprocessableRequest())[0] == 422


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, b"0ms"),
        (120, b"120ms"),
        (1000, b"1s"),
        (1500, b"1.5s"),
        (59_999, b"59.999s"),
        (60_000, b"1m0s"),
        (360_000, b"6m0s"),
        (3_661_000, b"1h1m1s"),
    ],
)
def test_reset_times_read_like_openais(milliseconds: int, text: bytes) -> None:
    assert duration(milliseconds) == text


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (InvalidApiKey, "authentication_error"),
        (PermissionDenied, "permission_error"),
        (ModelNotFound, "not_found_error"),
        (RequestTooLarge, "request_too_large"),
        (RateLimited, "rate_limit_error"),
        (UnprocessableRequest, "invalid_request_error"),
        (EngineUnavailable, "overloaded_error"),
        (EngineFailed, "api_error"),
    ],
)
def test_anthropics_shape(cls: type[ServiceError], kind: str) -> None:
    status, _, body = error_response(cls("Said so."), None, ErrorShape.ANTHROPIC)
    assert status == cls.http_status
    assert json.loads(body) == {"type": "error", "error": {"type": kind, "message": "Said so."}}
    event = error_event(cls("Said so."), ErrorShape.ANTHROPIC)
    assert event == b"event: error\ndata: " + body + b"\n\n"

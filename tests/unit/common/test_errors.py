from __future__ import annotations

import re
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status

from vllm_proxy.common import errors
from vllm_proxy.common.errors import (
    AuthUnavailable,
    EngineUnavailable,
    InternalError,
    RateLimited,
    RequestTimeout,
    ServiceError,
    from_reason,
    subclasses,
)
from vllm_proxy.common.rpc.status import from_rpc_error, to_status

ALL = sorted(subclasses(), key=lambda cls: cls.__name__)
#: The statuses that OpenAI's clients tell apart, and those that a gateway adds.
HTTP_STATUSES = {400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 500, 502, 503, 504}


def over_the_wire(error: ServiceError) -> ServiceError:
    """What a client rebuilds from what a server would send for `error`."""
    sent = rpc_status.to_status(to_status(error))
    return from_rpc_error(
        grpc.aio.AioRpcError(
            sent.code,
            initial_metadata=grpc.aio.Metadata(),
            trailing_metadata=grpc.aio.Metadata(*sent.trailing_metadata),
            details=sent.details,
        )
    )


def lost_connection(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="Socket closed")


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
class TestEveryError:
    def test_survives_the_wire(self, cls: type[ServiceError]) -> None:
        rebuilt = over_the_wire(cls("A sentence.", retry_after_s=1.25, metadata={"limit": "qps"}))
        assert type(rebuilt) is cls
        assert (rebuilt.message, rebuilt.retry_after_s, rebuilt.metadata) == ("A sentence.", 1.25, {"limit": "qps"})

    def test_survives_the_wire_without_details(self, cls: type[ServiceError]) -> None:
        rebuilt = over_the_wire(cls())
        assert type(rebuilt) is cls
        assert (rebuilt.message, rebuilt.retry_after_s, rebuilt.metadata) == (cls.default_message, None, {})

    def test_has_both_faces(self, cls: type[ServiceError]) -> None:
        assert cls.http_status in HTTP_STATUSES
        assert cls.grpc_code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
        assert cls.openai_type and cls.default_message.endswith(".")

    def test_stands_in_the_tree(self, cls: type[ServiceError]) -> None:
        tree = re.findall(r"─ (\w+)", errors.__doc__ or "")
        assert tree.count(cls.__name__) == 1


def test_the_tree_names_nothing_else() -> None:
    tree = re.findall(r"─ (\w+)", errors.__doc__ or "")
    assert sorted(tree) == [cls.__name__ for cls in ALL]


def test_reasons_are_unique_and_upper_snake() -> None:
    reasons = [cls.reason for cls in ALL]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason) for reason in reasons)


def test_an_unknown_reason_is_an_internal_error() -> None:
    error = from_reason("FROM_A_NEWER_PEER", "Something new.")
    assert type(error) is InternalError
    assert error.message == "Something new."


def test_retry_after_keeps_fractions_of_a_second() -> None:
    assert over_the_wire(RateLimited(retry_after_s=0.001)).retry_after_s == pytest.approx(0.001)
    assert over_the_wire(RateLimited(retry_after_s=86_400.5)).retry_after_s == pytest.approx(86_400.5)


def test_a_deadline_is_a_timeout() -> None:
    assert type(from_rpc_error(lost_connection(grpc.StatusCode.DEADLINE_EXCEEDED))) is RequestTimeout


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
def test_a_peer_that_cannot_be_asked_is_what_the_caller_says_it_is(code: grpc.StatusCode) -> None:
    assert type(from_rpc_error(lost_connection(code))) is EngineUnavailable
    error = from_rpc_error(lost_connection(code), unreachable=AuthUnavailable)
    assert type(error) is AuthUnavailable
    assert "Socket" not in error.message


def test_an_error_without_trailing_metadata_is_unreachable() -> None:
    class Bare(grpc.RpcError):
        def code(self) -> Any:
            return grpc.StatusCode.UNAVAILABLE

    assert type(from_rpc_error(Bare())) is EngineUnavailable
    assert type(from_rpc_error(grpc.RpcError())) is EngineUnavailable

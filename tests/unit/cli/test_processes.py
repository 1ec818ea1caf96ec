"""Calling every process of an installation: who does not answer, and whether that is a fault."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import MagicMock

import grpc
import grpc.aio
import pytest

from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.processes import NO_ANSWER, STANDS_BY, Process, Told, tell_all

CONNECTION = cast(Connection, MagicMock())
LEADER, STANDBY = Process("auth", "auth a:1", "a:1"), Process("auth", "auth b:1", "b:1")
ROUTER = Process("router", "router", "unix:r")


def failing(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


async def told(answers: dict[Process, Any]) -> list[Told]:
    async def call(_stub: Any, process: Process) -> Any:
        if isinstance(answer := answers[process], Exception):
            raise answer
        return answer

    return await tell_all(CONNECTION, answers, call)


@pytest.mark.parametrize(
    ("code", "error", "is_down"),
    [
        (grpc.StatusCode.UNAVAILABLE, NO_ANSWER, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, NO_ANSWER, True),
        (grpc.StatusCode.UNIMPLEMENTED, "runs an older version: restart it", False),
    ],
)
async def test_an_error_is_told_of_its_process_alone(code: grpc.StatusCode, error: str, is_down: bool):
    first, second = await told({LEADER: "yes", ROUTER: failing(code)})
    assert (first.answer, first.failed) == ("yes", False)
    assert (second.error, second.is_down, second.failed) == (error, is_down, True)


async def test_a_replica_that_stands_by_is_no_fault_while_one_leads():
    answers = {LEADER: "yes", STANDBY: failing(grpc.StatusCode.UNAVAILABLE)}
    assert [(each.error, each.failed) for each in await told(answers)] == [(None, False), (STANDS_BY, False)]
    answers = {process: failing(grpc.StatusCode.UNAVAILABLE) for process in (LEADER, STANDBY)}
    assert [each.is_down for each in await told(answers)] == [True, True]


async def test_a_service_without_a_process_does_not_answer():
    (edge,) = await told({Process("edge", "edge", None): "never asked"})
    assert (edge.error, edge.is_down) == (NO_ANSWER, True)

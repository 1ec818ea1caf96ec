from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vllm_proxy.engine_host.engines.base import EngineDied, UsageMeter
from vllm_proxy.engine_host.engines.sglang_app import ending_requests
from vllm_proxy.engine_host.engines.sglang_usage import EngineCall, request_calls

SCOPE: dict[str, Any] = {"type": "http"}


class FakeMetering:
    def __init__(self) -> None:
        self.dead = False
        self.settled: list[EngineCall] = []

    async def settle(self, calls: list[EngineCall]) -> None:
        self.settled += calls


def _begin_call() -> None:
    calls = request_calls.get()
    assert calls is not None
    calls.append(EngineCall(UsageMeter()))


async def _never() -> Any:
    raise AssertionError("nobody reads")


class Client:
    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def send(self, message: Any) -> None:
        self.got.append(message.get("body", b"head"))


async def _say(send: Any, body: bytes, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def test_a_request_ends_when_the_engine_has_nothing_of_it_also_if_it_is_cancelled() -> None:
    metering: Any = FakeMetering()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        _begin_call()
        await asyncio.Event().wait()

    asking = asyncio.create_task(_ask(ending_requests(app, metering), Client()))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(metering.settled) == 1


async def test_what_ran_when_the_engine_died_says_no_more_and_is_the_hosts_to_tell() -> None:
    metering: Any = FakeMetering()
    client = Client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        _begin_call()
        await _say(send, b"a token", True)
        metering.dead = True
        await _say(send, b"SGLang's own words", False)

    with pytest.raises(EngineDied):
        await _ask(ending_requests(app, metering), client)
    assert client.got == [b"a token"]


async def test_an_answer_that_was_complete_stays_so() -> None:
    metering: Any = FakeMetering()
    client = Client()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        _begin_call()
        await _say(send, b"all", False)
        metering.dead = True

    await _ask(ending_requests(app, metering), client)
    assert client.got == [b"all"]


async def _ask(app: Any, client: Client) -> None:
    await app(SCOPE, _never, client.send)

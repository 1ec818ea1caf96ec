"""vLLM's stored responses, over a stand-in of its serving layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_proxy.common.response_ids import ResponseIds
from vllm_proxy.engine_host.engines.base import current_key_id
from vllm_proxy.engine_host.engines.vllm_responses import OwnedResponses


class Serving:
    """As `OpenAIServingResponses`, as far as it is used."""

    def __init__(self, enable_store: bool = True) -> None:
        self.enable_store = enable_store
        self.response_store: dict[str, Any] = {}
        self.msg_store: dict[str, Any] = {}
        self.event_store: dict[str, Any] = {}

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        if request.store and self.enable_store:
            self.response_store[request.request_id] = self.msg_store[request.request_id] = request
        return request

    async def retrieve_responses(self, response_id: str, starting_after: int | None, stream: bool | None) -> Any:
        return self.response_store.get(response_id, "not found")

    async def cancel_responses(self, response_id: str) -> Any:
        return "cancelled"

    def _make_not_found_error(self, response_id: str) -> str:
        return "not found"

    def create_error_response(self, message: str, err_type: str, param: str) -> str:
        return message


def asked(**fields: Any) -> Any:
    return SimpleNamespace(
        **{"request_id": "mine", "previous_response_id": None, "background": False, "store": True, **fields}
    )


@contextmanager
def key(key_id: str) -> Iterator[None]:
    token = current_key_id.set(key_id)
    yield
    current_key_id.reset(token)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def serving() -> Any:
    return Serving()


@pytest.fixture
def clock(serving: Any) -> Clock:
    clock = Clock()
    OwnedResponses(serving, ResponseIds("h"), max_stored=3, ttl_s=10, clock=clock)
    return clock


async def get(serving: Any, response_id: str) -> Any:
    return await serving.retrieve_responses(response_id, starting_after=None, stream=False)


async def test_a_response_is_its_keys_and_nobody_elses(serving: Any, clock: Clock) -> None:
    with key("k1"):
        made = await serving.create_responses(asked())
        assert made.request_id.startswith("resp_")
        assert await get(serving, made.request_id) is made
        assert await serving.cancel_responses(made.request_id) == "cancelled"
        assert await serving.create_responses(asked(previous_response_id=made.request_id)) != "not found"
    with key("k2"):
        assert await get(serving, made.request_id) == "not found"
        assert await serving.cancel_responses(made.request_id) == "not found"
        assert await serving.create_responses(asked(previous_response_id=made.request_id)) == "not found"
        # What was never there is the engine's to say.
        assert await serving.create_responses(asked(previous_response_id="resp_x")) != "not found"
    assert await get(serving, made.request_id) is made


async def test_the_oldest_are_forgotten(serving: Any, clock: Clock) -> None:
    with key("k"):
        made = [(await serving.create_responses(asked())).request_id for _ in range(5)]
        assert [await get(serving, one) != "not found" for one in made] == [False, False, True, True, True]
        assert serving.msg_store.keys() == serving.response_store.keys() == set(made[2:])
        clock.now = 10.0
        assert await get(serving, made[3]) == "not found"
        assert not serving.response_store


async def test_what_would_outlive_its_lease_is_refused(serving: Any, clock: Clock) -> None:
    with key("k"):
        assert "background" in await serving.create_responses(asked(background=True))
    made = await serving.create_responses(asked(background=True))
    assert made.request_id == "mine"


async def test_without_a_store_nothing_is_remembered() -> None:
    serving: Any = Serving(enable_store=False)
    owned = OwnedResponses(serving, ResponseIds("h"), max_stored=2, ttl_s=10, clock=Clock())
    with key("k"):
        assert (await serving.create_responses(asked(background=True))).background
    assert not owned._made_at

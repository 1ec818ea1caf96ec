"""A client cannot tell the gateway from the engine's own server."""

from __future__ import annotations

import pytest
from tests.parity.corpus import ASKS, CHAT, COMPLETIONS
from tests.parity.exceptions import EXCEPTIONS, REFUSED
from tests.parity.exchange import Answer, Recorded

#: Headers of ours beside the engine's.
OUR_HEADERS = frozenset({"x-request-id", "x-accel-buffering", "cache-control"})


def test_the_corpus_is_large_and_has_no_name_twice() -> None:
    assert len(ASKS) >= 150
    assert len({ask.name for ask in ASKS}) == len(ASKS)
    assert EXCEPTIONS.keys() | REFUSED.keys() <= {ask.name for ask in ASKS}


@pytest.mark.parametrize(("path", "schema"), [(CHAT, "ChatCompletionRequest"), (COMPLETIONS, "CompletionRequest")])
def test_every_parameter_that_the_engine_publishes_is_asked_for(own: Recorded, path: str, schema: str) -> None:
    published = own.openapi["components"]["schemas"][schema]["properties"]
    asked = frozenset().union(*(ask.fields for ask in ASKS if ask.path == path))
    assert sorted(published.keys() - asked) == []


@pytest.mark.parametrize("name", [ask.name for ask in ASKS if ask.name not in EXCEPTIONS.keys() | REFUSED.keys()])
def test_the_same_answer(own: Recorded, ours: dict[str, Answer], name: str) -> None:
    expected, got = own.answers[name], ours[name]
    assert (got.status, got.headers.get("content-type")) == (expected.status, expected.headers.get("content-type"))
    if expected.is_stream:
        assert got.events == expected.events
    assert got.normal_body == expected.normal_body
    extra = {key for key in got.own_headers if key not in OUR_HEADERS and not key.startswith("x-ratelimit-")}
    assert {key: got.own_headers[key] for key in extra} == dict(expected.own_headers)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_differs_in_its_body_only(own: Recorded, ours: dict[str, Answer], name: str) -> None:
    expected, got = own.answers[name], ours[name]
    assert (got.status, got.headers["content-type"]) == (expected.status, expected.headers["content-type"])
    assert got.headers.get("allow") == expected.headers.get("allow")
    assert got.normal_body != expected.normal_body, "it is none any more"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_of_ours(own: Recorded, ours: dict[str, Answer], name: str) -> None:
    assert own.answers[name].status == 200
    assert ours[name].status == 400
    assert ours[name].headers["content-type"] == "application/json"

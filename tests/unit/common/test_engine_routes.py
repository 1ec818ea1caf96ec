"""The allowlist of engine routes."""

from __future__ import annotations

import pytest

from vllm_proxy.common.engine_routes import (
    EDGE_ROUTES,
    ENGINE_ROUTES,
    HOST_ROUTES,
    ErrorShape,
    ModelIn,
    Work,
    engine_path,
    error_shape,
)


def test_every_row_is_found_and_no_two_are_one() -> None:
    assert len({(route.method, route.path) for route in ENGINE_ROUTES}) == len(ENGINE_ROUTES)
    for route in ENGINE_ROUTES:
        path = route.path.replace("{response_id}", "resp_0aZ-_9")
        assert HOST_ROUTES.find(route.method, path) is route
        assert EDGE_ROUTES.find(route.method, path) is route
        assert engine_path(route, path) == path
        assert route.method in EDGE_ROUTES.methods(path)


def test_without_v1_only_where_promised() -> None:
    chat = EDGE_ROUTES.find("POST", "/chat/completions")
    assert chat is not None and engine_path(chat, "/chat/completions") == "/v1/chat/completions"
    assert HOST_ROUTES.find("POST", "/chat/completions") is None
    assert EDGE_ROUTES.find("POST", "/responses") is None
    assert EDGE_ROUTES.find("POST", "/messages") is None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/",
        "/v1/responses/a/b",
        "/v1/responses/a/",
        "/v1/responses/..",
        "/v1/responses/%2e",
        "/v1/responses/a%2f",
        "/v1/responses/a b",
        "/v1/responses/\u00e9",
        "/v1/responses/a\n",
        "/v1/responses/" + "a" * 129,
        "/v1/responses/{response_id}",
        "/V1/responses/a",
        "//v1/responses/a",
    ],
)
def test_a_parameter_is_an_id_and_nothing_else(path: str) -> None:
    assert EDGE_ROUTES.find("GET", path) is None
    assert EDGE_ROUTES.methods(path) == []


def test_methods() -> None:
    assert EDGE_ROUTES.methods("/v1/responses/a") == ["GET"]
    assert EDGE_ROUTES.methods("/v1/responses/a/cancel") == ["POST"]
    assert EDGE_ROUTES.find("POST", "/v1/responses/a") is None


def test_error_shapes() -> None:
    assert error_shape("/v1/messages") is ErrorShape.ANTHROPIC
    assert error_shape("/v1/messages/count_tokens") is ErrorShape.ANTHROPIC
    assert error_shape("/v1/chat/completions") is ErrorShape.OPENAI
    assert error_shape("/nowhere") is ErrorShape.OPENAI


def test_what_names_no_model_makes_no_tokens() -> None:
    """Else a key's allowlist of models could be passed by."""
    for route in ENGINE_ROUTES:
        assert route.model_in is not ModelIn.NOWHERE or route.work is Work.LOOK_UP

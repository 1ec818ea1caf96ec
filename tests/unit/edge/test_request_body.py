"""What the edge reads of a body."""

from __future__ import annotations

import json

import pytest

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.common.engine_routes import EDGE_ROUTES, Work
from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.edge import request_body
from vllm_proxy.edge.answer_limit import with_limit
from vllm_proxy.edge.prompt_script import script_of
from vllm_proxy.edge.request_body import TOKENS_PER_MEDIA, BodyPeek, peek


def test_peek_reads_what_admission_needs() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"0123456789"}],"max_tokens":16,"n":3,"x":{"y":[1]}}'
    found = peek(body)
    assert (found.model, found.choices, found.response_tokens) == ("m", 3, 48)
    assert (found.prompt_tokens, found.prompt_bytes) == (0, len(b'[{"role":"user","content":"0123456789"}]'))


@pytest.mark.parametrize(
    ("body", "choices", "response_tokens", "prompt"),
    [
        (b'{"prompt":"12345678"}', 1, None, (0, 10)),
        (b'{"prompt":["a","b"],"max_tokens":5}', 2, 10, (0, 9)),
        (b'{"prompt":[1,2,3,4,5],"max_tokens":5}', 1, 5, (5, 0)),
        (b'{"prompt":[[1,2],[3]],"max_tokens":5,"best_of":4,"n":2}', 8, 40, (3, 0)),
        (b'{"prompt":[]}', 1, None, (0, 0)),
        (b'{"max_tokens":1,"max_completion_tokens":9}', 1, 9, 0),
        (b'{"max_tokens":9,"max_completion_tokens":0}', 1, 9, 0),
        (b'{"max_tokens":1,"max_completion_tokens":null}', 1, 1, 0),
        (b'{"max_tokens":"7"}', 1, 7, 0),
        (b'{"max_tokens":7.0}', 1, 7, 0),
        (b'{"max_tokens":-1,"n":-4}', 1, 0, 0),
        (b'{"max_tokens":99999999999999999999}', 1, 2**32 - 1, 0),
        (b'{"max_tokens":"many","n":[]}', 1, None, 0),
    ],
)
def test_peek_counts(body: bytes, choices: int, response_tokens: int | None, prompt: tuple[int, int] | int) -> None:
    tokens, size = prompt or (0, 0)
    assert peek(body) == BodyPeek(None, choices, response_tokens, tokens, size)


def test_each_route_has_its_own_limits_of_an_answer() -> None:
    body = b'{"max_completion_tokens":5,"max_tokens":100000,"max_output_tokens":7}'
    found = {
        path: peek(body, Work.GENERATE, route.limits).response_tokens
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
        if (route := EDGE_ROUTES.find("POST", path)) is not None
    }
    assert found == {
        "/v1/chat/completions": 5,
        "/v1/completions": 100_000,
        "/v1/responses": 7,
        "/v1/messages": 100_000,
    }


@pytest.mark.parametrize(
    ("body", "choices", "response_tokens", "prompt_tokens"),
    [
        (b'{"input":"12345678","max_output_tokens":9}', 1, 9, 2),
        (b'{"input":[{"role":"user","content":"hi"}],"instructions":"12345678"}', 1, None, 8 + 2),
        (b'{"system":"12345678","messages":[{"role":"user"}],"max_tokens":3}', 1, 3, 2 + 4),
        (b'{"messages":[[{"role":"user"}], [{"role":"user"}]],"max_tokens":3}', 2, 6, 9),
    ],
)
def test_peek_counts_what_newer_routes_call_it(
    body: bytes, choices: int, response_tokens: int | None, prompt_tokens: int
) -> None:
    found = peek(body)
    assert (found.choices, found.response_tokens) == (choices, response_tokens)
    assert abs(found.prompt_bytes / 4 - prompt_tokens) <= 2


def test_a_request_that_makes_no_tokens_reserves_none() -> None:
    assert peek(b'{"model":"e","input":[1,2,3],"n":4,"max_tokens":9}', Work.POOL) == BodyPeek("e", 1, 0, 3)
    assert peek(b'{"model":"e","input":[[1,2],[3]]}', Work.POOL) == BodyPeek("e", 1, 0, 3)
    body = b'{"model":"e","query":"q","documents":["d1","d2"]}'
    assert peek(body, Work.POOL) == BodyPeek("e", 1, 0, 0, len(body))
    assert peek(b'{"model":"e","prompt":"12345678"}', Work.LOOK_UP) == BodyPeek("e", 1, 0, 0)
    assert peek(b"{", Work.LOOK_UP) == BodyPeek(None, 1, 0, 0)


def test_peek_finds_the_response_that_a_request_goes_on_from() -> None:
    assert peek(b'{"input":"x","previous_response_id":"resp_1"}').previous_response_id == "resp_1"


def test_inline_media_are_not_counted_as_text() -> None:
    image = b"A" * 1_000_000
    body = b'{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,' + image + b'"}}]}]}'
    assert peek(body).prompt_tokens == TOKENS_PER_MEDIA and peek(body).prompt_bytes < 100


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"m"', b"\xff\xfe", b'{"model":', b"[" * 100_000])
def test_body_that_cannot_be_read_names_no_model(body: bytes) -> None:
    assert peek(body) == BodyPeek()


@pytest.mark.parametrize("value", [b"3", b"null", b'""', b'"\xff\xfe"', b'["m"]', b'{"a":"m"}'])
def test_model_of_another_type_is_no_model_and_hides_nothing(value: bytes) -> None:
    assert peek(b'{"model":' + value + b',"max_tokens":2}') == BodyPeek(None, 1, 2, 0)


def test_what_only_python_reads_is_read_too() -> None:
    found = peek(b'{"model":"m","temperature":NaN,"logit_bias":{"1":-Infinity},"max_tokens":2}')
    assert (found.model, found.response_tokens) == ("m", 2)


def test_last_of_two_equal_fields_counts_as_in_the_engine() -> None:
    assert peek(b'{"model":"a","model":"b"}').model == "b"


def test_a_name_that_no_model_has_goes_nowhere() -> None:
    assert peek(b'{"model":"' + b"m" * 1000 + b'","max_tokens":2}') == BodyPeek(None, 1, 2, 0)


@pytest.mark.parametrize(
    ("item", "prompts", "tokens"),
    [(b'"abc"', 100_000, 0), (b"[7]", 100_000, 100_000), (b"7", 1, 100_000)],
)
def test_large_prompts_are_counted_and_not_built(
    item: bytes, prompts: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: bytes) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(request_body, "_decode_list", build)
    monkeypatch.setattr(request_body, "_decode_leniently", build)
    found = peek(b'{"prompt":[' + b",".join([item] * 100_000) + b"]}")
    assert (found.choices, found.prompt_tokens) == (prompts, tokens)
    # Not JSON, and too large to be read twice.
    assert peek(b'{"x":NaN,"y":[' + b",".join([b"{}"] * 100_000) + b"]}") == BodyPeek()


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ('{"prompt": "plain text with one \\u00e9"}', auth_pb2.PROMPT_SCRIPT_ASCII),
        ('{"prompt": "' + "\\u4f60\\u597d" * 10 + '"}', auth_pb2.PROMPT_SCRIPT_ESCAPED),
        ('{"prompt": "你好世界。今天天气很好我们去公园散步吧。"}', auth_pb2.PROMPT_SCRIPT_WIDE),
        ('{"prompt": "Привет, мир, как дела"}', auth_pb2.PROMPT_SCRIPT_OTHER),
        (
            '{"prompt": "an em dash — in a long text that is otherwise plain ASCII, nothing more"}',
            auth_pb2.PROMPT_SCRIPT_OTHER,
        ),
    ],
)
def test_scripts(text: str, script: auth_pb2.PromptScript) -> None:
    assert script_of(text.encode()) == script


@pytest.mark.parametrize(
    "body",
    [b'{"a": 1}', b'{"a": 1, "max_tokens": null }', b' {"max_tokens": 0}\n', b"{}", b'{"max_tokens": "x"}'],
)
def test_a_limit_is_written_where_it_wins(body: bytes) -> None:
    limited = json.loads(with_limit(body, ("max_tokens",), 7))
    assert limited.pop("max_tokens") == 7
    assert limited == {name: value for name, value in json.loads(body).items() if name != "max_tokens"}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", '{"a": 1}'.encode("utf-16"), b'{"a": 1} x'])
def test_what_cannot_be_limited_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        with_limit(body, ("max_tokens",), 7)

"""What the edge reads of a body, and how it reads one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vllm_proxy.common.engine_routes import Work
from vllm_proxy.common.errors import BodyTooSlow, RequestTooLarge
from vllm_proxy.edge import request_body
from vllm_proxy.edge.request_body import TOKENS_PER_MEDIA, BodyPeek, ClientGone, peek, read_body


def messages(*pieces: bytes) -> Any:
    queue = [
        {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    return receive


async def test_body_in_pieces_is_joined() -> None:
    assert await read_body(messages(b"ab", b"cd", b""), None, 100, 1) == b"abcd"
    assert await read_body(messages(b"abcd"), b"4", 100, 1) == b"abcd"


@pytest.mark.parametrize("pieces", [(b"abcdef",), (b"abc", b"def")])
async def test_body_over_the_limit_is_refused(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(RequestTooLarge, match="5 bytes"):
        await read_body(messages(*pieces), None, 5, 1)


async def test_announced_length_over_the_limit_is_refused_unread() -> None:
    async def receive() -> Any:
        raise AssertionError("read")

    with pytest.raises(RequestTooLarge):
        await read_body(receive, b"6", 5, 1)


async def test_client_that_leaves_while_it_sends() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await read_body(receive, None, 5, 1)


async def test_slow_body_has_a_deadline() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(BodyTooSlow):
        await read_body(receive, None, 5, 0.001)


def test_peek_reads_what_admission_needs() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"0123456789"}],"max_tokens":16,"n":3,"x":{"y":[1]}}'
    found = peek(body)
    assert (found.model, found.choices, found.response_tokens) == ("m", 3, 48)
    assert found.prompt_tokens_estimate == len(b'[{"role":"user","content":"0123456789"}]') // 4


@pytest.mark.parametrize(
    ("body", "choices", "response_tokens", "prompt_tokens"),
    [
        (b'{"prompt":"12345678"}', 1, None, 2),
        (b'{"prompt":["a","b"],"max_tokens":5}', 2, 10, 2),
        (b'{"prompt":[1,2,3,4,5],"max_tokens":5}', 1, 5, 5),
        (b'{"prompt":[[1,2],[3]],"max_tokens":5,"best_of":4,"n":2}', 8, 40, 3),
        (b'{"prompt":[]}', 1, None, 0),
        (b'{"max_tokens":1,"max_completion_tokens":9}', 1, 9, 0),
        (b'{"max_tokens":1,"max_completion_tokens":null}', 1, 1, 0),
        (b'{"max_tokens":"7"}', 1, 7, 0),
        (b'{"max_tokens":7.0}', 1, 7, 0),
        (b'{"max_tokens":-1,"n":-4}', 1, 0, 0),
        (b'{"max_tokens":99999999999999999999}', 1, 2**32 - 1, 0),
        (b'{"max_tokens":"many","n":[]}', 1, None, 0),
    ],
)
def test_peek_counts(body: bytes, choices: int, response_tokens: int | None, prompt_tokens: int) -> None:
    assert peek(body) == BodyPeek(None, choices, response_tokens, prompt_tokens)


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
    assert abs(found.prompt_tokens_estimate - prompt_tokens) <= 2


def test_a_request_that_makes_no_tokens_reserves_none() -> None:
    assert peek(b'{"model":"e","input":[1,2,3],"n":4,"max_tokens":9}', Work.POOL) == BodyPeek("e", 1, 0, 3)
    assert peek(b'{"model":"e","input":[[1,2],[3]]}', Work.POOL) == BodyPeek("e", 1, 0, 3)
    body = b'{"model":"e","query":"q","documents":["d1","d2"]}'
    assert peek(body, Work.POOL) == BodyPeek("e", 1, 0, len(body) // 4)
    assert peek(b'{"model":"e","prompt":"12345678"}', Work.LOOK_UP) == BodyPeek("e", 1, 0, 0)
    assert peek(b"{", Work.LOOK_UP) == BodyPeek(None, 1, 0, 0)


def test_peek_finds_the_response_that_a_request_goes_on_from() -> None:
    assert peek(b'{"input":"x","previous_response_id":"resp_1"}').previous_response_id == "resp_1"


def test_inline_media_are_not_counted_as_text() -> None:
    image = b"A" * 1_000_000
    body = b'{"messages":[{"content":[{"image_url":{"url":"data:image/png;base64,' + image + b'"}}]}]}'
    assert TOKENS_PER_MEDIA <= peek(body).prompt_tokens_estimate < TOKENS_PER_MEDIA + 50


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"m"', b"\xff\xfe", b'{"model":', b"[" * 100_000])
def test_body_that_cannot_be_read_names_no_model(body: bytes) -> None:
    assert peek(body) == BodyPeek()


@pytest.mark.parametrize("value", [b"3", b"null", b'""', b'["m"]', b'{"a":"m"}'])
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
    [(b'"abc"', 100_000, 6 * 100_000 // 4), (b"[7]", 100_000, 100_000), (b"7", 1, 100_000)],
)
def test_large_prompts_are_counted_and_not_built(
    item: bytes, prompts: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: bytes) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(request_body, "_decode_list", build)
    monkeypatch.setattr(request_body, "_decode_leniently", build)
    found = peek(b'{"prompt":[' + b",".join([item] * 100_000) + b"]}")
    assert (found.choices, found.prompt_tokens_estimate) == (prompts, tokens)
    # Not JSON, and too large to be read twice.
    assert peek(b'{"x":NaN,"y":[' + b",".join([b"{}"] * 100_000) + b"]}") == BodyPeek()

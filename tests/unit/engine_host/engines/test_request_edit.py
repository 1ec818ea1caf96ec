from __future__ import annotations

import json

import pytest

from vllm_proxy.engine_host.engines.request_edit import EngineRequest, edit, with_field

BOTH = {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[]}',
        b'{"model":"m","stream":false}',
        b'{"model":"m","stream":null}',
        b'{"model":"m","stream":true,"stream_options":7}',
        b'{"model":"m","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}',
    ],
)
def test_left_alone(body: bytes) -> None:
    assert edit(body).body == body
    assert edit(body).model == "m"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'"x"', b"\xff\xfe", b"{" * 100_000])
def test_what_is_no_json_object_is_left_alone(body: bytes) -> None:
    assert edit(body) == EngineRequest(body)


@pytest.mark.parametrize("value", ["true", "1", "1.0", '"true"', '"YES"', '"on"'])
def test_a_stream_is_made_to_tell_its_usage_however_it_says_that_it_is_one(value: str) -> None:
    body = f' {{"model": "m", "seed": 123456789012345678901234567890, "stream": {value} }} \n'
    request = edit(body.encode())
    assert request.streams and not request.wants_usage
    assert json.loads(request.body) == {**json.loads(body), "stream_options": BOTH}
    assert request.body.startswith(body.rstrip().removesuffix("}").encode())


def test_the_clients_own_options_stay() -> None:
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True, "other": 1}, "n": 3}
    request = edit(json.dumps(body).encode())
    assert (request.wants_usage, request.wants_running_usage, request.choices) == (True, False, 3)
    assert json.loads(request.body)["stream_options"] == {**BOTH, "other": 1}


def test_running_usage_without_usage_is_none() -> None:
    options = {"continuous_usage_stats": True}
    request = edit(json.dumps({"stream": True, "stream_options": options}).encode())
    assert not request.wants_running_usage
    assert json.loads(request.body)["stream_options"] == BOTH


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_what_only_pythons_reader_takes_is_counted_too(encoding: str) -> None:
    body = '{"model":"m","stream":true,"temperature":NaN,"prompt":"\u65e5"}'.encode(encoding)
    request = edit(body)
    assert request.streams and request.model == "m"
    assert json.loads(request.body)["stream_options"] == BOTH


def test_a_field_more() -> None:
    for body in (b'{"model":"a","lora_path":"x"} ', '{"model":"a","n":NaN}'.encode("utf-16")):
        request = with_field(edit(body), "lora_path", "pirate")
        assert json.loads(request.body)["lora_path"] == "pirate"
        assert json.loads(request.body)["model"] == request.model == "a"
    assert edit(b'{"model":"a","lora_path":null}').fields == {"model", "lora_path"}
    assert edit(b"[]").fields is None


@pytest.mark.parametrize(
    ("value", "priority"), [("", 0), (',"priority":null', 0), (',"priority":-4', -4), (',"priority":"x"', None)]
)
def test_the_clients_own_priority(value: str, priority: int | None) -> None:
    request = edit(f'{{"model":"m"{value}}}'.encode())
    assert request.priority == priority
    assert json.loads(with_field(request, "priority", 9).body)["priority"] == 9

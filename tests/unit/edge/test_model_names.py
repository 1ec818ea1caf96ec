"""Which model a request means, and the body that says so."""

from __future__ import annotations

import json

import pytest

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.common.routing.table import RoutingTable
from vllm_proxy.edge.form_body import peek_form
from vllm_proxy.edge.model_names import ModelNames, form_with_model, with_model


@pytest.fixture
def table() -> RoutingTable:
    models = [pb.Model(name="base"), pb.Model(name="a:b"), pb.Model(name="lora", base="base")]
    table = RoutingTable()
    table.apply(pb.WatchTableResponse(version=1, hosts=[pb.Host(name="h", state=pb.HOST_STATE_SERVING, models=models)]))
    return table


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (None, "base"),
        ("base", "base"),
        ("lora", "lora"),
        ("gpt", "lora"),
        ("base:lora", "lora"),
        # It may lie in the resolver's folder.
        ("base:other", "other"),
        # A name that is served, though it looks like two.
        ("a:b", "a:b"),
        ("lora:base", "lora:base"),
        ("nobody:lora", "nobody:lora"),
        ("base:", "base:"),
        ("nobody", "nobody"),
    ],
)
def test_names(table: RoutingTable, asked: str | None, meant: str) -> None:
    assert ModelNames(table, {"gpt": "lora", "base": "lora"}, "base").meant(asked) == meant


def test_no_default(table: RoutingTable) -> None:
    assert ModelNames(table, {}, None).meant(None) is None


def test_nothing_but_the_model_is_changed() -> None:
    body = '{"model":"gpt", "big": 123456789012345678901234567890, "x": [1.0, 1e3, "\\u00e9", null],"seed":1e400}'
    changed = with_model(body.encode(), "a/b").decode()
    assert changed == (
        '{"model":"a/b","big":123456789012345678901234567890,"x":[1.0, 1e3, "\\u00e9", null],"seed":1e400}'
    )
    assert json.loads(with_model(b'{"messages": []}', 'a"b')) == {"messages": [], "model": 'a"b'}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"x": NaN}', b"\xff"])
def test_what_is_no_object_is_left_alone(body: bytes) -> None:
    assert with_model(body, "m") == body


def test_forms() -> None:
    type_ = b"multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = part % (b"model", b"gpt") + part % (b"file", b"\0" * 50) + b"--x--\r\n"
    changed = form_with_model(body, type_, "whisper-large")
    assert peek_form(changed, type_).model == "whisper-large"
    assert len(changed) == len(body) + len("whisper-large") - len("gpt")
    assert form_with_model(b"none", type_, "m") == b"none"

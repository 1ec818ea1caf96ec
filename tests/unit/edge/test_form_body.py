"""The model's name in a multipart form, as engines read it."""

from __future__ import annotations

import pytest

from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.edge.form_body import MAX_PARTS, model_span, peek_form

TYPE = b"multipart/form-data; boundary=xyz"


def form(*parts: tuple[bytes, bytes]) -> bytes:
    pieces = [b"--xyz\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % part for part in parts]
    return b"".join(pieces) + b"--xyz--\r\n"


FILE = (b'name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b"\x00\r\n--xy\r\n" * 1000)


@pytest.mark.parametrize(
    "part", [b'name="model"', b"name=model", b'NAME="model"', b'name="model"\r\nContent-Type: text/plain']
)
def test_the_model_is_found_before_and_after_the_file(part: bytes) -> None:
    assert peek_form(form((part, b"whisper"), FILE), TYPE).model == "whisper"
    assert (
        peek_form(form(FILE, (part, b"whisper")), b'Multipart/Form-Data; charset=x; boundary="xyz"').model == "whisper"
    )


def test_the_last_of_two_counts_as_in_the_engine() -> None:
    assert peek_form(form((b'name="model"', b"a"), FILE, (b'name="model"', b"b")), TYPE).model == "b"


def test_the_span_is_the_value() -> None:
    body = form((b'name="language"', b"en"), (b'name="model"', b"whisper"))
    span = model_span(body, TYPE)
    assert span is not None and body[slice(*span)] == b"whisper"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--xyz",
        b"--xyz\r\n\r\n",
        form(FILE),
        form((b'name="model"', b"")),
        form((b'name="models"', b"a")),
        form((b'name="file"; filename="name=model"', b"a")),
        b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nunended',
    ],
)
def test_a_form_without_one(body: bytes) -> None:
    assert peek_form(body, TYPE).model is None
    assert peek_form(body, b"application/json").model is None


def test_a_name_that_no_model_has_goes_nowhere() -> None:
    assert peek_form(form((b'name="model"', b"m" * 1000)), TYPE).model is None


def test_more_parts_than_are_looked_at_are_refused() -> None:
    assert peek_form(form(*[(b'name="x"', b"1")] * (MAX_PARTS - 1)), TYPE).model is None
    with pytest.raises(InvalidRequest, match="parts"):
        peek_form(form(*[(b'name="x"', b"1")] * (MAX_PARTS + 1), (b'name="model"', b"m")), TYPE)

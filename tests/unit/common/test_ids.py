from __future__ import annotations

import pytest

from vllm_proxy.common.ids import accept_request_id, new_incarnation, new_request_id


@pytest.mark.parametrize("value", [b"abc", b"A-1_b.c:d", b"x" * 128])
def test_a_harmless_request_id_is_kept(value: bytes) -> None:
    assert accept_request_id(value) == value.decode()


@pytest.mark.parametrize(
    "value", [None, b"", b"x" * 129, b"a b", b"a\n", b"a\r\nset-cookie: x", b"caf\xc3\xa9", b'{"a"}', b"a/b"]
)
def test_any_other_is_replaced(value: bytes | None) -> None:
    minted = accept_request_id(value)
    assert minted.startswith("req-")
    assert accept_request_id(minted.encode()) == minted


def test_minted_ids_differ() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000
    assert len({new_incarnation("edge") for _ in range(1000)}) == 1000

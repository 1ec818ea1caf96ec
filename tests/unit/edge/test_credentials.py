"""Keys and where a client is."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from vllm_proxy.common.errors import InvalidApiKey
from vllm_proxy.edge.credentials import api_key_sha256, client_is_local


@pytest.mark.parametrize("header", [b"Bearer sk-1", b"bearer sk-1", b"BEARER  sk-1 ", b"sk-1", b" sk-1"])
def test_both_header_forms_give_the_same_hash(header: bytes) -> None:
    assert api_key_sha256({b"authorization": header}) == sha256(b"sk-1").digest()


@pytest.mark.parametrize("header", [None, b"", b"  ", b"Bearer", b"Bearer ", b"bearer   "])
def test_no_key(header: bytes | None) -> None:
    with pytest.raises(InvalidApiKey):
        api_key_sha256({} if header is None else {b"authorization": header, b"x-api-key": b""})


def test_the_header_of_anthropics_clients() -> None:
    assert api_key_sha256({b"x-api-key": b"sk-1"}) == sha256(b"sk-1").digest()
    assert api_key_sha256({b"x-api-key": b"sk-2", b"authorization": b"Bearer sk-1"}) == sha256(b"sk-1").digest()


def local(client: Any, *headers: tuple[bytes, bytes]) -> bool:
    return client_is_local({"client": client, "headers": list(headers)}, dict(headers))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_local(address: str) -> None:
    assert local((address, 1))


def test_unix_socket_is_local() -> None:
    assert local(None)


@pytest.mark.parametrize("address", ["10.0.0.1", "8.8.8.8", "::2", "::ffff:8.8.8.8"])
def test_other_machines_are_not(address: str) -> None:
    assert not local((address, 1))
    # Nobody makes himself local by a header.
    assert not local((address, 1), (b"x-forwarded-for", b"127.0.0.1"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"x-forwarded-for", b"127.0.0.1", True),
        (b"x-forwarded-for", b"127.0.0.1, ::1", True),
        (b"x-forwarded-for", b"8.8.8.8", False),
        (b"x-forwarded-for", b"8.8.8.8, 127.0.0.1", False),
        (b"x-forwarded-for", b"127.0.0.1, 8.8.8.8", False),
        (b"x-forwarded-for", b"unknown", False),
        (b"x-forwarded-for", b"", False),
        (b"x-real-ip", b"8.8.8.8", False),
        (b"x-real-ip", b"127.0.0.1", True),
        (b"forwarded", b"for=127.0.0.1;proto=http", True),
        (b"forwarded", b'for="[::1]:4711"', True),
        (b"forwarded", b"for=127.0.0.1:80, for=8.8.8.8", False),
        (b"forwarded", b'For="[2001:db8::17]:4711"', False),
        (b"forwarded", b"by=127.0.0.1", False),
        (b"forwarded", b"for=_hidden", False),
    ],
)
def test_forwarding_headers(name: bytes, value: bytes, expected: bool) -> None:
    assert local(("127.0.0.1", 1), (name, value)) is expected


def test_every_occurrence_of_a_forwarding_header_counts() -> None:
    repeated = ((b"x-forwarded-for", b"8.8.8.8"), (b"x-forwarded-for", b"127.0.0.1"))
    assert not local(("127.0.0.1", 1), *repeated)

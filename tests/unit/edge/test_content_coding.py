"""Compressed request bodies."""

from __future__ import annotations

import gzip
import zlib

import pytest

from vllm_proxy.common.errors import InvalidRequest, RequestTooLarge, UnsupportedCoding
from vllm_proxy.edge.content_coding import INLINE_BYTES, decoded

LIMIT = 1_000_000


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP ", b"x-gzip"])
async def test_gzip(coding: bytes) -> None:
    assert await decoded(gzip.compress(b"hello"), coding, LIMIT) == b"hello"
    assert await decoded(gzip.compress(b"hel") + gzip.compress(b"lo"), coding, LIMIT) == b"hello"


async def test_what_is_not_compressed() -> None:
    assert await decoded(b"hello", b"identity", LIMIT) == b"hello"
    assert await decoded(b"", b"gzip", LIMIT) == b""


async def test_the_limit_is_that_of_the_unpacked_body() -> None:
    assert len(await decoded(gzip.compress(b"x" * LIMIT), b"gzip", LIMIT)) == LIMIT
    with pytest.raises(RequestTooLarge, match="1000000 bytes"):
        await decoded(gzip.compress(b"x" * (LIMIT + 1)), b"gzip", LIMIT)
    # A small bomb, a large one, and one in many members.
    for bomb in (gzip.compress(b"\0" * 30_000_000), gzip.compress(b"\0" * 100_000) * 100):
        with pytest.raises(RequestTooLarge):
            await decoded(bomb, b"gzip", LIMIT)
    assert len(gzip.compress(b"\0" * 30_000_000)) < INLINE_BYTES


@pytest.mark.parametrize(
    "body", [b"hello", gzip.compress(b"hello")[:-1], gzip.compress(b"hello") + b"x", zlib.compress(b"hello")]
)
async def test_what_is_not_gzip(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await decoded(body, b"gzip", LIMIT)


@pytest.mark.parametrize("coding", [b"br", b"deflate", b"zstd", b"gzip, gzip"])
async def test_other_codings_are_refused(coding: bytes) -> None:
    with pytest.raises(UnsupportedCoding):
        await decoded(b"x", coding, LIMIT)

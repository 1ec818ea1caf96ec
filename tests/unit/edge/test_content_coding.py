"""Compressed request bodies."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from vllm_proxy.common.errors import InvalidRequest, NoCapacity, RequestTooLarge, UnsupportedCoding
from vllm_proxy.edge.content_coding import INLINE_BYTES, PIECE_BYTES, decoded

LIMIT = 1_000_000


def freely(size_bytes: int) -> None: ...


@pytest.mark.parametrize("coding", [b"gzip", b"GZIP ", b"x-gzip"])
async def test_gzip(coding: bytes) -> None:
    assert await decoded(gzip.compress(b"hello"), coding, LIMIT, freely) == b"hello"
    assert await decoded(gzip.compress(b"hel") + gzip.compress(b"lo"), coding, LIMIT, freely) == b"hello"


async def test_what_is_not_compressed() -> None:
    assert await decoded(b"hello", b"identity", LIMIT, freely) == b"hello"
    assert await decoded(b"", b"gzip", LIMIT, freely) == b""


async def test_the_limit_is_that_of_the_unpacked_body() -> None:
    assert len(await decoded(gzip.compress(b"x" * LIMIT), b"gzip", LIMIT, freely)) == LIMIT
    with pytest.raises(RequestTooLarge, match="1000000 bytes"):
        await decoded(gzip.compress(b"x" * (LIMIT + 1)), b"gzip", LIMIT, freely)
    # A small bomb, a large one, and one in many members.
    for bomb in (gzip.compress(b"\0" * 30_000_000), gzip.compress(b"\0" * 100_000) * 100):
        with pytest.raises(RequestTooLarge):
            await decoded(bomb, b"gzip", LIMIT, freely)
    assert len(gzip.compress(b"\0" * 30_000_000)) < INLINE_BYTES


@pytest.mark.parametrize("compressible", [True, False])
async def test_what_is_unpacked_is_held_piece_by_piece(compressible: bool) -> None:
    body = b"x" * 3 * PIECE_BYTES if compressible else random.Random(1).randbytes(3 * PIECE_BYTES)
    held: list[int] = []
    assert await decoded(gzip.compress(body, 1), b"gzip", len(body), held.append) == body
    assert sum(held) == len(body)
    assert max(held) <= PIECE_BYTES


async def test_unpacking_ends_as_soon_as_nothing_more_can_be_held() -> None:
    held: list[int] = []

    def hold(size_bytes: int) -> None:
        if len(held) == 2:
            raise NoCapacity
        held.append(size_bytes)

    with pytest.raises(NoCapacity):
        await decoded(gzip.compress(b"\0" * 30_000_000), b"gzip", 40_000_000, hold)
    assert sum(held) <= 2 * PIECE_BYTES


@pytest.mark.parametrize(
    "body",
    [b"hello", gzip.compress(b"hello")[:-1], gzip.compress(b"hello") + b"x", zlib.compress(b"hello")],
    ids=["plain", "cut", "trailing", "zlib"],
)
async def test_what_is_not_gzip(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await decoded(body, b"gzip", LIMIT, freely)


@pytest.mark.parametrize("coding", [b"br", b"deflate", b"zstd", b"gzip, gzip"])
async def test_other_codings_are_refused(coding: bytes) -> None:
    with pytest.raises(UnsupportedCoding):
        await decoded(b"x", coding, LIMIT, freely)

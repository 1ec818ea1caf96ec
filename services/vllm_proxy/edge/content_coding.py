"""Request bodies that a client compressed."""

from __future__ import annotations

import asyncio
import zlib

from vllm_proxy.common.errors import InvalidRequest, RequestTooLarge, UnsupportedCoding

#: A larger one is unpacked in a thread.
INLINE_BYTES = 32 * 1024
#: zlib's way to say: a gzip header, and the largest window.
_GZIP = 16 + zlib.MAX_WBITS


async def decoded(body: bytes, coding: bytes, limit_bytes: int) -> bytes:
    """The body as it was before `Content-Encoding`, at most `limit_bytes` of it, whatever it would unpack to.

    Raises UnsupportedCoding, InvalidRequest, RequestTooLarge.
    """
    coding = coding.strip().lower()
    if coding in (b"", b"identity"):
        return body
    if coding not in (b"gzip", b"x-gzip"):
        raise UnsupportedCoding("A request body may be compressed with gzip only.")
    if len(body) <= INLINE_BYTES:
        return _unpacked(body, limit_bytes)
    return await asyncio.to_thread(_unpacked, body, limit_bytes)


def _unpacked(body: bytes, limit_bytes: int) -> bytes:
    pieces: list[bytes] = []
    room = limit_bytes
    while body:  # one gzip member after the other
        unpacker = zlib.decompressobj(_GZIP)
        try:
            pieces.append(piece := unpacker.decompress(body, room + 1))
        except zlib.error:
            raise InvalidRequest("The request body is not gzip.") from None
        room -= len(piece)
        if room < 0:
            raise RequestTooLarge(f"The request body is larger than {limit_bytes} bytes.")
        if not unpacker.eof:
            raise InvalidRequest("The request body ends within its gzip data.")
        body = unpacker.unused_data
    return b"".join(pieces)

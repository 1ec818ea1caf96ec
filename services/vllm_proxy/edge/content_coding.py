"""Request bodies that a client compressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from vllm_proxy.common.errors import InvalidRequest, RequestTooLarge, UnsupportedCoding

#: A larger one is unpacked in a thread, and so is what a small one has after its first piece.
INLINE_BYTES = 32 * 1024
#: What is unpacked at a time.
PIECE_BYTES = 512 * 1024
#: zlib's way to say: a gzip header, and the largest window.
_GZIP = 16 + zlib.MAX_WBITS


async def decoded(body: bytes, coding: bytes, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    """The body as it was before `Content-Encoding`, at most `limit_bytes` of it, whatever it would unpack to. `hold` is
    told of so many bytes more before they are kept; what it raises ends the unpacking.

    Raises UnsupportedCoding, InvalidRequest, RequestTooLarge.
    """
    coding = coding.strip().lower()
    if coding in (b"", b"identity"):
        return body
    if coding not in (b"gzip", b"x-gzip"):
        raise UnsupportedCoding("A request body may be compressed with gzip only.")
    pieces: list[bytes] = []
    room = limit_bytes
    unpacking = _Unpacking(body)
    while not unpacking.ended:
        inline = not pieces and len(body) <= INLINE_BYTES
        piece = unpacking.next() if inline else await asyncio.to_thread(unpacking.next)
        room -= len(piece)
        if room < 0:
            raise RequestTooLarge(f"The request body is larger than {limit_bytes} bytes.")
        hold(len(piece))
        pieces.append(piece)
    return b"".join(pieces)


class _Unpacking:
    """One gzip member after the other, piece by piece."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._member = zlib.decompressobj(_GZIP)
        self.ended = not packed

    def next(self) -> bytes:
        """At most PIECE_BYTES. Raises InvalidRequest."""
        try:
            piece = self._member.decompress(self._packed, PIECE_BYTES)
        except zlib.error:
            raise InvalidRequest("The request body is not gzip.") from None
        if self._member.eof:
            self._packed = self._member.unused_data
            self._member = zlib.decompressobj(_GZIP)
            self.ended = not self._packed
        else:
            self._packed = self._member.unconsumed_tail
            if not (piece or self._packed):
                raise InvalidRequest("The request body ends within its gzip data.")
        return piece

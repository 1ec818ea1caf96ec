"""The longest answer that a key may have, written into a request that sets no limit of its own or asks for more than
its quota has left, so that the engine ends the answer there and says so (`finish_reason: length`). Nothing else of a
body is changed for a key's rules."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_proxy.common.errors import InvalidRequest


def with_limit(body: bytes, fields: Iterable[str], tokens: int) -> bytes:
    """The JSON object with the fields appended: of two equal ones engines take the last. Raises InvalidRequest for
    what is no JSON object in UTF-8, which is not let through unlimited."""
    text = body.rstrip(b" \t\r\n")
    if text[-1:] != b"}" or text.lstrip(b" \t\r\n")[:1] != b"{":
        raise InvalidRequest("The request body must be a JSON object in UTF-8.")
    head = text[:-1].rstrip(b" \t\r\n")
    comma = b"" if head.endswith(b"{") else b","
    return b"%b%b%b}" % (head, comma, b",".join(b'"%b":%d' % (field.encode(), tokens) for field in fields))

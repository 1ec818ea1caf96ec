"""The longest answer that a key may have, written into a request that sets no limit of its own, so that the engine
ends the answer there and says so (`finish_reason: length`). Nothing else of a body is ever changed."""

from __future__ import annotations

from vllm_proxy.common.errors import InvalidRequest


def with_limit(body: bytes, field: str, tokens: int) -> bytes:
    """The JSON object with the field appended: of two equal ones engines take the last. Raises InvalidRequest for
    what is no JSON object in UTF-8, which is not let through unlimited."""
    text = body.rstrip(b" \t\r\n")
    if text[-1:] != b"}" or text.lstrip(b" \t\r\n")[:1] != b"{":
        raise InvalidRequest("The request body must be a JSON object in UTF-8.")
    head = text[:-1].rstrip(b" \t\r\n")
    comma = b"" if head.endswith(b"{") else b","
    return b'%b%b"%b":%d}' % (head, comma, field.encode(), tokens)

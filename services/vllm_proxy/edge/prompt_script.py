"""What kind of text a request's JSON is, at the cost of a few passes over its beginning in C."""

from __future__ import annotations

from vllm_proxy.api.auth.v1 import auth_pb2

#: How much of a body is looked at.
_SAMPLE_BYTES = 16_384
#: First bytes of UTF-8 characters of three and four bytes.
_WIDE = bytes(range(0xE0, 0xF5))
_WIDE_BYTES = 3
_ESCAPE = b"\\u"
_ESCAPE_BYTES = 6


def script_of(body: bytes) -> auth_pb2.PromptScript:
    sample = body[:_SAMPLE_BYTES]
    if sample.isascii():
        escaped = sample.count(_ESCAPE) * _ESCAPE_BYTES * 2 > len(sample)
        return auth_pb2.PROMPT_SCRIPT_ESCAPED if escaped else auth_pb2.PROMPT_SCRIPT_ASCII
    wide = len(sample) - len(sample.translate(None, _WIDE))
    is_wide = wide * _WIDE_BYTES * 3 > len(sample)
    return auth_pb2.PROMPT_SCRIPT_WIDE if is_wide else auth_pb2.PROMPT_SCRIPT_OTHER

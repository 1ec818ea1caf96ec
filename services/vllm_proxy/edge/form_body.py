"""Peeks at what admission and routing need of a multipart form. The file in it is neither copied nor read."""

from __future__ import annotations

import re

from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.edge.request_body import MAX_MODEL_BYTES, TOKENS_PER_MEDIA, BodyPeek

_BOUNDARY = re.compile(rb"""boundary\s*=\s*(?:"([^"]{1,200})"|([^";,\s]{1,200}))""", re.IGNORECASE)
_IS_MODEL = re.compile(rb""";\s*name\*?\s*=\s*("?)model\1\s*(?:;|\r|$)""", re.IGNORECASE)
#: A form with more is refused: an engine might find the model's name where nobody looked.
MAX_PARTS = 64
MAX_PART_HEAD_BYTES = 4096


def model_span(body: bytes, content_type: bytes) -> tuple[int, int] | None:
    """Where the value of the form's last `model` field (the one that engines take) begins and ends. Raises
    InvalidRequest."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return None
    delimiter = b"--" + (found[1] or found[2])
    span = None
    at = body.find(delimiter)
    for _ in range(MAX_PARTS):
        start = at + len(delimiter)
        head_end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD_BYTES) if at >= 0 else -1
        if head_end < 0:
            return span
        at = body.find(b"\r\n" + delimiter, head_end + 2)
        if at < 0:
            return span
        if _IS_MODEL.search(body, start, head_end):
            span = (head_end + 4, at)
        at += 2
    raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")


def peek_form(body: bytes, content_type: bytes) -> BodyPeek:
    """What a form says. Raises InvalidRequest."""
    span = model_span(body, content_type)
    model = None
    if span is not None and span[1] - span[0] <= MAX_MODEL_BYTES:
        model = body[slice(*span)].decode("utf-8", "replace") or None
    return BodyPeek(model=model, prompt_tokens=TOKENS_PER_MEDIA)

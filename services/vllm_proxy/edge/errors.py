"""The one place where an error becomes HTTP: status, headers and OpenAI's JSON body."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any

import orjson

from vllm_proxy.common.errors import InternalError, QuotaExceeded, RateLimited, ServiceError

log = logging.getLogger(__name__)

HeaderList = list[tuple[bytes, bytes]]


def error_object(error: ServiceError) -> dict[str, Any]:
    """OpenAI's `{"error": {...}}`. The code of a refusal by a limit names the limit."""
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.metadata.get("param"),
            "code": error.metadata.get("limit", error.openai_code),
        }
    }


def error_body(error: ServiceError) -> bytes:
    return orjson.dumps(error_object(error))


def error_event(error: ServiceError) -> bytes:
    """The server-sent event that ends a stream which cannot go on. No `[DONE]` follows it."""
    return b"data: " + error_body(error) + b"\n\n"


def error_headers(error: ServiceError) -> HeaderList:
    """The headers that only errors have: whether and when to try again, and what kind of key is wanted."""
    headers: HeaderList = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after_s * 1000))))
    elif isinstance(error, QuotaExceeded):
        headers.append((b"x-should-retry", b"false"))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RateLimited) and (limit := error.metadata.get("limit")):
        headers.append((b"x-ratelimit-reason", limit.encode("ascii", "replace")))
    return headers


def error_response(error: ServiceError, extra: HeaderList | None = None) -> tuple[int, HeaderList, bytes]:
    """Status, all headers and body."""
    body = error_body(error)
    headers: HeaderList = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *error_headers(error),
        *(extra or ()),
    ]
    return error.http_status, headers, body


def unexpected(error: Exception, request_id: str) -> InternalError:
    """Logs a fault of ours under an id; the client gets the id and nothing else."""
    error_id = secrets.token_hex(4)
    log.error("unexpected error", exc_info=error, extra={"error_id": error_id, "request_id": request_id})
    return InternalError(f"The service met an unexpected fault (error id {error_id}).")

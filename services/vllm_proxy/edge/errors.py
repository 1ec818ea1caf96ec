"""The one place where an error becomes HTTP: status, headers and a JSON body in OpenAI's or Anthropic's shape."""

from __future__ import annotations

import logging
import math
import secrets
from typing import Any

import orjson

from vllm_proxy.common.engine_routes import ErrorShape
from vllm_proxy.common.errors import InternalError, QuotaExceeded, RateLimited, ServiceError

log = logging.getLogger(__name__)

HeaderList = list[tuple[bytes, bytes]]


def error_object(error: ServiceError) -> dict[str, Any]:
    """OpenAI's `{"error": {...}}`. The code of a refusal by a limit names the limit."""
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.metadata.get("param", error.openai_param),
            "code": error.metadata.get("limit", error.openai_code),
        }
    }


#: Anthropic's error types (https://docs.anthropic.com/en/api/errors); the status decides.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: ServiceError, shape: ErrorShape = ErrorShape.OPENAI) -> bytes:
    if shape is ErrorShape.OPENAI:
        return orjson.dumps(error_object(error))
    default = "invalid_request_error" if error.http_status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.http_status, default)
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": error.message}})


def error_event(error: ServiceError, shape: ErrorShape = ErrorShape.OPENAI) -> bytes:
    """The server-sent event that ends a stream which cannot go on. No `[DONE]` follows it."""
    name = b"event: error\n" if shape is ErrorShape.ANTHROPIC else b""
    return name + b"data: " + error_body(error, shape) + b"\n\n"


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


def error_response(
    error: ServiceError, extra: HeaderList | None = None, shape: ErrorShape = ErrorShape.OPENAI
) -> tuple[int, HeaderList, bytes]:
    """Status, all headers and body."""
    body = error_body(error, shape)
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

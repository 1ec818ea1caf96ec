"""Every error that one service may tell another or a client.

    ServiceError
    ├── InvalidRequest          the request itself is wrong; the same one will fail again
    │   ├── RequestTooLarge
    │   ├── HeadersTooLarge
    │   ├── BodyTooSlow
    │   ├── TooManyResponseTokens   more than the key may ask for in one answer
    │   ├── UnsupportedCoding   a Content-Encoding that is not understood
    │   ├── UnprocessableRequest    a body or parameter that does not fit its route's schema
    │   └── InvalidAdapter
    ├── InvalidApiKey           missing, unknown
    │   ├── KeyDisabled
    │   └── KeyExpired
    ├── PermissionDenied        a good key that may not do this
    │   └── ModelNotAllowed
    ├── NotFound
    │   ├── ModelNotFound
    │   ├── AdapterNotFound
    │   ├── KeyNotFound
    │   └── RouteNotFound
    ├── MethodNotAllowed
    ├── AdapterExists
    ├── KeyIsDeclared           the keys file owns it; change it there
    ├── KeyIsRevoked            nothing brings it back; make another
    ├── RateLimited             waiting helps
    │   └── QuotaExceeded       waiting does not
    ├── RequestTimeout          the request's own time is over
    ├── ClientStalled           the client read nothing for client_stall_timeout_s
    ├── NoCapacity              live, but full or draining; try again
    ├── EngineUnavailable       no engine can serve this now
    │   └── EngineFailed        the engine died while serving it
    ├── AuthUnavailable         the auth service cannot be asked
    ├── RouterUnavailable
    └── InternalError           a fault of ours; the log has the traceback under the error id

`reason` is the identity on the wire, `grpc_code` and `http_status` its two faces. Each class is an action that
a caller can take; text is for people only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import grpc


class ServiceError(Exception):
    """Base of all. `message` is safe to show to a stranger; `metadata` are short strings for programs."""

    reason: ClassVar[str] = "INTERNAL"
    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    #: OpenAI's `error.type`.
    openai_type: ClassVar[str] = "internal_error"
    #: OpenAI's `error.code`, unless metadata has one.
    openai_code: ClassVar[str | None] = None
    #: OpenAI's `error.param`, unless metadata has one: the field that is wrong.
    openai_param: ClassVar[str | None] = None
    default_message: ClassVar[str] = "The service met an unexpected fault."

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.message = message or self.default_message
        self.retry_after_s = retry_after_s
        self.metadata = metadata or {}
        super().__init__(self.message)


class InvalidRequest(ServiceError):
    reason = "INVALID_REQUEST"
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    openai_type = "invalid_request_error"
    default_message = "The request is not valid."


class RequestTooLarge(InvalidRequest):
    reason = "REQUEST_TOO_LARGE"
    http_status = 413
    openai_code = "request_too_large"
    default_message = "The request body is too large."


class HeadersTooLarge(InvalidRequest):
    reason = "HEADERS_TOO_LARGE"
    http_status = 431
    openai_code = "headers_too_large"
    default_message = "The request headers are too large."


class BodyTooSlow(InvalidRequest):
    reason = "BODY_TOO_SLOW"
    http_status = 408
    openai_code = "request_body_timeout"
    default_message = "The request body did not arrive in time."


class TooManyResponseTokens(InvalidRequest):
    reason = "TOO_MANY_RESPONSE_TOKENS"
    openai_code = "max_response_tokens"
    openai_param = "max_tokens"
    default_message = "This API key may not ask for so many tokens in one answer."


class UnsupportedCoding(InvalidRequest):
    reason = "UNSUPPORTED_CODING"
    http_status = 415
    openai_code = "unsupported_content_encoding"
    default_message = "The request body's content encoding is not understood."


class UnprocessableRequest(InvalidRequest):
    reason = "UNPROCESSABLE_REQUEST"
    http_status = 422
    openai_code = "validation_error"


class InvalidAdapter(InvalidRequest):
    reason = "INVALID_ADAPTER"
    openai_code = "invalid_adapter"
    default_message = "The adapter cannot be loaded."


class InvalidApiKey(ServiceError):
    reason = "INVALID_API_KEY"
    grpc_code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    openai_type = "invalid_request_error"
    openai_code = "invalid_api_key"
    default_message = "Incorrect API key provided."


class KeyDisabled(InvalidApiKey):
    reason = "KEY_DISABLED"
    openai_code = "key_disabled"
    default_message = "This API key is disabled."


class KeyExpired(InvalidApiKey):
    reason = "KEY_EXPIRED"
    openai_code = "key_expired"
    default_message = "This API key has expired."


class PermissionDenied(ServiceError):
    reason = "PERMISSION_DENIED"
    grpc_code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    openai_type = "permission_error"
    openai_code = "permission_denied"
    default_message = "This API key may not do that."


class ModelNotAllowed(PermissionDenied):
    reason = "MODEL_NOT_ALLOWED"
    openai_code = "model_not_allowed"
    openai_param = "model"
    default_message = "This API key may not use that model."


class NotFound(ServiceError):
    reason = "NOT_FOUND"
    grpc_code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    openai_type = "NotFoundError"
    default_message = "Not found."


class ModelNotFound(NotFound):
    reason = "MODEL_NOT_FOUND"
    openai_code = "model_not_found"
    default_message = "The model does not exist."


class AdapterNotFound(NotFound):
    reason = "ADAPTER_NOT_FOUND"
    openai_code = "adapter_not_found"
    default_message = "The adapter does not exist."


class KeyNotFound(NotFound):
    reason = "KEY_NOT_FOUND"
    openai_type = "invalid_request_error"
    openai_code = "key_not_found"
    default_message = "There is no key of this id."


class RouteNotFound(NotFound):
    reason = "ROUTE_NOT_FOUND"
    openai_type = "invalid_request_error"
    openai_code = "unknown_url"
    default_message = "Unknown request URL."


class MethodNotAllowed(ServiceError):
    reason = "METHOD_NOT_ALLOWED"
    grpc_code = grpc.StatusCode.UNIMPLEMENTED
    http_status = 405
    openai_type = "invalid_request_error"
    openai_code = "method_not_allowed"
    default_message = "This URL does not take that method."


class AdapterExists(ServiceError):
    reason = "ADAPTER_EXISTS"
    grpc_code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 400
    openai_type = "invalid_request_error"
    openai_code = "adapter_exists"
    default_message = "An adapter of this name is loaded already."


class KeyIsDeclared(ServiceError):
    reason = "KEY_IS_DECLARED"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    openai_type = "invalid_request_error"
    openai_code = "key_is_declared"
    default_message = "This key is declared in the keys file; change it there and reload."


class KeyIsRevoked(ServiceError):
    reason = "KEY_IS_REVOKED"
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    openai_type = "invalid_request_error"
    openai_code = "key_is_revoked"
    default_message = "This key is revoked for good; make another."


class RateLimited(ServiceError):
    reason = "RATE_LIMITED"
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    openai_type = "rate_limit_error"
    openai_code = "rate_limit_exceeded"
    default_message = "A rate limit was reached."


class QuotaExceeded(RateLimited):
    reason = "QUOTA_EXCEEDED"
    openai_type = "insufficient_quota"
    openai_code = "quota"
    default_message = "The token quota of this key is used up."


class RequestTimeout(ServiceError):
    reason = "REQUEST_TIMEOUT"
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    openai_type = "timeout_error"
    openai_code = "request_timeout"
    default_message = "The request took longer than it may."


class ClientStalled(ServiceError):
    reason = "CLIENT_STALLED"
    grpc_code = grpc.StatusCode.ABORTED
    http_status = 408
    openai_type = "timeout_error"
    openai_code = "client_stalled"
    default_message = "The client stopped reading."


class NoCapacity(ServiceError):
    reason = "NO_CAPACITY"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    openai_type = "service_unavailable_error"
    openai_code = "no_capacity"
    default_message = "No capacity at the moment."


class EngineUnavailable(ServiceError):
    reason = "ENGINE_UNAVAILABLE"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    openai_type = "service_unavailable_error"
    openai_code = "engine_unavailable"
    default_message = "No engine can serve this model at the moment."


class EngineFailed(EngineUnavailable):
    reason = "ENGINE_FAILED"
    http_status = 502
    openai_code = "engine_failed"
    default_message = "The engine failed while it served this request."


class AuthUnavailable(ServiceError):
    reason = "AUTH_UNAVAILABLE"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    openai_type = "service_unavailable_error"
    openai_code = "auth_unavailable"
    default_message = "The auth service cannot be reached."


class RouterUnavailable(ServiceError):
    reason = "ROUTER_UNAVAILABLE"
    grpc_code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    openai_type = "service_unavailable_error"
    openai_code = "router_unavailable"
    default_message = "The router cannot be reached."


class InternalError(ServiceError):
    reason = "INTERNAL"


def subclasses(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Every concrete error class, without the root."""
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)


def from_reason(
    reason: str,
    message: str,
    *,
    retry_after_s: float | None = None,
    metadata: dict[str, str] | None = None,
) -> ServiceError:
    """Rebuilds an error from its wire form; an unknown reason (a newer peer) is an InternalError."""
    by_reason = {cls.reason: cls for cls in subclasses()}
    cls = by_reason.get(reason, InternalError)
    return cls(message, retry_after_s=retry_after_s, metadata=metadata)

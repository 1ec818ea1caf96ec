from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_INFERENCE: _ClassVar[Operation]
    OPERATION_READ: _ClassVar[Operation]
    OPERATION_ADMIN: _ClassVar[Operation]

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_EDGE: _ClassVar[Source]
    SOURCE_HOST: _ClassVar[Source]
    SOURCE_TOOL: _ClassVar[Source]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_FINISHED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_NOT_SENT: _ClassVar[Outcome]
OPERATION_UNSPECIFIED: Operation
OPERATION_INFERENCE: Operation
OPERATION_READ: Operation
OPERATION_ADMIN: Operation
SOURCE_UNSPECIFIED: Source
SOURCE_EDGE: Source
SOURCE_HOST: Source
SOURCE_TOOL: Source
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_FINISHED: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_NOT_SENT: Outcome

class SessionRequest(_message.Message):
    __slots__ = ("hello", "admits", "settles", "renew_lease_ids")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ADMITS_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    RENEW_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    hello: SessionHello
    admits: _containers.RepeatedCompositeFieldContainer[AdmitRequest]
    settles: _containers.RepeatedCompositeFieldContainer[SettleRequest]
    renew_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hello: _Optional[_Union[SessionHello, _Mapping]] = ..., admits: _Optional[_Iterable[_Union[AdmitRequest, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[SettleRequest, _Mapping]]] = ..., renew_lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SessionHello(_message.Message):
    __slots__ = ("owner_id", "source")
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    owner_id: str
    source: Source
    def __init__(self, owner_id: _Optional[str] = ..., source: _Optional[_Union[Source, str]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("admits", "settles", "lease_ttl_ms")
    ADMITS_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    admits: _containers.RepeatedCompositeFieldContainer[AdmitResponse]
    settles: _containers.RepeatedCompositeFieldContainer[SettleResponse]
    lease_ttl_ms: int
    def __init__(self, admits: _Optional[_Iterable[_Union[AdmitResponse, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[SettleResponse, _Mapping]]] = ..., lease_ttl_ms: _Optional[int] = ...) -> None: ...

class AdmitRequest(_message.Message):
    __slots__ = ("seq", "api_key_sha256", "operation", "request_id", "model", "prompt_tokens_estimate", "response_tokens", "choices", "client_is_local", "owner_id")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    API_KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_IS_LOCAL_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    seq: int
    api_key_sha256: bytes
    operation: Operation
    request_id: str
    model: str
    prompt_tokens_estimate: int
    response_tokens: int
    choices: int
    client_is_local: bool
    owner_id: str
    def __init__(self, seq: _Optional[int] = ..., api_key_sha256: _Optional[bytes] = ..., operation: _Optional[_Union[Operation, str]] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens_estimate: _Optional[int] = ..., response_tokens: _Optional[int] = ..., choices: _Optional[int] = ..., client_is_local: _Optional[bool] = ..., owner_id: _Optional[str] = ...) -> None: ...

class AdmitResponse(_message.Message):
    __slots__ = ("seq", "admitted", "lease_id", "key_id", "user", "reason", "limit_name", "message", "retry_after_ms", "requests", "tokens", "quota_remaining", "reserved_tokens")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_REMAINING_FIELD_NUMBER: _ClassVar[int]
    RESERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    admitted: bool
    lease_id: str
    key_id: str
    user: str
    reason: str
    limit_name: str
    message: str
    retry_after_ms: int
    requests: RateLimitState
    tokens: RateLimitState
    quota_remaining: int
    reserved_tokens: int
    def __init__(self, seq: _Optional[int] = ..., admitted: _Optional[bool] = ..., lease_id: _Optional[str] = ..., key_id: _Optional[str] = ..., user: _Optional[str] = ..., reason: _Optional[str] = ..., limit_name: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., requests: _Optional[_Union[RateLimitState, _Mapping]] = ..., tokens: _Optional[_Union[RateLimitState, _Mapping]] = ..., quota_remaining: _Optional[int] = ..., reserved_tokens: _Optional[int] = ...) -> None: ...

class RateLimitState(_message.Message):
    __slots__ = ("limit", "remaining", "reset_ms")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    RESET_MS_FIELD_NUMBER: _ClassVar[int]
    limit: int
    remaining: int
    reset_ms: int
    def __init__(self, limit: _Optional[int] = ..., remaining: _Optional[int] = ..., reset_ms: _Optional[int] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("seq", "lease_id", "attempt", "source", "outcome", "usage", "model", "host")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    seq: int
    lease_id: str
    attempt: int
    source: Source
    outcome: Outcome
    usage: TokenUsage
    model: str
    host: str
    def __init__(self, seq: _Optional[int] = ..., lease_id: _Optional[str] = ..., attempt: _Optional[int] = ..., source: _Optional[_Union[Source, str]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., usage: _Optional[_Union[TokenUsage, _Mapping]] = ..., model: _Optional[str] = ..., host: _Optional[str] = ...) -> None: ...

class TokenUsage(_message.Message):
    __slots__ = ("prompt_tokens", "cached_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ("seq", "applied")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    applied: bool
    def __init__(self, seq: _Optional[int] = ..., applied: _Optional[bool] = ...) -> None: ...

class ReloadKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadKeysResponse(_message.Message):
    __slots__ = ("keys", "problems")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    keys: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    def __init__(self, keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("key_id", "prefix", "user", "enabled", "quota", "prompt_tokens", "completion_tokens", "requests", "running", "reserved_tokens")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    RESERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    prefix: str
    user: str
    enabled: bool
    quota: int
    prompt_tokens: int
    completion_tokens: int
    requests: int
    running: int
    reserved_tokens: int
    def __init__(self, key_id: _Optional[str] = ..., prefix: _Optional[str] = ..., user: _Optional[str] = ..., enabled: _Optional[bool] = ..., quota: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., requests: _Optional[int] = ..., running: _Optional[int] = ..., reserved_tokens: _Optional[int] = ...) -> None: ...

class ListLeasesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListLeasesResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "key_id", "owner_id", "request_id", "reserved_tokens", "opened_at_ms", "expires_at_ms")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESERVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    key_id: str
    owner_id: str
    request_id: str
    reserved_tokens: int
    opened_at_ms: int
    expires_at_ms: int
    def __init__(self, lease_id: _Optional[str] = ..., key_id: _Optional[str] = ..., owner_id: _Optional[str] = ..., request_id: _Optional[str] = ..., reserved_tokens: _Optional[int] = ..., opened_at_ms: _Optional[int] = ..., expires_at_ms: _Optional[int] = ...) -> None: ...

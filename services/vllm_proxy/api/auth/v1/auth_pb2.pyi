from google.protobuf import field_mask_pb2 as _field_mask_pb2
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

class PromptScript(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_SCRIPT_UNSPECIFIED: _ClassVar[PromptScript]
    PROMPT_SCRIPT_ASCII: _ClassVar[PromptScript]
    PROMPT_SCRIPT_WIDE: _ClassVar[PromptScript]
    PROMPT_SCRIPT_OTHER: _ClassVar[PromptScript]
    PROMPT_SCRIPT_ESCAPED: _ClassVar[PromptScript]

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

class QuotaPeriod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUOTA_PERIOD_UNSPECIFIED: _ClassVar[QuotaPeriod]
    QUOTA_PERIOD_TOTAL: _ClassVar[QuotaPeriod]
    QUOTA_PERIOD_DAY: _ClassVar[QuotaPeriod]
    QUOTA_PERIOD_MONTH: _ClassVar[QuotaPeriod]

class KeySource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_SOURCE_UNSPECIFIED: _ClassVar[KeySource]
    KEY_SOURCE_DECLARED: _ClassVar[KeySource]
    KEY_SOURCE_CREATED: _ClassVar[KeySource]

class KeyState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_STATE_UNSPECIFIED: _ClassVar[KeyState]
    KEY_STATE_ACTIVE: _ClassVar[KeyState]
    KEY_STATE_DISABLED: _ClassVar[KeyState]
    KEY_STATE_EXPIRED: _ClassVar[KeyState]
    KEY_STATE_REVOKED: _ClassVar[KeyState]

class UsageGroup(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USAGE_GROUP_UNSPECIFIED: _ClassVar[UsageGroup]
    USAGE_GROUP_KEY: _ClassVar[UsageGroup]
    USAGE_GROUP_USER: _ClassVar[UsageGroup]
    USAGE_GROUP_MODEL: _ClassVar[UsageGroup]
    USAGE_GROUP_BASE_MODEL: _ClassVar[UsageGroup]
    USAGE_GROUP_HOUR: _ClassVar[UsageGroup]
    USAGE_GROUP_DAY: _ClassVar[UsageGroup]
    USAGE_GROUP_ADAPTER: _ClassVar[UsageGroup]
OPERATION_UNSPECIFIED: Operation
OPERATION_INFERENCE: Operation
OPERATION_READ: Operation
OPERATION_ADMIN: Operation
PROMPT_SCRIPT_UNSPECIFIED: PromptScript
PROMPT_SCRIPT_ASCII: PromptScript
PROMPT_SCRIPT_WIDE: PromptScript
PROMPT_SCRIPT_OTHER: PromptScript
PROMPT_SCRIPT_ESCAPED: PromptScript
SOURCE_UNSPECIFIED: Source
SOURCE_EDGE: Source
SOURCE_HOST: Source
SOURCE_TOOL: Source
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_FINISHED: Outcome
OUTCOME_CANCELLED: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_NOT_SENT: Outcome
QUOTA_PERIOD_UNSPECIFIED: QuotaPeriod
QUOTA_PERIOD_TOTAL: QuotaPeriod
QUOTA_PERIOD_DAY: QuotaPeriod
QUOTA_PERIOD_MONTH: QuotaPeriod
KEY_SOURCE_UNSPECIFIED: KeySource
KEY_SOURCE_DECLARED: KeySource
KEY_SOURCE_CREATED: KeySource
KEY_STATE_UNSPECIFIED: KeyState
KEY_STATE_ACTIVE: KeyState
KEY_STATE_DISABLED: KeyState
KEY_STATE_EXPIRED: KeyState
KEY_STATE_REVOKED: KeyState
USAGE_GROUP_UNSPECIFIED: UsageGroup
USAGE_GROUP_KEY: UsageGroup
USAGE_GROUP_USER: UsageGroup
USAGE_GROUP_MODEL: UsageGroup
USAGE_GROUP_BASE_MODEL: UsageGroup
USAGE_GROUP_HOUR: UsageGroup
USAGE_GROUP_DAY: UsageGroup
USAGE_GROUP_ADAPTER: UsageGroup

class SessionRequest(_message.Message):
    __slots__ = ("hello", "admits", "settles", "renew_lease_ids", "cancel_admit_seqs", "ping")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ADMITS_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    RENEW_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_ADMIT_SEQS_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    hello: SessionHello
    admits: _containers.RepeatedCompositeFieldContainer[AdmitRequest]
    settles: _containers.RepeatedCompositeFieldContainer[SettleRequest]
    renew_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    cancel_admit_seqs: _containers.RepeatedScalarFieldContainer[int]
    ping: bool
    def __init__(self, hello: _Optional[_Union[SessionHello, _Mapping]] = ..., admits: _Optional[_Iterable[_Union[AdmitRequest, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[SettleRequest, _Mapping]]] = ..., renew_lease_ids: _Optional[_Iterable[str]] = ..., cancel_admit_seqs: _Optional[_Iterable[int]] = ..., ping: _Optional[bool] = ...) -> None: ...

class SessionHello(_message.Message):
    __slots__ = ("owner_id", "source")
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    owner_id: str
    source: Source
    def __init__(self, owner_id: _Optional[str] = ..., source: _Optional[_Union[Source, str]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("admits", "settles", "lease_ttl_ms", "pong")
    ADMITS_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    admits: _containers.RepeatedCompositeFieldContainer[AdmitResponse]
    settles: _containers.RepeatedCompositeFieldContainer[SettleResponse]
    lease_ttl_ms: int
    pong: bool
    def __init__(self, admits: _Optional[_Iterable[_Union[AdmitResponse, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[SettleResponse, _Mapping]]] = ..., lease_ttl_ms: _Optional[int] = ..., pong: _Optional[bool] = ...) -> None: ...

class AdmitRequest(_message.Message):
    __slots__ = ("seq", "api_key_sha256", "operation", "request_id", "model", "prompt_tokens_estimate", "response_tokens", "choices", "client_is_local", "owner_id", "prompt_bytes", "prompt_script", "names_no_model", "traceparent")
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
    PROMPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SCRIPT_FIELD_NUMBER: _ClassVar[int]
    NAMES_NO_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
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
    prompt_bytes: int
    prompt_script: PromptScript
    names_no_model: bool
    traceparent: str
    def __init__(self, seq: _Optional[int] = ..., api_key_sha256: _Optional[bytes] = ..., operation: _Optional[_Union[Operation, str]] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_tokens_estimate: _Optional[int] = ..., response_tokens: _Optional[int] = ..., choices: _Optional[int] = ..., client_is_local: _Optional[bool] = ..., owner_id: _Optional[str] = ..., prompt_bytes: _Optional[int] = ..., prompt_script: _Optional[_Union[PromptScript, str]] = ..., names_no_model: _Optional[bool] = ..., traceparent: _Optional[str] = ...) -> None: ...

class AdmitResponse(_message.Message):
    __slots__ = ("seq", "admitted", "lease_id", "key_id", "user", "reason", "limit_name", "message", "retry_after_ms", "requests", "tokens", "quota_remaining", "reserved_tokens", "limit_scope", "max_response_tokens", "priority", "models")
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
    LIMIT_SCOPE_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
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
    limit_scope: str
    max_response_tokens: int
    priority: int
    models: ModelPatterns
    def __init__(self, seq: _Optional[int] = ..., admitted: _Optional[bool] = ..., lease_id: _Optional[str] = ..., key_id: _Optional[str] = ..., user: _Optional[str] = ..., reason: _Optional[str] = ..., limit_name: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., requests: _Optional[_Union[RateLimitState, _Mapping]] = ..., tokens: _Optional[_Union[RateLimitState, _Mapping]] = ..., quota_remaining: _Optional[int] = ..., reserved_tokens: _Optional[int] = ..., limit_scope: _Optional[str] = ..., max_response_tokens: _Optional[int] = ..., priority: _Optional[int] = ..., models: _Optional[_Union[ModelPatterns, _Mapping]] = ...) -> None: ...

class ModelPatterns(_message.Message):
    __slots__ = ("patterns",)
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    patterns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, patterns: _Optional[_Iterable[str]] = ...) -> None: ...

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
    __slots__ = ("seq", "lease_id", "attempt", "source", "outcome", "usage", "model", "host", "base_model", "traceparent")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    lease_id: str
    attempt: int
    source: Source
    outcome: Outcome
    usage: TokenUsage
    model: str
    host: str
    base_model: str
    traceparent: str
    def __init__(self, seq: _Optional[int] = ..., lease_id: _Optional[str] = ..., attempt: _Optional[int] = ..., source: _Optional[_Union[Source, str]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., usage: _Optional[_Union[TokenUsage, _Mapping]] = ..., model: _Optional[str] = ..., host: _Optional[str] = ..., base_model: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("actor",)
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    actor: Actor
    def __init__(self, actor: _Optional[_Union[Actor, _Mapping]] = ...) -> None: ...

class ReloadKeysResponse(_message.Message):
    __slots__ = ("keys", "problems")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    keys: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class Actor(_message.Message):
    __slots__ = ("key_id", "user", "client_address", "request_id")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    user: str
    client_address: str
    request_id: str
    def __init__(self, key_id: _Optional[str] = ..., user: _Optional[str] = ..., client_address: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class KeySpec(_message.Message):
    __slots__ = ("user", "name", "enabled", "quota", "quota_period", "rate_limit", "max_response_tokens", "models", "model_limits", "expires_at_ms", "priority", "admission_wait_ms")
    class ModelLimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: KeyLimits
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[KeyLimits, _Mapping]] = ...) -> None: ...
    USER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    QUOTA_PERIOD_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MODEL_LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    user: str
    name: str
    enabled: bool
    quota: int
    quota_period: QuotaPeriod
    rate_limit: KeyLimits
    max_response_tokens: int
    models: ModelPatterns
    model_limits: _containers.MessageMap[str, KeyLimits]
    expires_at_ms: int
    priority: str
    admission_wait_ms: int
    def __init__(self, user: _Optional[str] = ..., name: _Optional[str] = ..., enabled: _Optional[bool] = ..., quota: _Optional[int] = ..., quota_period: _Optional[_Union[QuotaPeriod, str]] = ..., rate_limit: _Optional[_Union[KeyLimits, _Mapping]] = ..., max_response_tokens: _Optional[int] = ..., models: _Optional[_Union[ModelPatterns, _Mapping]] = ..., model_limits: _Optional[_Mapping[str, KeyLimits]] = ..., expires_at_ms: _Optional[int] = ..., priority: _Optional[str] = ..., admission_wait_ms: _Optional[int] = ...) -> None: ...

class KeyLimits(_message.Message):
    __slots__ = ("qps", "concurrent", "tokens_per_minute", "max_response_tokens")
    QPS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    qps: float
    concurrent: int
    tokens_per_minute: int
    max_response_tokens: int
    def __init__(self, qps: _Optional[float] = ..., concurrent: _Optional[int] = ..., tokens_per_minute: _Optional[int] = ..., max_response_tokens: _Optional[int] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("key_id", "prefix", "user", "enabled", "quota", "prompt_tokens", "completion_tokens", "requests", "running", "reserved_tokens", "spec", "source", "state", "created_at_ms", "created_by", "last_used_at_ms", "old_secret_expires_at_ms", "revoked_at_ms", "quota_used", "quota_resets_at_ms")
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
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    OLD_SECRET_EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_USED_FIELD_NUMBER: _ClassVar[int]
    QUOTA_RESETS_AT_MS_FIELD_NUMBER: _ClassVar[int]
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
    spec: KeySpec
    source: KeySource
    state: KeyState
    created_at_ms: int
    created_by: str
    last_used_at_ms: int
    old_secret_expires_at_ms: int
    revoked_at_ms: int
    quota_used: int
    quota_resets_at_ms: int
    def __init__(self, key_id: _Optional[str] = ..., prefix: _Optional[str] = ..., user: _Optional[str] = ..., enabled: _Optional[bool] = ..., quota: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., requests: _Optional[int] = ..., running: _Optional[int] = ..., reserved_tokens: _Optional[int] = ..., spec: _Optional[_Union[KeySpec, _Mapping]] = ..., source: _Optional[_Union[KeySource, str]] = ..., state: _Optional[_Union[KeyState, str]] = ..., created_at_ms: _Optional[int] = ..., created_by: _Optional[str] = ..., last_used_at_ms: _Optional[int] = ..., old_secret_expires_at_ms: _Optional[int] = ..., revoked_at_ms: _Optional[int] = ..., quota_used: _Optional[int] = ..., quota_resets_at_ms: _Optional[int] = ...) -> None: ...

class CreateKeyRequest(_message.Message):
    __slots__ = ("spec", "actor")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    spec: KeySpec
    actor: Actor
    def __init__(self, spec: _Optional[_Union[KeySpec, _Mapping]] = ..., actor: _Optional[_Union[Actor, _Mapping]] = ...) -> None: ...

class CreateKeyResponse(_message.Message):
    __slots__ = ("key", "secret")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    key: Key
    secret: str
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class GetKeyRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class GetKeyResponse(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: Key
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "user", "show_revoked")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    SHOW_REVOKED_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    user: str
    show_revoked: bool
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., user: _Optional[str] = ..., show_revoked: _Optional[bool] = ...) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("keys", "next_page_token")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    next_page_token: str
    def __init__(self, keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateKeyRequest(_message.Message):
    __slots__ = ("key_id", "spec", "update_mask", "actor")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    spec: KeySpec
    update_mask: _field_mask_pb2.FieldMask
    actor: Actor
    def __init__(self, key_id: _Optional[str] = ..., spec: _Optional[_Union[KeySpec, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., actor: _Optional[_Union[Actor, _Mapping]] = ...) -> None: ...

class UpdateKeyResponse(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: Key
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ...) -> None: ...

class DeleteKeyRequest(_message.Message):
    __slots__ = ("key_id", "actor")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    actor: Actor
    def __init__(self, key_id: _Optional[str] = ..., actor: _Optional[_Union[Actor, _Mapping]] = ...) -> None: ...

class DeleteKeyResponse(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: Key
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ...) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ("key_id", "overlap_ms", "actor")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_MS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    overlap_ms: int
    actor: Actor
    def __init__(self, key_id: _Optional[str] = ..., overlap_ms: _Optional[int] = ..., actor: _Optional[_Union[Actor, _Mapping]] = ...) -> None: ...

class RotateKeyResponse(_message.Message):
    __slots__ = ("key", "secret")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    key: Key
    secret: str
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class QueryUsageRequest(_message.Message):
    __slots__ = ("from_ms", "to_ms", "group_by", "key_id", "user", "model", "page_size", "page_token")
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    from_ms: int
    to_ms: int
    group_by: _containers.RepeatedScalarFieldContainer[UsageGroup]
    key_id: str
    user: str
    model: str
    page_size: int
    page_token: str
    def __init__(self, from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ..., group_by: _Optional[_Iterable[_Union[UsageGroup, str]]] = ..., key_id: _Optional[str] = ..., user: _Optional[str] = ..., model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class QueryUsageResponse(_message.Message):
    __slots__ = ("rows", "next_page_token", "from_ms", "to_ms")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    next_page_token: str
    from_ms: int
    to_ms: int
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("key_id", "user", "model", "base_model", "start_ms", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "adapter", "charged_tokens")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CHARGED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    user: str
    model: str
    base_model: str
    start_ms: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    adapter: str
    charged_tokens: int
    def __init__(self, key_id: _Optional[str] = ..., user: _Optional[str] = ..., model: _Optional[str] = ..., base_model: _Optional[str] = ..., start_ms: _Optional[int] = ..., requests: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., adapter: _Optional[str] = ..., charged_tokens: _Optional[int] = ...) -> None: ...

class GetOwnUsageRequest(_message.Message):
    __slots__ = ("api_key_sha256", "client_is_local", "from_ms", "to_ms")
    API_KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    CLIENT_IS_LOCAL_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    api_key_sha256: bytes
    client_is_local: bool
    from_ms: int
    to_ms: int
    def __init__(self, api_key_sha256: _Optional[bytes] = ..., client_is_local: _Optional[bool] = ..., from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ...) -> None: ...

class GetOwnUsageResponse(_message.Message):
    __slots__ = ("key", "limits", "requests", "tokens", "quota_remaining", "rows", "from_ms", "to_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_REMAINING_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    key: Key
    limits: KeyLimits
    requests: RateLimitState
    tokens: RateLimitState
    quota_remaining: int
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    from_ms: int
    to_ms: int
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ..., limits: _Optional[_Union[KeyLimits, _Mapping]] = ..., requests: _Optional[_Union[RateLimitState, _Mapping]] = ..., tokens: _Optional[_Union[RateLimitState, _Mapping]] = ..., quota_remaining: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ...) -> None: ...

class RecordActionRequest(_message.Message):
    __slots__ = ("actor", "action", "target", "outcome", "detail")
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    actor: Actor
    action: str
    target: str
    outcome: str
    detail: str
    def __init__(self, actor: _Optional[_Union[Actor, _Mapping]] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class RecordActionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAuditLogRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "actor", "action", "target", "from_ms", "to_ms")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    actor: str
    action: str
    target: str
    from_ms: int
    to_ms: int
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ...) -> None: ...

class ListAuditLogResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("at_ms", "actor", "action", "target", "outcome", "detail")
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at_ms: int
    actor: Actor
    action: str
    target: str
    outcome: str
    detail: str
    def __init__(self, at_ms: _Optional[int] = ..., actor: _Optional[_Union[Actor, _Mapping]] = ..., action: _Optional[str] = ..., target: _Optional[str] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

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

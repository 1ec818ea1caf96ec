from vllm_proxy.api.auth.v1 import auth_pb2 as _auth_pb2
from vllm_proxy.api.router.v1 import router_pb2 as _router_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRequest(_message.Message):
    __slots__ = ("hello", "starts", "bodies", "credit_stream_ids", "credit_bytes", "cancels", "end_acks")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    CREDIT_STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    END_ACKS_FIELD_NUMBER: _ClassVar[int]
    hello: SessionHello
    starts: _containers.RepeatedCompositeFieldContainer[StartFrame]
    bodies: _containers.RepeatedCompositeFieldContainer[BodyFrame]
    credit_stream_ids: _containers.RepeatedScalarFieldContainer[int]
    credit_bytes: _containers.RepeatedScalarFieldContainer[int]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    end_acks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hello: _Optional[_Union[SessionHello, _Mapping]] = ..., starts: _Optional[_Iterable[_Union[StartFrame, _Mapping]]] = ..., bodies: _Optional[_Iterable[_Union[BodyFrame, _Mapping]]] = ..., credit_stream_ids: _Optional[_Iterable[int]] = ..., credit_bytes: _Optional[_Iterable[int]] = ..., cancels: _Optional[_Iterable[int]] = ..., end_acks: _Optional[_Iterable[int]] = ...) -> None: ...

class SessionHello(_message.Message):
    __slots__ = ("edge_id",)
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    edge_id: str
    def __init__(self, edge_id: _Optional[str] = ...) -> None: ...

class StartFrame(_message.Message):
    __slots__ = ("stream_id", "envelope", "body", "body_complete", "credit_bytes")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    BODY_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    envelope: RequestEnvelope
    body: bytes
    body_complete: bool
    credit_bytes: int
    def __init__(self, stream_id: _Optional[int] = ..., envelope: _Optional[_Union[RequestEnvelope, _Mapping]] = ..., body: _Optional[bytes] = ..., body_complete: _Optional[bool] = ..., credit_bytes: _Optional[int] = ...) -> None: ...

class RequestEnvelope(_message.Message):
    __slots__ = ("request_id", "lease_id", "attempt", "method", "path", "query", "headers", "model", "traceparent", "timeout_ms", "key_id", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lease_id: str
    attempt: int
    method: str
    path: str
    query: bytes
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    model: str
    traceparent: str
    timeout_ms: int
    key_id: str
    priority: int
    def __init__(self, request_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., attempt: _Optional[int] = ..., method: _Optional[str] = ..., path: _Optional[str] = ..., query: _Optional[bytes] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., model: _Optional[str] = ..., traceparent: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., key_id: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class BodyFrame(_message.Message):
    __slots__ = ("stream_id", "data", "complete")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    data: bytes
    complete: bool
    def __init__(self, stream_id: _Optional[int] = ..., data: _Optional[bytes] = ..., complete: _Optional[bool] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("welcome", "heads", "data_stream_ids", "data", "data_prompt_tokens", "data_completion_tokens", "ends")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    DATA_STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DATA_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    welcome: SessionWelcome
    heads: _containers.RepeatedCompositeFieldContainer[HeadFrame]
    data_stream_ids: _containers.RepeatedScalarFieldContainer[int]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    data_prompt_tokens: _containers.RepeatedScalarFieldContainer[int]
    data_completion_tokens: _containers.RepeatedScalarFieldContainer[int]
    ends: _containers.RepeatedCompositeFieldContainer[EndFrame]
    def __init__(self, welcome: _Optional[_Union[SessionWelcome, _Mapping]] = ..., heads: _Optional[_Iterable[_Union[HeadFrame, _Mapping]]] = ..., data_stream_ids: _Optional[_Iterable[int]] = ..., data: _Optional[_Iterable[bytes]] = ..., data_prompt_tokens: _Optional[_Iterable[int]] = ..., data_completion_tokens: _Optional[_Iterable[int]] = ..., ends: _Optional[_Iterable[_Union[EndFrame, _Mapping]]] = ...) -> None: ...

class SessionWelcome(_message.Message):
    __slots__ = ("host", "incarnation")
    HOST_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    host: str
    incarnation: str
    def __init__(self, host: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class HeadFrame(_message.Message):
    __slots__ = ("stream_id", "status", "headers")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    status: int
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    def __init__(self, stream_id: _Optional[int] = ..., status: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ...) -> None: ...

class EndFrame(_message.Message):
    __slots__ = ("stream_id", "usage", "outcome", "reason", "message")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    stream_id: int
    usage: _auth_pb2.TokenUsage
    outcome: _auth_pb2.Outcome
    reason: str
    message: str
    def __init__(self, stream_id: _Optional[int] = ..., usage: _Optional[_Union[_auth_pb2.TokenUsage, _Mapping]] = ..., outcome: _Optional[_Union[_auth_pb2.Outcome, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("envelope", "body")
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    envelope: RequestEnvelope
    body: bytes
    def __init__(self, envelope: _Optional[_Union[RequestEnvelope, _Mapping]] = ..., body: _Optional[bytes] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("head", "data", "end")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    head: HeadFrame
    data: bytes
    end: EndFrame
    def __init__(self, head: _Optional[_Union[HeadFrame, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[EndFrame, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "prompt", "prompt_token_ids", "max_tokens", "temperature", "top_p", "seed", "stop", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: str
    prompt_token_ids: TokenIds
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[str] = ..., prompt_token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "token_ids", "usage", "finish_reason")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    usage: _auth_pb2.TokenUsage
    finish_reason: str
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., usage: _Optional[_Union[_auth_pb2.TokenUsage, _Mapping]] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: _router_pb2.AdapterSpec
    def __init__(self, adapter: _Optional[_Union[_router_pb2.AdapterSpec, _Mapping]] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _router_pb2.Model
    def __init__(self, model: _Optional[_Union[_router_pb2.Model, _Mapping]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[_router_pb2.Model]
    def __init__(self, adapters: _Optional[_Iterable[_Union[_router_pb2.Model, _Mapping]]] = ...) -> None: ...

class PinAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PinAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("host",)
    HOST_FIELD_NUMBER: _ClassVar[int]
    host: _router_pb2.Host
    def __init__(self, host: _Optional[_Union[_router_pb2.Host, _Mapping]] = ...) -> None: ...

class GetApiDescriptionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetApiDescriptionResponse(_message.Message):
    __slots__ = ("openapi_json",)
    OPENAPI_JSON_FIELD_NUMBER: _ClassVar[int]
    openapi_json: bytes
    def __init__(self, openapi_json: _Optional[bytes] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_ms",)
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    timeout_ms: int
    def __init__(self, timeout_ms: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("remaining",)
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    remaining: int
    def __init__(self, remaining: _Optional[int] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HostState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOST_STATE_UNSPECIFIED: _ClassVar[HostState]
    HOST_STATE_STARTING: _ClassVar[HostState]
    HOST_STATE_SERVING: _ClassVar[HostState]
    HOST_STATE_DRAINING: _ClassVar[HostState]
    HOST_STATE_DOWN: _ClassVar[HostState]

class AdapterOrigin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_ORIGIN_UNSPECIFIED: _ClassVar[AdapterOrigin]
    ADAPTER_ORIGIN_PRELOAD: _ClassVar[AdapterOrigin]
    ADAPTER_ORIGIN_DECLARED: _ClassVar[AdapterOrigin]
    ADAPTER_ORIGIN_NATIVE: _ClassVar[AdapterOrigin]
    ADAPTER_ORIGIN_RESOLVED: _ClassVar[AdapterOrigin]
HOST_STATE_UNSPECIFIED: HostState
HOST_STATE_STARTING: HostState
HOST_STATE_SERVING: HostState
HOST_STATE_DRAINING: HostState
HOST_STATE_DOWN: HostState
ADAPTER_ORIGIN_UNSPECIFIED: AdapterOrigin
ADAPTER_ORIGIN_PRELOAD: AdapterOrigin
ADAPTER_ORIGIN_DECLARED: AdapterOrigin
ADAPTER_ORIGIN_NATIVE: AdapterOrigin
ADAPTER_ORIGIN_RESOLVED: AdapterOrigin

class WatchTableRequest(_message.Message):
    __slots__ = ("edge_id",)
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    edge_id: str
    def __init__(self, edge_id: _Optional[str] = ...) -> None: ...

class WatchTableResponse(_message.Message):
    __slots__ = ("version", "hosts", "policy", "model_backend_mapping", "absent_models", "loads_only")
    class ModelBackendMappingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODEL_BACKEND_MAPPING_FIELD_NUMBER: _ClassVar[int]
    ABSENT_MODELS_FIELD_NUMBER: _ClassVar[int]
    LOADS_ONLY_FIELD_NUMBER: _ClassVar[int]
    version: int
    hosts: _containers.RepeatedCompositeFieldContainer[Host]
    policy: str
    model_backend_mapping: _containers.ScalarMap[str, str]
    absent_models: _containers.RepeatedScalarFieldContainer[str]
    loads_only: bool
    def __init__(self, version: _Optional[int] = ..., hosts: _Optional[_Iterable[_Union[Host, _Mapping]]] = ..., policy: _Optional[str] = ..., model_backend_mapping: _Optional[_Mapping[str, str]] = ..., absent_models: _Optional[_Iterable[str]] = ..., loads_only: _Optional[bool] = ...) -> None: ...

class Host(_message.Message):
    __slots__ = ("name", "incarnation", "address", "engine", "state", "models", "load", "engine_version", "last_seen_ms", "detail", "engine_returns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RETURNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    incarnation: str
    address: str
    engine: str
    state: HostState
    models: _containers.RepeatedCompositeFieldContainer[Model]
    load: HostLoad
    engine_version: str
    last_seen_ms: int
    detail: str
    engine_returns: int
    def __init__(self, name: _Optional[str] = ..., incarnation: _Optional[str] = ..., address: _Optional[str] = ..., engine: _Optional[str] = ..., state: _Optional[_Union[HostState, str]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., load: _Optional[_Union[HostLoad, _Mapping]] = ..., engine_version: _Optional[str] = ..., last_seen_ms: _Optional[int] = ..., detail: _Optional[str] = ..., engine_returns: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "base", "card_json", "digest", "origin", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    base: str
    card_json: bytes
    digest: str
    origin: AdapterOrigin
    path: str
    def __init__(self, name: _Optional[str] = ..., base: _Optional[str] = ..., card_json: _Optional[bytes] = ..., digest: _Optional[str] = ..., origin: _Optional[_Union[AdapterOrigin, str]] = ..., path: _Optional[str] = ...) -> None: ...

class HostLoad(_message.Message):
    __slots__ = ("running", "waiting", "kv_usage", "in_flight")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    kv_usage: float
    in_flight: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_usage: _Optional[float] = ..., in_flight: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("host", "results", "withdrawn_adapters")
    HOST_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    host: Host
    results: _containers.RepeatedCompositeFieldContainer[CommandResult]
    withdrawn_adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, host: _Optional[_Union[Host, _Mapping]] = ..., results: _Optional[_Iterable[_Union[CommandResult, _Mapping]]] = ..., withdrawn_adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class CommandResult(_message.Message):
    __slots__ = ("command_id", "reason", "message")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    reason: str
    message: str
    def __init__(self, command_id: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("commands", "heartbeat_ms")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    heartbeat_ms: int
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("command_id", "load", "unload", "drain")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    load: AdapterSpec
    unload: str
    drain: bool
    def __init__(self, command_id: _Optional[int] = ..., load: _Optional[_Union[AdapterSpec, _Mapping]] = ..., unload: _Optional[str] = ..., drain: _Optional[bool] = ...) -> None: ...

class AdapterSpec(_message.Message):
    __slots__ = ("name", "path", "base", "replace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    base: str
    replace: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., base: _Optional[str] = ..., replace: _Optional[bool] = ...) -> None: ...

class PickRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class PickResponse(_message.Message):
    __slots__ = ("host",)
    HOST_FIELD_NUMBER: _ClassVar[int]
    host: Host
    def __init__(self, host: _Optional[_Union[Host, _Mapping]] = ...) -> None: ...

class ListHostsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHostsResponse(_message.Message):
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedCompositeFieldContainer[Host]
    def __init__(self, hosts: _Optional[_Iterable[_Union[Host, _Mapping]]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("model", "hosts")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    hosts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., hosts: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterSpec
    def __init__(self, adapter: _Optional[_Union[AdapterSpec, _Mapping]] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hosts: _Optional[_Iterable[str]] = ...) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ("hosts",)
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hosts: _Optional[_Iterable[str]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters",)
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterDeclaration]
    def __init__(self, adapters: _Optional[_Iterable[_Union[AdapterDeclaration, _Mapping]]] = ...) -> None: ...

class AdapterDeclaration(_message.Message):
    __slots__ = ("adapter", "host", "declared_at_ms", "loaded_on", "errors")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DECLARED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LOADED_ON_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    adapter: AdapterSpec
    host: str
    declared_at_ms: int
    loaded_on: _containers.RepeatedScalarFieldContainer[str]
    errors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, adapter: _Optional[_Union[AdapterSpec, _Mapping]] = ..., host: _Optional[str] = ..., declared_at_ms: _Optional[int] = ..., loaded_on: _Optional[_Iterable[str]] = ..., errors: _Optional[_Iterable[str]] = ...) -> None: ...

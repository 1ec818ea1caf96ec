from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOG_LEVEL_UNSPECIFIED: _ClassVar[LogLevel]
    LOG_LEVEL_DEBUG: _ClassVar[LogLevel]
    LOG_LEVEL_INFO: _ClassVar[LogLevel]
    LOG_LEVEL_WARNING: _ClassVar[LogLevel]
    LOG_LEVEL_ERROR: _ClassVar[LogLevel]
LOG_LEVEL_UNSPECIFIED: LogLevel
LOG_LEVEL_DEBUG: LogLevel
LOG_LEVEL_INFO: LogLevel
LOG_LEVEL_WARNING: LogLevel
LOG_LEVEL_ERROR: LogLevel

class GetLogStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLogStatsResponse(_message.Message):
    __slots__ = ("files", "total_bytes")
    FILES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[LogFile]
    total_bytes: int
    def __init__(self, files: _Optional[_Iterable[_Union[LogFile, _Mapping]]] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class LogFile(_message.Message):
    __slots__ = ("name", "size_bytes", "modified_at_s", "in_use")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_AT_S_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    modified_at_s: int
    in_use: bool
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., modified_at_s: _Optional[int] = ..., in_use: _Optional[bool] = ...) -> None: ...

class CleanLogsRequest(_message.Message):
    __slots__ = ("older_than_days", "dry_run")
    OLDER_THAN_DAYS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    older_than_days: int
    dry_run: bool
    def __init__(self, older_than_days: _Optional[int] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class CleanLogsResponse(_message.Message):
    __slots__ = ("removed", "freed_bytes", "kept", "problems")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[LogFile]
    freed_bytes: int
    kept: _containers.RepeatedCompositeFieldContainer[LogFile]
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, removed: _Optional[_Iterable[_Union[LogFile, _Mapping]]] = ..., freed_bytes: _Optional[int] = ..., kept: _Optional[_Iterable[_Union[LogFile, _Mapping]]] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class GetEffectiveConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetEffectiveConfigResponse(_message.Message):
    __slots__ = ("yaml", "path")
    YAML_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    yaml: str
    path: str
    def __init__(self, yaml: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMetricsResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    def __init__(self, text: _Optional[bytes] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("service", "applied", "needs_restart", "problems")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    NEEDS_RESTART_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    service: str
    applied: _containers.RepeatedScalarFieldContainer[str]
    needs_restart: _containers.RepeatedCompositeFieldContainer[PendingRestart]
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, service: _Optional[str] = ..., applied: _Optional[_Iterable[str]] = ..., needs_restart: _Optional[_Iterable[_Union[PendingRestart, _Mapping]]] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class PendingRestart(_message.Message):
    __slots__ = ("setting", "service")
    SETTING_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    setting: str
    service: str
    def __init__(self, setting: _Optional[str] = ..., service: _Optional[str] = ...) -> None: ...

class SetLogLevelRequest(_message.Message):
    __slots__ = ("level",)
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    level: LogLevel
    def __init__(self, level: _Optional[_Union[LogLevel, str]] = ...) -> None: ...

class SetLogLevelResponse(_message.Message):
    __slots__ = ("level", "previous")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    level: LogLevel
    previous: LogLevel
    def __init__(self, level: _Optional[_Union[LogLevel, str]] = ..., previous: _Optional[_Union[LogLevel, str]] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("service", "version", "pid", "host_name", "started_at_ms", "now_ms", "log_level")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_NAME_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    service: str
    version: str
    pid: int
    host_name: str
    started_at_ms: int
    now_ms: int
    log_level: LogLevel
    def __init__(self, service: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., host_name: _Optional[str] = ..., started_at_ms: _Optional[int] = ..., now_ms: _Optional[int] = ..., log_level: _Optional[_Union[LogLevel, str]] = ...) -> None: ...

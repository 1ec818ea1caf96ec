from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

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
    __slots__ = ("removed", "freed_bytes")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[LogFile]
    freed_bytes: int
    def __init__(self, removed: _Optional[_Iterable[_Union[LogFile, _Mapping]]] = ..., freed_bytes: _Optional[int] = ...) -> None: ...

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

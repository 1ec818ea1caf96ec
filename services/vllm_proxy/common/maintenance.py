"""The MaintenanceService of every service: its log files, its metrics and its effective configuration."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest

import vllm_proxy
from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.common.errors import InvalidRequest
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.reload import Reloader
from vllm_proxy.common.settings import ConfigError

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["MaintenanceService"].full_name
MASK = "***"
_SECRET_NAME = re.compile(r"(secret|password|token|key)$", re.IGNORECASE)
#: Up to the next flag: `--api-key` takes several.
_SECRET_FLAG = re.compile(r"(--(?:api-key|hf-token)[= ]\s*)(?:(?!-)\S+\s*)+")
_SECRET_VARIABLE = re.compile(r"(\b[A-Z_]*(?:KEY|TOKEN|SECRET|PASSWORD)=)\S+")
_LEVELS = {
    "DEBUG": pb.LOG_LEVEL_DEBUG,
    "INFO": pb.LOG_LEVEL_INFO,
    "WARNING": pb.LOG_LEVEL_WARNING,
    "ERROR": pb.LOG_LEVEL_ERROR,
}
_LEVEL_NAMES = {level: name for name, level in _LEVELS.items()}
_URL_PASSWORD = re.compile(r"(\w+://[^\s:/@]*:)\S+@")


class MaintenanceServicer(maintenance_pb2_grpc.MaintenanceServiceServicer):
    """Add to a service's gRPC server under SERVICE_NAME."""

    def __init__(self, reloader: Reloader, logs: LogFolder, metrics: CollectorRegistry) -> None:
        self._reloader = reloader
        self._started_at_ms = round(time.time() * 1000)
        self._logs = logs
        self._metrics = metrics

    async def GetLogStats(self, request: pb.GetLogStatsRequest, context: Any) -> pb.GetLogStatsResponse:
        files = await asyncio.to_thread(self._logs.files)
        return pb.GetLogStatsResponse(files=files, total_bytes=sum(file.size_bytes for file in files))

    async def CleanLogs(self, request: pb.CleanLogsRequest, context: Any) -> pb.CleanLogsResponse:
        return await asyncio.to_thread(self._logs.clean, request.older_than_days, request.dry_run)

    async def GetEffectiveConfig(
        self, request: pb.GetEffectiveConfigRequest, context: Any
    ) -> pb.GetEffectiveConfigResponse:
        text = yaml.safe_dump(masked(self._reloader.settings), sort_keys=False, allow_unicode=True)
        return pb.GetEffectiveConfigResponse(yaml=text, path=str(self._reloader.path))

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Any) -> pb.GetMetricsResponse:
        return pb.GetMetricsResponse(text=await asyncio.to_thread(generate_latest, self._metrics))

    async def Reload(self, request: pb.ReloadRequest, context: Any) -> pb.ReloadResponse:
        try:
            outcome = await self._reloader.reload("Reload")
        except ConfigError as e:
            raise InvalidRequest(str(e)) from None
        return pb.ReloadResponse(
            service=self._reloader.service,
            applied=outcome.applied,
            needs_restart=[pb.PendingRestart(setting=key, service=service) for key, service in outcome.needs_restart],
            problems=outcome.problems,
        )

    async def SetLogLevel(self, request: pb.SetLogLevelRequest, context: Any) -> pb.SetLogLevelResponse:
        name = _LEVEL_NAMES.get(request.level)
        if name is None and request.level != pb.LOG_LEVEL_UNSPECIFIED:
            raise InvalidRequest(f"There is no log level {request.level}.")
        previous = self._reloader.set_log_level(name)
        return pb.SetLogLevelResponse(level=_level(), previous=_LEVELS.get(previous, pb.LOG_LEVEL_UNSPECIFIED))

    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.GetInfoResponse:
        return pb.GetInfoResponse(
            service=self._reloader.service,
            version=vllm_proxy.__version__,
            pid=os.getpid(),
            host_name=socket.gethostname(),
            started_at_ms=self._started_at_ms,
            now_ms=round(time.time() * 1000),
            log_level=_level(),
        )


def _level() -> pb.LogLevel:
    return _LEVELS.get(logging.getLevelName(logging.getLogger().level), pb.LOG_LEVEL_UNSPECIFIED)


def masked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what may be secret: values under names that end in key, token, secret or password; the
    same in the variables and flags of a start command; passwords inside URLs."""
    return {name: _masked(name, value) for name, value in settings.items()}


def _masked(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return masked(value)
    if isinstance(value, str):
        if _SECRET_NAME.search(name):
            return MASK
        value = _SECRET_FLAG.sub(rf"\1{MASK} ", value)
        value = _SECRET_VARIABLE.sub(rf"\1{MASK}", value)
        return _URL_PASSWORD.sub(rf"\1{MASK}@", value)
    return value

"""Asks every service for its log files: the edge's own directly, the others' over their MaintenanceService."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc.aio

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.common.errors import EngineUnavailable
from vllm_proxy.common.log_folder import LogFolder
from vllm_proxy.common.rpc.status import from_rpc_error

Row = dict[str, Any]


class FleetLogs:
    """The logs of all services of this installation. A service that cannot be asked says so in its row."""

    def __init__(
        self, own: LogFolder, channels: Callable[[], Mapping[str, grpc.aio.Channel]], timeout_s: float
    ) -> None:
        """`channels` gives the other services by the name that their rows have."""
        self._own = own
        self._channels = channels
        self._timeout_s = timeout_s

    async def stats(self) -> dict[str, Row]:
        files = await asyncio.to_thread(self._own.files)
        rows: dict[str, Row] = {"edge": _stats(files)}

        async def ask(stub: maintenance_pb2_grpc.MaintenanceServiceStub) -> Row:
            answer = await stub.GetLogStats(pb.GetLogStatsRequest(), timeout=self._timeout_s)
            return _stats(answer.files)

        return rows | await self._ask_all(ask)

    async def clean(self, older_than_days: int, dry_run: bool) -> dict[str, Row]:
        request = pb.CleanLogsRequest(older_than_days=older_than_days, dry_run=dry_run)
        answer = await asyncio.to_thread(self._own.clean, older_than_days, dry_run)
        rows: dict[str, Row] = {"edge": _cleaned(answer)}

        async def ask(stub: maintenance_pb2_grpc.MaintenanceServiceStub) -> Row:
            return _cleaned(await stub.CleanLogs(request, timeout=self._timeout_s))

        return rows | await self._ask_all(ask)

    async def _ask_all(
        self, ask: Callable[[maintenance_pb2_grpc.MaintenanceServiceStub], Awaitable[Row]]
    ) -> dict[str, Row]:
        async def ask_one(channel: grpc.aio.Channel) -> Row:
            try:
                return await ask(maintenance_pb2_grpc.MaintenanceServiceStub(channel))
            except grpc.aio.AioRpcError as e:
                error = from_rpc_error(e)
                return {"error": "cannot be reached" if type(error) is EngineUnavailable else error.message}

        channels = self._channels()
        rows = await asyncio.gather(*(ask_one(channel) for channel in channels.values()))
        return dict(zip(channels, rows, strict=True))


def _stats(files: Iterable[pb.LogFile]) -> Row:
    rows = [
        {"name": f.name, "size_bytes": f.size_bytes, "modified_at_s": f.modified_at_s, "in_use": f.in_use}
        for f in files
    ]
    return {"files": rows, "total_bytes": sum(row["size_bytes"] for row in rows)}


def _cleaned(answer: pb.CleanLogsResponse) -> Row:
    return {
        "removed": [file.name for file in answer.removed],
        "freed_bytes": answer.freed_bytes,
        "kept": [file.name for file in answer.kept],
        "problems": list(answer.problems),
    }

"""RouterService on the wire: protos in and out, streams read and written; decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import grpc.aio

from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.api.router.v1 import router_pb2_grpc
from vllm_proxy.common.errors import EngineUnavailable, InternalError, InvalidRequest, ServiceError
from vllm_proxy.common.ids import REQUEST_ID_METADATA
from vllm_proxy.common.routing.table import RoutingTable
from vllm_proxy.router.adapters import Adapters
from vllm_proxy.router.hosts import HostBook
from vllm_proxy.router.link import HostLink
from vllm_proxy.router.metrics import RouterMetrics
from vllm_proxy.router.registrar import Registrar
from vllm_proxy.router.watch import TableFeed

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RouterService"].full_name


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    def __init__(
        self,
        hosts: HostBook,
        registrar: Registrar,
        feed: TableFeed,
        adapters: Adapters,
        metrics: RouterMetrics,
        heartbeat_s: float,
    ) -> None:
        self._hosts = hosts
        self._registrar = registrar
        self._feed = feed
        self._adapters = adapters
        self._metrics = metrics
        self._heartbeat_ms = int(heartbeat_s * 1000)
        self._routing = RoutingTable()

    # ---- streams

    async def WatchTable(self, request: pb.WatchTableRequest, context: Any) -> None:
        log.info("edge watches", extra={"edge": request.edge_id})
        self._metrics.watchers.inc()
        try:
            async with contextlib.aclosing(self._feed.watch()) as tables:
                async for table in tables:
                    await context.write(table)
                    self._metrics.table_pushes.inc()
        finally:
            self._metrics.watchers.dec()

    async def Register(self, _requests: Any, context: Any) -> None:
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        link = self._registrar.open(first)
        try:
            await _first_to_end(self._read(link, context), self._write(link, context))
        finally:
            self._registrar.end(link)

    async def _read(self, link: HostLink, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            if not self._registrar.take(link, request):
                return

    async def _write(self, link: HostLink, context: Any) -> None:
        await context.write(pb.RegisterResponse(heartbeat_ms=self._heartbeat_ms))
        while commands := await link.outgoing():
            await context.write(pb.RegisterResponse(commands=commands))

    # ---- for people and tools

    async def Pick(self, request: pb.PickRequest, context: Any) -> pb.PickResponse:
        table = self._feed.current()
        if table.version != self._routing.version:
            self._routing.apply(table)
        host = self._routing.pick(request.model or None)
        if host is None:
            raise EngineUnavailable
        return pb.PickResponse(host=next(report for report in table.hosts if report.name == host.name))

    async def ListHosts(self, request: pb.ListHostsRequest, context: Any) -> pb.ListHostsResponse:
        return pb.ListHostsResponse(hosts=self._hosts.everyone())

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        served: dict[str, pb.ServedModel] = {}
        for report in self._hosts.table():
            if report.state != pb.HOST_STATE_SERVING:
                continue
            for model in report.models:
                row = served.setdefault(model.name, pb.ServedModel(model=model))
                row.hosts.append(report.name)
        rows = sorted((bool(row.model.base), name) for name, row in served.items())
        return pb.ListModelsResponse(models=[served[name] for _, name in rows])

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Any) -> pb.LoadAdapterResponse:
        if not request.HasField("adapter"):
            raise InvalidRequest("The request names no adapter.")
        with self._accounted("load", request.adapter.name, context):
            return pb.LoadAdapterResponse(hosts=await self._adapters.load(request.adapter))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Any) -> pb.UnloadAdapterResponse:
        with self._accounted("unload", request.name, context):
            return pb.UnloadAdapterResponse(hosts=await self._adapters.unload(request.name))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Any) -> pb.ListAdaptersResponse:
        return pb.ListAdaptersResponse(
            adapters=[
                pb.AdapterDeclaration(
                    adapter=pb.AdapterSpec(
                        name=row.declaration.name, path=row.declaration.path, base=row.declaration.base
                    ),
                    host=row.declaration.host,
                    declared_at_ms=row.declaration.declared_at_ms,
                    loaded_on=row.loaded_on,
                    errors=row.errors,
                )
                for row in self._adapters.declared()
            ]
        )

    @contextlib.contextmanager
    def _accounted(self, kind: str, adapter: str, context: Any) -> Iterator[None]:
        """The canonical line and the count of an admin call."""
        started = time.monotonic()
        reason = InternalError.reason
        try:
            yield
            reason = ""
        except asyncio.CancelledError:
            reason = "CANCELLED"
            raise
        except ServiceError as e:
            reason = e.reason
            raise
        finally:
            self._metrics.adapter_call(kind, not reason)
            metadata = dict(context.invocation_metadata() or ())
            log.info(
                f"{kind} adapter",
                extra={
                    "request_id": metadata.get(REQUEST_ID_METADATA, ""),
                    "adapter": adapter,
                    "status": "failed" if reason else "ok",
                    "reason": reason,
                    "duration_ms": round((time.monotonic() - started) * 1000),
                },
            )


async def _first_to_end(*coroutines: Any) -> None:
    """Runs them until one ends, cancels the others, raises what the ended one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()

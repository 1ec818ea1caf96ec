"""What Prometheus scrapes, without a key: the edge's own metrics, those of the services behind it, and where they are.

One HTTP port serves for all services, wherever they run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc.aio
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from vllm_proxy.api.common.v1 import maintenance_pb2, maintenance_pb2_grpc
from vllm_proxy.common.errors import NotFound
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.edge.metrics import EdgeMetrics
from vllm_proxy.edge.routes.calls import PLAIN_TEXT

Channels = Callable[[], Mapping[str, grpc.aio.Channel]]


def metrics_router(metrics: EdgeMetrics, channels: Channels, timeout_s: float) -> APIRouter:
    """`channels` gives the services behind the edge by name."""
    router = APIRouter()

    @router.get(
        "/metrics",
        summary="Prometheus metrics of all edge workers, or of the service that is named",
        response_class=Response,
        responses=PLAIN_TEXT,
    )
    async def read(service: str = "edge") -> Response:
        if service == "edge":
            metrics.flush()
            # In a thread: it reads files when several workers share their metrics.
            text = await asyncio.to_thread(metrics.render)
        else:
            text = await _metrics_of(service, channels(), timeout_s)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @router.get("/metrics/targets", summary="All services, for Prometheus' http_sd_configs")
    async def targets(request: Request) -> list[dict[str, Any]]:
        # Where Prometheus found this list it finds the metrics too.
        here = [request.headers.get("host", "localhost")]
        return [
            {"targets": here, "labels": {"service": service, "instance": service, "__param_service": service}}
            for service in ("edge", *channels())
        ]

    return router


async def _metrics_of(service: str, channels: Mapping[str, grpc.aio.Channel], timeout_s: float) -> bytes:
    channel = channels.get(service)
    if channel is None:
        raise NotFound(f"There is no service of that name; there is edge, {', '.join(channels)}.")
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(channel)
    try:
        answer = await stub.GetMetrics(maintenance_pb2.GetMetricsRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as e:
        raise from_rpc_error(e) from None
    return bytes(answer.text)

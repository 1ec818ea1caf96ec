"""`GET /metrics` for Prometheus. No key needed."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from vllm_proxy.edge.metrics import EdgeMetrics


def metrics_router(metrics: EdgeMetrics) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", summary="Prometheus metrics of all edge workers")
    async def read() -> Response:
        metrics.flush()
        # In a thread: it reads files when several workers share their metrics.
        return Response(await asyncio.to_thread(metrics.render), media_type=CONTENT_TYPE_LATEST)

    return router

"""`GET /metrics` for Prometheus. No key needed."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from vllm_proxy.edge.metrics import EdgeMetrics


def metrics_router(metrics: EdgeMetrics) -> APIRouter:
    router = APIRouter()

    # Not `async`: it reads files when several workers share their metrics.
    @router.get("/metrics", summary="Prometheus metrics of all edge workers")
    def read() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router

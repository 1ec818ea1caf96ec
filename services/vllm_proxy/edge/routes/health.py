"""`GET /health`: what is up, for people and balancers. No key needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.edge.hosts import Hosts


def health_router(hosts: Hosts, services: Callable[[], dict[str, bool]], draining: Callable[[], bool]) -> APIRouter:
    """`services` says which services this worker has a session with."""
    router = APIRouter()

    @router.get(
        "/health",
        summary="What is up; 503 when nothing can serve",
        responses={503: {"model": dict[str, Any], "description": "The same, when nothing can serve"}},
    )
    async def health(response: Response) -> dict[str, Any]:
        up = services()
        models: dict[str, list[str]] = {}
        for row in hosts.table.models():
            for name in row.hosts:
                models.setdefault(name, []).append(row.name)
        engines: dict[str, Any] = {
            host.name: {
                "engine": host.engine,
                "state": router_pb2.HostState.Name(host.state).removeprefix("HOST_STATE_").lower(),
                "connected": hosts.connected(host.name),
                "models": models.get(host.name, []),
            }
            for host in hosts.table.hosts.values()
        }
        able = hosts.any_serving and up["auth"]
        status = "draining" if draining() else "ok" if able else "unavailable"
        response.status_code = 200 if status == "ok" else 503
        return {
            "status": status,
            "services": {name: "up" if is_up else "down" for name, is_up in up.items()},
            "engines": engines,
        }

    return router

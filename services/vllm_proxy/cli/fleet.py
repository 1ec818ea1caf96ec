"""Asks every service how it is. Whoever does not answer in time is down, which is an answer too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vllm_proxy.api.common.v1 import maintenance_pb2, maintenance_pb2_grpc
from vllm_proxy.api.router.v1 import router_pb2
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.samples import Samples
from vllm_proxy.cli.services import EDGE, NGINX, Service

ANSWER_TIMEOUT_S = 5.0
SERVING, NOT_READY, DOWN = "serving", "not ready", "down"


@dataclass(slots=True)
class Fleet:
    """What the services answered at one moment. `states`: SERVING, NOT_READY or DOWN, by name."""

    states: dict[str, str] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    """What the edge says of itself and the others; empty if it is down."""
    hosts: list[router_pb2.Host] = field(default_factory=list)
    models: list[router_pb2.ServedModel] = field(default_factory=list)
    declarations: list[router_pb2.AdapterDeclaration] = field(default_factory=list)
    info: dict[str, maintenance_pb2.GetInfoResponse] = field(default_factory=dict)
    """Which process answers for a service; not of the edge."""
    metrics: dict[str, Samples] = field(default_factory=dict)
    """Of the services that answer, by name."""


async def look(connection: Connection, services: Iterable[Service], *, declarations: bool = True) -> Fleet:
    """All at once, in little more than ANSWER_TIMEOUT_S at most."""
    fleet = Fleet()
    services = list(services)
    tasks = [_look_at(connection, service, fleet) for service in services]
    router = connection.router
    tasks.append(_from_router(router.ListHosts, router_pb2.ListHostsRequest(), fleet.hosts, "hosts"))
    tasks.append(_from_router(router.ListModels, router_pb2.ListModelsRequest(), fleet.models, "models"))
    if declarations:
        tasks.append(
            _from_router(router.ListAdapters, router_pb2.ListAdaptersRequest(), fleet.declarations, "adapters")
        )
    await asyncio.gather(*tasks)
    return fleet


async def http_get(url: str) -> tuple[int, bytes]:
    """The status and the body. Raises OSError if nobody answers in time."""
    return await asyncio.to_thread(_http_get, url)


async def _look_at(connection: Connection, service: Service, fleet: Fleet) -> None:
    if service.name == EDGE:
        await _look_at_edge(service, fleet)
    elif service.name == NGINX:
        fleet.states[service.name] = SERVING if await asyncio.to_thread(_accepts, service.address) else DOWN
    else:
        channel = connection.channel(service.address)
        fleet.states[service.name] = await _grpc_state(channel)
        if fleet.states[service.name] != DOWN:
            await _grpc_figures(channel, service, fleet)


async def _look_at_edge(service: Service, fleet: Fleet) -> None:
    try:
        status, body = await http_get(f"{service.address}/health")
        fleet.states[service.name] = SERVING if status == 200 else NOT_READY
        health = json.loads(body)
        fleet.health = health if isinstance(health, dict) and "services" in health else {}
        _, metrics = await http_get(f"{service.address}/metrics")
        fleet.metrics[service.name] = Samples(metrics)
    except OSError:
        fleet.states[service.name] = DOWN
    except ValueError:  # somebody else's server
        fleet.states[service.name] = NOT_READY


async def _grpc_state(channel: grpc.aio.Channel) -> str:
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=ANSWER_TIMEOUT_S
        )
    except grpc.aio.AioRpcError:
        return DOWN
    return SERVING if answer.status == health_pb2.HealthCheckResponse.SERVING else NOT_READY


async def _grpc_figures(channel: grpc.aio.Channel, service: Service, fleet: Fleet) -> None:
    stub = maintenance_pb2_grpc.MaintenanceServiceStub(channel)
    with contextlib.suppress(grpc.aio.AioRpcError):
        answer = await stub.GetMetrics(maintenance_pb2.GetMetricsRequest(), timeout=ANSWER_TIMEOUT_S)
        fleet.metrics[service.name] = Samples(answer.text)
        fleet.info[service.name] = await stub.GetInfo(maintenance_pb2.GetInfoRequest(), timeout=ANSWER_TIMEOUT_S)


async def _from_router(method: Any, request: Any, into: list[Any], field_name: str) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        into.extend(getattr(await method(request, timeout=ANSWER_TIMEOUT_S), field_name))


def _http_get(url: str) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ANSWER_TIMEOUT_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_TIMEOUT_S).close()
    except OSError:
        return False
    return True

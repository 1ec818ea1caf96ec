"""The processes of all services that a maintenance call goes to, and calling them all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio

from vllm_proxy.api.common.v1 import maintenance_pb2_grpc
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.services import AUTH, EDGE, NGINX, services_of
from vllm_proxy.cli.values import BadValue
from vllm_proxy.common.errors import EngineUnavailable, RequestTimeout
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.rpc.worker_sockets import living_workers

Stub = maintenance_pb2_grpc.MaintenanceServiceStub
NO_ANSWER = "does not answer"
STANDS_BY = "does not answer, as a replica that stands by does not"


@dataclass(frozen=True, slots=True)
class Process:
    """`name` tells it from others of its service: an edge worker's id, an auth replica's address."""

    service: str
    name: str
    address: str | None
    """None: there is none that could be asked."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a process answered, or the error."""

    process: Process
    answer: Any = None
    error: str | None = None
    is_down: bool = False
    """It does not answer, though it should."""

    @property
    def failed(self) -> bool:
        return self.error is not None and self.error != STANDS_BY


def processes_of(connection: Connection, names: Iterable[str] = ()) -> list[Process]:
    """Those of the named services, or of all; edge workers only of this machine. Raises BadValue for another name."""
    loaded = connection.loaded
    services = [service for service in services_of(loaded) if service.name != NGINX]
    wanted = {EDGE if name == "fastapi" else name for name in names}
    if unknown := wanted - {service.name for service in services}:
        there = ", ".join(service.name for service in services)
        raise BadValue(f"no service {', '.join(sorted(unknown))}; there is {there}")
    found: list[Process] = []
    for service in services:
        if wanted and service.name not in wanted:
            continue
        if service.name == EDGE:
            workers = living_workers(loaded.settings.run_dir)
            found += [Process(EDGE, name, address) for name, address in sorted(workers.items())]
            found += [] if workers else [Process(EDGE, EDGE, None)]
        else:
            replicas = service.address.split(",")
            names_of = [service.name] if len(replicas) == 1 else [f"{service.name} {replica}" for replica in replicas]
            found += [Process(service.name, *pair) for pair in zip(names_of, replicas, strict=True)]
    return found


async def tell_all(
    connection: Connection, processes: Iterable[Process], call: Callable[[Stub, Process], Awaitable[Any]]
) -> list[Told]:
    """`call` gives its own time-out. Who does not answer is told so."""

    async def tell(process: Process) -> Told:
        if process.address is None:
            return Told(process, error=NO_ANSWER, is_down=True)
        try:
            return Told(process, await call(Stub(connection.channel(process.address)), process))
        except grpc.aio.AioRpcError as e:
            if e.code() is grpc.StatusCode.UNIMPLEMENTED:
                return Told(process, error="runs an older version: restart it")
            error = from_rpc_error(e)
            if type(error) in (EngineUnavailable, RequestTimeout):
                return Told(process, error=NO_ANSWER, is_down=True)
            return Told(process, error=error.message)

    told = await asyncio.gather(*map(tell, processes))
    # Of several auth replicas one leads and answers; the others take over from it.
    led = {each.process.service for each in told if each.answer is not None and each.process.service == AUTH}
    return [
        replace(each, error=STANDS_BY, is_down=False) if each.is_down and each.process.service in led else each
        for each in told
    ]

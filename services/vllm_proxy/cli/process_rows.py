"""The processes of each service on this machine: what the supervisor or a pid file says of them."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
import xmlrpc.client
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_proxy.cli import process_table, supervised
from vllm_proxy.cli.fleet import DOWN, NOT_READY, SERVING, Fleet
from vllm_proxy.cli.services import EDGE, Service
from vllm_proxy.cli.supervised import ProcessState
from vllm_proxy.common.settings import LoadedSettings


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """`pid` and `up_s` are None where nothing is known: on another machine, or not running."""

    service: str
    process: str
    state: str
    pid: int | None
    up_s: int | None
    fault: str
    log: Path
    machine: str = ""
    """Empty: this one, or unknown."""


async def supervised_processes(loaded: LoadedSettings) -> list[ProcessState] | None:
    """None if no supervisor runs."""
    path = loaded.root / supervised.control_socket(loaded.settings)
    try:
        rows = await asyncio.to_thread(supervised.call, _short(path), "getAllProcessInfo")
    except (OSError, http.client.HTTPException, xmlrpc.client.Fault):
        return None
    return supervised.processes(rows)


def rows(
    loaded: LoadedSettings, services: Iterable[Service], fleet: Fleet, running: list[ProcessState] | None
) -> list[ProcessRow]:
    """A row for each process. `fleet` is what the services themselves say, `running` what the supervisor does."""
    found = []
    for service in services:
        mine: list[ProcessState | None] = [p for p in running or () if p.service == service.name]
        # nginx has two logs and one process; a running supervisor may have been started with another number of workers.
        logs = service.logs[: len(mine) or len(service.logs)] if service.name != "nginx" else service.logs[:1]
        for number, process in enumerate(mine or [None] * len(logs)):
            log = logs[min(number, len(logs) - 1)]
            if service.name == EDGE and process is not None:
                log = log.with_name(f"fastapi{process.name.removeprefix(EDGE)}.log")
            row = _row(loaded, service, process, fleet.states.get(service.name, DOWN), log, len(logs) > 1, number)
            found.append(_as_it_says(row, fleet))
    return found


def _as_it_says(row: ProcessRow, fleet: Fleet) -> ProcessRow:
    """A service that nobody here looks after (systemd, another machine) says itself which process it is."""
    info = fleet.info.get(row.service)
    if row.pid is not None or info is None:
        return row
    up_s = max(0, (info.now_ms - info.started_at_ms) // 1000)
    is_here = info.host_name == socket.gethostname()
    return replace(row, pid=info.pid, up_s=up_s, machine="" if is_here else info.host_name)


def left_behind(loaded: LoadedSettings) -> int:
    """How many services live whose supervisor is gone."""
    folder = loaded.root / loaded.settings.pid_dir
    return sum(process_table.owner(path) is not None for path in folder.glob("*.pid"))


def _row(
    loaded: LoadedSettings,
    service: Service,
    process: ProcessState | None,
    state: str,
    log: Path,
    numbered: bool,
    number: int,
) -> ProcessRow:
    name = f"{service.name}-{number}" if numbered else service.name
    if process is not None and process.is_up and process.pid:
        if process.state == "STOPPING":
            state = "stopping"
        elif state == DOWN:
            state = NOT_READY
        up_s = max(0, int(time.time()) - process.started_at)
        return ProcessRow(service.name, process.name, state, process.pid, up_s, "", log)
    if process is not None and state != SERVING:
        shown = "stopped" if process.state == "STOPPED" else process.state.lower()
        return ProcessRow(service.name, process.name, shown, None, None, process.fault, log)
    own = process_table.owner(loaded.root / loaded.settings.pid_dir / f"{name}.pid")
    if own is None:
        return ProcessRow(service.name, name, "stopped" if state == DOWN else state, None, None, "", log)
    up_s = max(0, int(time.time() - process_table.started_at(own)))
    return ProcessRow(service.name, name, NOT_READY if state == DOWN else state, own.pid, up_s, "", log)


def _short(path: Path) -> Path:
    """Relative to here, if that is shorter: the kernel limits a socket's path."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

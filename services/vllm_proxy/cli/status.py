"""`vllm-proxy status`: what runs, what it serves, how loaded it is, and which limits were hit."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from vllm_proxy.cli.command import Commands, NotAllServing, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.fleet import SERVING, Fleet, look
from vllm_proxy.cli.output import BOLD, GREEN, RED, YELLOW, Figure, Output
from vllm_proxy.cli.process_rows import ProcessRow, left_behind, rows, supervised_processes
from vllm_proxy.cli.router_views import adapter_views, host_view, model_view
from vllm_proxy.cli.services import NGINX, Service, edge_url, services_of
from vllm_proxy.cli.values import BadValue
from vllm_proxy.common.settings import EngineKind

#: What a word is painted in.
STATE_COLOURS = {
    SERVING: GREEN,
    "ok": GREEN,
    "draining": YELLOW,
    "not ready": YELLOW,
    "starting": YELLOW,
    "stopping": YELLOW,
    "degraded": YELLOW,
    "stopped": RED,
    "down": RED,
    "fatal": RED,
    "backoff": RED,
    "exited": RED,
    "unknown": RED,
}


def add_commands(commands: Commands) -> None:
    status = add_command(
        commands, "status", "what runs, what it serves, how loaded it is, which limits were hit", _status
    )
    status.set_defaults(survives=True)
    status.add_argument("services", nargs="*", metavar="SERVICE", help="only these: auth, router, engine-NAME, edge")
    status.add_argument("--engine", choices=get_args(EngineKind), help="only the engine hosts of this kind")


async def _status(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    loaded = connection.loaded
    every = services_of(loaded)
    running = await supervised_processes(loaded)
    # nginx counts where it is wanted or runs.
    up = {process.service for process in running or () if process.is_up}
    every = [s for s in every if s.name != NGINX or loaded.settings.nginx.enabled or NGINX in up]
    wanted = _wanted(args, connection, every)
    fleet = await look(connection, wanted)
    processes = rows(loaded, wanted, fleet, running)
    left = left_behind(loaded) if running is None else 0
    view = _view(connection, wanted, fleet, processes)
    if output.as_json:
        output.json(view)
    else:
        _print(output, view, whole=len(wanted) == len(every))
        if left:
            output.line(f"\nThe supervisor is gone and left {left} processes; `make stop` ends them.")
    if view["status"] != "ok":
        raise NotAllServing


def _wanted(args: argparse.Namespace, connection: Connection, every: list[Service]) -> list[Service]:
    names = {"edge" if name == "fastapi" else name for name in args.services}
    if unknown := names - {service.name for service in every}:
        raise BadValue(
            f"no service {', '.join(sorted(unknown))}; there is {', '.join(service.name for service in every)}"
        )
    if args.engine:
        hosts = connection.loaded.settings.hosts(connection.loaded.root)
        of_kind = {f"engine-{name}" for name, spec in hosts.items() if spec.engine == args.engine}
        if not of_kind:
            raise BadValue(f"no {args.engine} engine is configured: its start command is empty")
        names |= of_kind
    return [service for service in every if not names or service.name in names]


def _view(connection: Connection, wanted: list[Service], fleet: Fleet, processes: list[ProcessRow]) -> dict[str, Any]:
    """What --json prints; its names are kept."""
    serving = [fleet.states[service.name] == SERVING for service in wanted]
    auth, edge = fleet.metrics.get("auth"), fleet.metrics.get("edge")
    limits = auth.by("vllm_proxy_auth_admissions_total", "result", "limit") if auth else {}
    return {
        "status": "ok" if all(serving) else "degraded" if any(serving) else "down",
        "url": edge_url(connection.loaded.settings),
        "config": str(connection.loaded.path),
        "services": [
            {
                "service": row.service,
                "process": row.process,
                "state": row.state,
                "pid": row.pid,
                "uptime_s": row.up_s,
                "machine": row.machine or None,
                "version": fleet.info[row.service].version if row.service in fleet.info else None,
                "detail": row.fault or _detail(row, fleet),
                "log": str(row.log),
            }
            for row in processes
        ],
        "hosts": [host_view(host) for host in fleet.hosts],
        "models": [model_view(model) for model in fleet.models if not model.model.base],
        "adapters": adapter_views(fleet.hosts, fleet.declarations),
        "load": {
            "requests_in_flight": int(edge.total("vllm_proxy_edge_requests_in_flight")) if edge else None,
            "waiting_for_a_limit": int(auth.total("vllm_proxy_auth_waiting")) if auth else None,
            "open_leases": int(auth.total("vllm_proxy_auth_open_leases")) if auth else None,
            "keys": int(auth.total("vllm_proxy_auth_keys")) if auth else None,
        },
        "refusals": [
            {"reason": reason, "limit": limit or None, "count": int(count)}
            for (reason, limit), count in sorted(limits.items())
            if reason != "admitted" and count
        ],
    }


def _detail(row: ProcessRow, fleet: Fleet) -> str:
    """Why it does not serve, as far as somebody knows."""
    if row.state == SERVING:
        return ""
    if row.service == "edge" and fleet.health:
        away = [name for name, state in fleet.health["services"].items() if state != "up"]
        if fleet.health["status"] == "draining":
            return "it is being stopped"
        return f"no session with {', '.join(away)}" if away else "no engine takes requests"
    host = next((host for host in fleet.hosts if f"engine-{host.name}" == row.service), None)
    return host.detail if host is not None else ""


def _print(output: Output, view: dict[str, Any], *, whole: bool) -> None:
    if whole:
        word = output.paint(view["status"], STATE_COLOURS[view["status"]])
        output.line(f"{output.paint('vLLM Proxy', BOLD)} at {view['url']}: {word}\n")
    output.table(
        ["SERVICE", "STATE", "PID", "UP", "MACHINE", "LOG", "DETAIL"],
        (
            [
                s["process"],
                s["state"],
                None if s["pid"] is None else Figure(s["pid"]),
                span(s["uptime_s"]),
                s["machine"] or "",
                s["log"],
                s["detail"],
            ]
            for s in view["services"]
        ),
        STATE_COLOURS,
    )
    if not whole:
        return
    print_hosts(output, view["hosts"])
    if view["models"] or view["adapters"]:
        output.line()
    models = [[m["name"], "model", None, ", ".join(m["hosts"]), ""] for m in view["models"]]
    adapters = [
        [a["name"], "adapter", a["base"], ", ".join(a["hosts"]), "; ".join(a["errors"])] for a in view["adapters"]
    ]
    output.table(["MODEL", "KIND", "BASE", "HOSTS", "ERRORS"], models + adapters)
    load = view["load"]
    if load["open_leases"] is not None:
        in_flight = "?" if load["requests_in_flight"] is None else f"{load['requests_in_flight']:,}"
        waiting = f", {load['waiting_for_a_limit']:,} wait for a limit" if load["waiting_for_a_limit"] else ""
        output.line(f"\nNow: {in_flight} requests run{waiting}; {load['keys']:,} keys in force.")
        refused = ", ".join(map(_refusal, view["refusals"]))
        output.line(f"Refused since auth's start: {refused or 'nothing'}.")


def _refusal(row: dict[str, Any]) -> str:
    limit = f" ({row['limit']})" if row["limit"] else ""
    return f"{row['count']:,} {row['reason']}{limit}"


def print_hosts(output: Output, hosts: list[dict[str, Any]]) -> None:
    if hosts:
        output.line()
    output.table(
        ["HOST", "ENGINE", "STATE", "RUNNING", "WAITING", "KV", "IN FLIGHT", "DETAIL"],
        (
            [
                host["name"],
                f"{host['engine']} {host['engine_version']}".strip(),
                host["state"],
                host["running"],
                host["waiting"],
                percent(host["kv_usage"]),
                host["in_flight"],
                host["detail"],
            ]
            for host in hosts
        ),
        STATE_COLOURS,
    )


def percent(part: float) -> Figure:
    return Figure(f"{part:.0%}")


def span(seconds: int | None) -> Figure | None:
    if seconds is None:
        return None
    days, rest = divmod(seconds, 86_400)
    return Figure(f"{f'{days}d ' if days else ''}{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}")

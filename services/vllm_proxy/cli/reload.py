"""`vllm-proxy reload`: puts what changed in the configuration and the keys file in force, as far as that needs no
restart."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.cli.command import Commands, Failed, NotAllServing, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import GREEN, RED, YELLOW, Output
from vllm_proxy.cli.processes import Process, Stub, Told, processes_of, tell_all

_COLOURS = {"applied": GREEN, "as the file says": GREEN, "needs a restart": YELLOW, "problem": RED, "error": RED}
#: Beyond what loading the adapters of a changed `lora.preload` may take.
_MARGIN_S = 5.0


def add_commands(commands: Commands) -> None:
    reload = add_command(
        commands,
        "reload",
        "puts changed limits, keys, mappings, log levels and adapters in force; says what needs a restart",
        _reload,
    )
    reload.add_argument("services", nargs="*", metavar="SERVICE", help="only these: auth, router, engine-NAME, edge")


async def _reload(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    # A file that is wrong has been refused already: nobody is asked then.
    settings = connection.loaded.settings

    async def call(stub: Stub, process: Process) -> Any:
        loads = process.service.startswith("engine-")
        timeout_s = settings.router.adapter_timeout_s if loads else settings.grpc.call_timeout_s
        return await stub.Reload(pb.ReloadRequest(), timeout=timeout_s + _MARGIN_S)

    told = await tell_all(connection, processes_of(connection, args.services), call)
    rows = [_view(each) for each in told]
    if output.as_json:
        output.json({"config": str(connection.loaded.path), "services": rows})
    else:
        output.table(["SERVICE", "OUTCOME", "WHAT"], (line for row in rows for line in _lines(row)), _COLOURS)
        if restarts := sorted({pending["restart"] for row in rows for pending in row["needs_restart"]}):
            output.note(f"Restart {', '.join(restarts)} to put the rest in force; `make restart` restarts everything.")
    if any(each.failed and not each.is_down for each in told) or any(row["problems"] for row in rows):
        raise Failed("not everything was put in force")
    if down := [each.process.name for each in told if each.is_down]:
        raise NotAllServing(f"no answer from {', '.join(down)}: it reads the file when it starts")


def _view(told: Told) -> dict[str, Any]:
    answer = told.answer or pb.ReloadResponse()
    return {
        "service": told.process.service,
        "process": told.process.name,
        "applied": sorted(answer.applied),
        "needs_restart": [{"setting": p.setting, "restart": p.service} for p in answer.needs_restart],
        "problems": list(answer.problems),
        "error": told.error,
    }


def _lines(row: dict[str, Any]) -> list[list[str]]:
    lines = []
    if row["error"]:
        lines.append(["error", row["error"]])
    if row["applied"]:
        lines.append(["applied", ", ".join(row["applied"])])
    if row["needs_restart"]:
        lines.append(["needs a restart", ", ".join(pending["setting"] for pending in row["needs_restart"])])
    lines += [["problem", problem] for problem in row["problems"]]
    lines = lines or [["as the file says", ""]]
    return [[row["process"], *line] for line in lines]

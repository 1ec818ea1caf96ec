"""`vllm-proxy log-level`: how much each process logs now, and changing it while it runs."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.cli.command import Commands, NotAllServing, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import Output
from vllm_proxy.cli.processes import Process, Stub, processes_of, tell_all

_LEVELS = [name.removeprefix("LOG_LEVEL_") for name, number in pb.LogLevel.items() if number]
#: What the configuration says.
_CONFIGURED = "configured"


def add_commands(commands: Commands) -> None:
    level = add_command(commands, "log-level", "how much each service logs, or how much it is to log", _level)
    level.add_argument(
        "service", nargs="?", default="all", metavar="SERVICE", help="edge, auth, router, engine-NAME; default: all"
    )
    level.add_argument(
        "level",
        nargs="?",
        metavar="LEVEL",
        type=lambda text: text if text == _CONFIGURED else text.upper(),
        choices=[*_LEVELS, _CONFIGURED],
        help=f"until it restarts: {', '.join(_LEVELS)}, or `{_CONFIGURED}`, as the configuration says",
    )


async def _level(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    timeout_s = connection.loaded.settings.grpc.call_timeout_s

    async def call(stub: Stub, _: Process) -> str:
        if args.level is None:
            answer: Any = (await stub.GetInfo(pb.GetInfoRequest(), timeout=timeout_s)).log_level
        else:
            wanted = "LOG_LEVEL_UNSPECIFIED" if args.level == _CONFIGURED else f"LOG_LEVEL_{args.level}"
            answer = (await stub.SetLogLevel(pb.SetLogLevelRequest(level=wanted), timeout=timeout_s)).level
        return pb.LogLevel.Name(answer).removeprefix("LOG_LEVEL_")

    told = await tell_all(connection, processes_of(connection, [] if args.service == "all" else [args.service]), call)
    if output.as_json:
        rows = [
            {"service": t.process.service, "process": t.process.name, "level": t.answer, "error": t.error} for t in told
        ]
        output.json(rows)
    else:
        output.table(["SERVICE", "LEVEL"], ([t.process.name, t.answer or t.error] for t in told))
    if any(each.failed for each in told):
        raise NotAllServing("not every service answered")

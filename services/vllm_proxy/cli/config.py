"""`vllm-proxy config`: what the configuration says, whether it is good, and what is in force."""

from __future__ import annotations

import argparse
import json
from typing import Any

import yaml

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.cli.command import Commands, NotAllServing, add_command, add_group
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import GREEN, RED, YELLOW, Output
from vllm_proxy.cli.processes import Process, Stub, Told, processes_of, tell_all
from vllm_proxy.cli.values import BadValue
from vllm_proxy.common.maintenance import masked
from vllm_proxy.common.setting_effects import applies, flattened, roles_of, waiting

_AS_FILE, _DIFFERS = "as the file says", "differs"
_COLOURS = {_AS_FILE: GREEN, _DIFFERS: YELLOW, "does not answer": RED}


def add_commands(commands: Commands) -> None:
    group = add_group(commands, "config", "the configuration")
    show = add_command(group, "show", "every setting with its value, defaults filled in, secrets masked", _show)
    show.add_argument(
        "--effective", action="store_true", help="what the services use now, where it is not what the file says"
    )
    show.add_argument("service", nargs="?", metavar="SERVICE", help="with --effective: everything that this one uses")
    show.set_defaults(survives=True)
    add_command(group, "check", "whether the file is good; one line for each fault, and exit code 2", _check)


async def _show(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    if args.effective:
        await _show_effective(args, connection, output)
        return
    if args.service:
        raise BadValue(f"what {args.service} uses is shown by --effective")
    _print_settings(output, masked(connection.loaded.settings.model_dump(mode="json")))


def _print_settings(output: Output, settings: dict[str, Any]) -> None:
    if output.as_json:
        output.json(settings)
    else:
        output.line(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip())


async def _show_effective(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    timeout_s = connection.loaded.settings.grpc.call_timeout_s

    async def call(stub: Stub, _: Process) -> Any:
        answer = await stub.GetEffectiveConfig(pb.GetEffectiveConfigRequest(), timeout=timeout_s)
        return yaml.safe_load(answer.yaml)

    told = await tell_all(connection, processes_of(connection, [args.service] if args.service else []), call)
    rows = [_compared(connection, each) for each in told]
    if output.as_json:
        output.json({"config": str(connection.loaded.path), "services": rows})
    elif args.service and (answers := [each.answer for each in told if each.answer is not None]):
        _print_settings(output, answers[0])
    else:
        _print_differences(output, rows)
    if down := [each.process.name for each in told if each.failed]:
        raise NotAllServing(f"no answer from {', '.join(down)}")


def _compared(connection: Connection, told: Told) -> dict[str, Any]:
    """A service's settings, and those of them that the file has otherwise and the service reads."""
    service, settings = told.process.service, told.answer
    differs = []
    if settings is not None:
        in_file = dict(flattened(masked(connection.loaded.settings.model_dump(mode="json"))))
        in_force = dict(flattened(settings))
        try:
            roles = roles_of(service, connection.loaded)
        except KeyError:  # the file has this host no more
            roles = frozenset({"engine"})
        for path in [*in_file, *(path for path in in_force if path not in in_file)]:
            at_once, restart = applies(path, service, roles), service in waiting(path, service, roles)
            if (at_once or restart) and in_file.get(path) != in_force.get(path):
                row = {"setting": ".".join(path), "in_force": in_force.get(path), "file": in_file.get(path)}
                differs.append({**row, "needs": "reload" if at_once else "restart"})
    return {
        "service": service,
        "process": told.process.name,
        "settings": settings,
        "differs": differs,
        "error": told.error,
    }


def _print_differences(output: Output, rows: list[dict[str, Any]]) -> None:
    output.table(
        ["SERVICE", "CONFIGURATION"],
        ([row["process"], row["error"] or (_DIFFERS if row["differs"] else _AS_FILE)] for row in rows),
        _COLOURS,
    )
    if any(row["differs"] for row in rows):
        output.line()
    output.table(
        ["SERVICE", "SETTING", "IN FORCE", "FILE", "NEEDS"],
        (
            [row["process"], each["setting"], json.dumps(each["in_force"]), json.dumps(each["file"]), each["needs"]]
            for row in rows
            for each in row["differs"]
        ),
    )


async def _check(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    loaded = connection.loaded
    if output.as_json:
        output.json({"config": str(loaded.path), "good": True, "warnings": list(loaded.warnings)})
        return
    for warning in loaded.warnings:
        output.line(f"warning: {warning}")
    output.line(f"{loaded.path}: good")

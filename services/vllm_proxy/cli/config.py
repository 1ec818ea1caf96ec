"""`vllm-proxy config`: what the configuration says, whether it is good, and what is in force."""

from __future__ import annotations

import argparse

import yaml

from vllm_proxy.cli.command import Commands, add_command, add_group
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import Output
from vllm_proxy.common.maintenance import masked


def add_commands(commands: Commands) -> None:
    group = add_group(commands, "config", "the configuration")
    add_command(group, "show", "every setting with its value, defaults filled in, secrets masked", _show)
    add_command(group, "check", "whether the file is good; one line for each fault, and exit code 2", _check)


async def _show(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    settings = masked(connection.loaded.settings.model_dump(mode="json"))
    if output.as_json:
        output.json(settings)
    else:
        output.line(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip())


async def _check(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    loaded = connection.loaded
    if output.as_json:
        output.json({"config": str(loaded.path), "good": True, "warnings": list(loaded.warnings)})
        return
    for warning in loaded.warnings:
        output.line(f"warning: {warning}")
    output.line(f"{loaded.path}: good")

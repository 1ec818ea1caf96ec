"""What every command is made of."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import Output

Run = Callable[[argparse.Namespace, Connection, Output], Awaitable[None]]
#: What argparse returns from add_subparsers.
Commands = Any


class Failed(Exception):
    """The command could not do what it was asked for. The message says what to do."""


class NotAllServing(Exception):
    """A service that was asked for does not serve. The message, if any, is an error; else it was shown already."""


def add_command(commands: Commands, name: str, help_text: str, run: Run) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Commands, name: str, help_text: str) -> Commands:
    parser = commands.add_parser(name, help=help_text, description=help_text)
    return parser.add_subparsers(metavar="COMMAND", required=True)

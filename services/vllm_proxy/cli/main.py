"""Reads the arguments, runs a command, tells of a failure in one line.

Exit codes: 0 done; 1 refused or failed; 2 wrong arguments or configuration; 3 the service cannot be reached.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc.aio

from vllm_proxy.cli import audit, config, keys, last_start, log_level, logs, lora, reload, status, top, usage
from vllm_proxy.cli.command import Failed, NotAllServing
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.doctor import command as doctor
from vllm_proxy.cli.output import Output
from vllm_proxy.cli.values import BadValue
from vllm_proxy.common.errors import AuthUnavailable, InvalidRequest, RequestTimeout, RouterUnavailable, ServiceError
from vllm_proxy.common.rpc.status import from_rpc_error
from vllm_proxy.common.settings import ConfigError, LoadedSettings, enter_root, load_settings

#: Each adds its commands to the parser.
GROUPS = (doctor, status, top, logs, log_level, lora, keys, usage, audit, config, reload)
DONE, FAILED, WRONG, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
#: From an editable installation: the project's own configuration.
_PROJECT_CONFIG = Path(__file__).resolve().parents[3] / "config" / "config.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    output = Output(as_json=args.json)
    try:
        if args.standalone is not None:
            return int(args.standalone(args, args.config or _config(), output))
        return asyncio.run(_run(args, output))
    except ConfigError as e:
        faults = [str(e)] if output.as_json else str(e).splitlines()
        return max(_fail(output, fault, WRONG) for fault in faults)
    except BadValue as e:
        return _fail(output, str(e), WRONG)
    except InvalidRequest as e:
        return _fail(output, e.message, WRONG)
    except Failed as e:
        return _fail(output, str(e), FAILED)
    except NotAllServing as e:
        return _fail(output, str(e), UNREACHABLE) if str(e) else UNREACHABLE
    except RouterUnavailable:
        return _fail(output, "the router does not answer: is it running? (make status; make start-router)", UNREACHABLE)
    except (AuthUnavailable, RequestTimeout):
        return _fail(
            output, "the auth service does not answer: is it running? (make status; make start-auth)", UNREACHABLE
        )
    except ServiceError as e:
        return _fail(output, e.message, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has enough (`| head`). Nothing may be written at exit either.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


async def _run(args: argparse.Namespace, output: Output) -> int:
    args.cwd = Path.cwd()
    loaded = _load(args.config or _config(), args.survives, output)
    enter_root(loaded)
    async with Connection(loaded) as connection:
        try:
            await args.run(args, connection, output)
        except grpc.aio.AioRpcError as e:
            raise from_rpc_error(e, AuthUnavailable) from None
    sys.stdout.flush()
    return DONE


def _load(path: Path, survives: bool, output: Output) -> LoadedSettings:
    """What runs can be looked at also while its configuration is broken. Raises ConfigError."""
    try:
        return load_settings(path)
    except ConfigError as fault:
        if not survives or (last := last_start.load(path)) is None:
            raise
        faults = "; ".join(str(fault).splitlines())
        output.note(f"note: {faults}; using the configuration of the last start")
        return last


def _config() -> Path:
    here = Path("config/config.yaml")
    return here if here.exists() or not _PROJECT_CONFIG.exists() else _PROJECT_CONFIG


def _fail(output: Output, message: str, code: int) -> int:
    output.error(message)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-proxy",
        description="What a vLLM Proxy on this machine does, and what it is told to do.",
        epilog="Exit codes: 0 done; 1 it failed; 2 the command or the configuration is wrong; 3 a service does not "
        "answer; 130 interrupted.",
    )
    parser.add_argument(
        "--config", type=Path, help="configuration file (default: config/config.yaml here, else the project's)"
    )
    parser.set_defaults(json=False, survives=False, standalone=None)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in GROUPS:
        group.add_commands(commands)
    return parser

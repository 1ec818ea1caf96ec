"""`vllm-proxy lora`: load, unload and list adapters."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.api.router.v1 import router_pb2 as pb
from vllm_proxy.cli.command import Commands, add_command, add_group
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import GREEN, RED, YELLOW, Output
from vllm_proxy.cli.router_views import adapter_views
from vllm_proxy.common.errors import ServiceError

_COLOURS = {"loaded": GREEN, "waiting": YELLOW, "failed": RED}
#: Beyond what the router itself gives a host.
_TIMEOUT_MARGIN_S = 5.0


def add_commands(commands: Commands) -> None:
    group = add_group(commands, "lora", "LoRA adapters")
    load = add_command(group, "load", "loads an adapter on every host of its base model, or on none", _load)
    load.add_argument("path", help="the adapter's folder, on the machine of the engine")
    load.add_argument("--name", help="what requests call it (default: the folder's name)")
    load.add_argument("--base", default="", metavar="MODEL", help="its base model, where hosts serve several")
    load.add_argument("--replace", action="store_true", help="give a loaded name new weights")
    unload = add_command(group, "unload", "unloads an adapter wherever it is, once its requests have ended", _unload)
    unload.add_argument("name", help="as `lora list` shows it")
    listed = add_command(group, "list", "lists adapters: where each is, where it came from, what went wrong", _list)
    listed.set_defaults(survives=True)


async def _load(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    path = _as_named(args.path, args.cwd)
    name = args.name or Path(path).name
    spec = pb.AdapterSpec(name=name, path=path, base=args.base, replace=args.replace)
    async with _audited(connection, output, "adapter.load", name, path):
        answer = await connection.ask_router(
            connection.router.LoadAdapter, pb.LoadAdapterRequest(adapter=spec), _timeout_s(connection)
        )
    if output.as_json:
        output.json({"name": name, "path": path, "hosts": sorted(answer.hosts)})
    else:
        output.line(f"Loaded {name} on {', '.join(sorted(answer.hosts))}.")


async def _unload(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    async with _audited(connection, output, "adapter.unload", args.name):
        answer = await connection.ask_router(
            connection.router.UnloadAdapter, pb.UnloadAdapterRequest(name=args.name), _timeout_s(connection)
        )
    if output.as_json:
        output.json({"name": args.name, "hosts": sorted(answer.hosts)})
    else:
        output.line(f"Unloaded {args.name} from {', '.join(sorted(answer.hosts)) or 'no host: none had it'}.")


async def _list(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    hosts = await connection.ask_router(connection.router.ListHosts, pb.ListHostsRequest())
    declared = await connection.ask_router(connection.router.ListAdapters, pb.ListAdaptersRequest())
    adapters = adapter_views(hosts.hosts, declared.adapters)
    if output.as_json:
        output.json(adapters)
        return
    output.table(
        ["NAME", "STATE", "BASE", "HOSTS", "FROM", "PATH", "ERRORS"],
        (
            [a["name"], a["state"], a["base"], a["hosts"] or None, a["origin"], a["path"], "; ".join(a["errors"])]
            for a in adapters
        ),
        _COLOURS,
    )
    if not adapters:
        output.note("No adapters. Load one: vllm-proxy lora load PATH")


def _as_named(path: str, cwd: Path) -> str:
    """A relative path is meant as one of the configuration's root, as in the configuration; one that is there only
    from where the command was given, as that."""
    if not Path(path).is_absolute() and not Path(path).exists() and (cwd / path).exists():
        return str((cwd / path).resolve())
    return path


def _timeout_s(connection: Connection) -> float:
    return connection.loaded.settings.router.adapter_timeout_s + _TIMEOUT_MARGIN_S


@contextlib.asynccontextmanager
async def _audited(
    connection: Connection, output: Output, action: str, target: str, detail: str = ""
) -> AsyncIterator[None]:
    """Enters into the audit log how it ended, as the same over HTTP does."""
    outcome = "ok"
    try:
        yield
    except ServiceError as e:
        outcome, detail = e.reason, e.message
        raise
    finally:
        entry = auth_pb2.RecordActionRequest(
            actor=connection.actor(), action=action, target=target, outcome=outcome, detail=detail
        )
        try:
            await connection.ask(connection.auth.RecordAction, entry)
        except grpc.aio.AioRpcError as e:
            output.note(f"not in the audit log: the auth service did not answer ({e.code().name})")

"""`vllm-proxy keys`: create, list, show, update, revoke, rotate, reload."""

from __future__ import annotations

import argparse
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.cli.command import Commands, Failed, add_command, add_group
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.key_fields import key_fields
from vllm_proxy.cli.key_options import add_spec_options, spec_of
from vllm_proxy.cli.output import GREEN, RED, YELLOW, Output
from vllm_proxy.cli.values import BadValue, duration_s
from vllm_proxy.common.views import key_view

_PAGE = 500
_COLOURS = {"active": GREEN, "disabled": YELLOW, "expired": YELLOW, "revoked": RED}


def add_commands(commands: Commands) -> None:
    group = add_group(commands, "keys", "API keys")

    create = add_command(group, "create", "makes a key and shows it once", _create)
    create.add_argument("--user", required=True, help="who it belongs to; `admin` may administer")
    create.add_argument("-q", "--quiet", action="store_true", help="print nothing but the key")
    add_spec_options(create)

    listed = add_command(group, "list", "lists keys: those of the keys file, then those made since", _list)
    listed.add_argument("--user", default="", help="only this user's")
    listed.add_argument("--all", action="store_true", help="revoked ones, too")
    listed.add_argument("--limit", type=int, default=0, metavar="N", help="at most so many")

    show = add_command(group, "show", "shows one key", _show)
    update = add_command(group, "update", "changes a key; what is not named stays; `none` clears", _update)
    update.add_argument("--user", help="who it belongs to")
    add_spec_options(update)
    rotate = add_command(group, "rotate", "gives a key a new secret, shown once; the old one lapses later", _rotate)
    rotate.add_argument(
        "--overlap", type=duration_s, metavar="TIME", help="how long the old secret stays good: 0, 12h, 7d"
    )
    rotate.add_argument("-q", "--quiet", action="store_true", help="print nothing but the new secret")
    revoke = add_command(group, "revoke", "revokes keys for good; what they run may end", _revoke)
    add_command(group, "reload", "reads the keys file again", _reload)
    for parser in (show, update, rotate):
        parser.add_argument("key_id", help="the key's id, as `keys list` shows it")
    revoke.add_argument("key_id", nargs="+", help="ids, as `keys list` shows them")


async def _create(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    spec, _ = spec_of(args)
    request = auth_pb2.CreateKeyRequest(spec=spec, actor=connection.actor())
    answer = await connection.ask(connection.auth.CreateKey, request)
    _show_secret(args, output, answer.key, answer.secret, f"Made key {answer.key.key_id} for {answer.key.user}.")


async def _rotate(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    request = auth_pb2.RotateKeyRequest(
        key_id=args.key_id,
        overlap_ms=None if args.overlap is None else round(args.overlap * 1000),
        actor=connection.actor(),
    )
    answer = await connection.ask(connection.auth.RotateKey, request)
    until = key_view(answer.key)["old_secret_expires_at"]
    old = f"The old secret stays good until {until}." if until else "The old secret is no longer good."
    _show_secret(args, output, answer.key, answer.secret, f"Rotated key {answer.key.key_id}. {old}")


def _show_secret(args: argparse.Namespace, output: Output, key: auth_pb2.Key, secret: str, done: str) -> None:
    if output.as_json:
        output.json({**key_view(key), "key": secret})
    elif args.quiet:
        output.line(secret)
    else:
        output.note(f"{done} This is its secret, shown only now:")
        output.line(secret)


async def _list(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    keys: list[auth_pb2.Key] = []
    request = auth_pb2.ListKeysRequest(user=args.user, show_revoked=args.all, page_size=_PAGE)
    while True:
        answer = await connection.ask(connection.auth.ListKeys, request)
        keys += answer.keys
        request.page_token = answer.next_page_token
        if not answer.next_page_token or (args.limit and len(keys) >= args.limit):
            break
    keys = keys[: args.limit] if args.limit else keys
    if output.as_json:
        output.json([key_view(key) for key in keys])
        return
    header = ["ID", "KEY", "USER", "NAME", "STATE", "FROM", "QUOTA", "USED", "REQUESTS", "LAST USED"]
    output.table(header, (_row(key) for key in keys), _COLOURS)
    if not keys:
        output.note("No keys. Make one: vllm-proxy keys create --user NAME")


def _row(key: auth_pb2.Key) -> list[Any]:
    fields = key_view(key)
    used = fields["quota_used"] if fields["quota"] is not None else fields["usage"]["total_tokens"]
    return [
        key.key_id,
        key.prefix,
        key.user,
        key.spec.name,
        fields["state"],
        "file" if fields["source"] == "declared" else "api",
        fields["quota"],
        used,
        key.requests,
        _minute(fields["last_used_at"]),
    ]


def _minute(moment: str | None) -> str | None:
    return moment[:16].replace("T", " ") if moment else None


async def _show(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    answer = await connection.ask(connection.auth.GetKey, auth_pb2.GetKeyRequest(key_id=args.key_id))
    _print(output, answer.key)


async def _update(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    spec, paths = spec_of(args)
    if not paths:
        raise BadValue("nothing to change: name an option such as --quota or --disable (--help lists them)")
    if spec.rate_limit.ListFields() or "rate_limit" in paths:
        spec, paths = await _with_other_limits(args, connection, spec, paths)
    request = auth_pb2.UpdateKeyRequest(
        key_id=args.key_id, spec=spec, update_mask=FieldMask(paths=paths), actor=connection.actor()
    )
    answer = await connection.ask(connection.auth.UpdateKey, request)
    _print(output, answer.key)


async def _with_other_limits(
    args: argparse.Namespace, connection: Connection, spec: auth_pb2.KeySpec, paths: list[str]
) -> tuple[auth_pb2.KeySpec, list[str]]:
    """Rate limits are changed as a whole over the wire, one by one on the command line."""
    answer = await connection.ask(connection.auth.GetKey, auth_pb2.GetKeyRequest(key_id=args.key_id))
    limits = answer.key.spec.rate_limit
    for name in ("qps", "concurrent", "tokens_per_minute"):
        if getattr(args, name) is not None:
            limits.ClearField(name)
    limits.MergeFrom(spec.rate_limit)
    spec.rate_limit.CopyFrom(limits)
    return spec, paths


async def _revoke(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    revoked = []
    for key_id in args.key_id:
        request = auth_pb2.DeleteKeyRequest(key_id=key_id, actor=connection.actor())
        answer = await connection.ask(connection.auth.DeleteKey, request)
        revoked.append(key_view(answer.key))
        if not output.as_json:
            output.line(f"Revoked key {key_id} of {answer.key.user}. Its running requests may end.")
    if output.as_json:
        output.json(revoked)


async def _reload(_args: argparse.Namespace, connection: Connection, output: Output) -> None:
    request = auth_pb2.ReloadKeysRequest(actor=connection.actor())
    answer = await connection.ask(connection.auth.ReloadKeys, request)
    if output.as_json:
        output.json({"keys": answer.keys, "problems": list(answer.problems)})
    else:
        output.line(f"{answer.keys:,} keys are in force.")
    if answer.problems:
        raise Failed(f"skipped in the keys file: {'; '.join(answer.problems)}")


def _print(output: Output, key: auth_pb2.Key) -> None:
    if output.as_json:
        output.json(key_view(key))
    else:
        output.fields(key_fields(key))

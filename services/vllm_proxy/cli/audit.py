"""`vllm-proxy audit`: who administered what."""

from __future__ import annotations

import argparse
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.cli.command import Commands, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import GREEN, Output
from vllm_proxy.cli.values import ago_ms
from vllm_proxy.common.views import audit_line

_PAGE = 500


def add_commands(commands: Commands) -> None:
    audit = add_command(commands, "audit", "who administered what, the newest first", _audit)
    audit.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    audit.add_argument("--actor", default="", help="only by this user or with this key id")
    audit.add_argument("--action", default="", help="only this one, or `key.` for all of keys")
    audit.add_argument("--target", default="", help="only on this key id or adapter")
    audit.add_argument("--from", dest="start", type=ago_ms, metavar="WHEN", help="7d, 2026-11-01 (UTC)")
    audit.add_argument("--to", dest="end", type=ago_ms, metavar="WHEN", help="exclusive; default: now")


async def _audit(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    entries: list[auth_pb2.AuditEntry] = []
    request = auth_pb2.ListAuditLogRequest(
        actor=args.actor,
        action=args.action,
        target=args.target,
        from_ms=args.start or 0,
        to_ms=args.end or 0,
    )
    while len(entries) < args.limit:
        request.page_size = min(_PAGE, args.limit - len(entries))
        answer = await connection.ask(connection.auth.ListAuditLog, request)
        entries += answer.entries
        request.page_token = answer.next_page_token
        if not answer.next_page_token:
            break
    if output.as_json:
        output.json([audit_line(entry) for entry in entries])
        return
    header = ["AT (UTC)", "WHO", "FROM", "ACTION", "TARGET", "OUTCOME", "DETAIL"]
    output.table(header, (_row(entry) for entry in entries), {"ok": GREEN})
    if not entries:
        output.note("Nothing was administered in that time.")


def _row(entry: auth_pb2.AuditEntry) -> list[Any]:
    line = audit_line(entry)
    at = line["at"][:19].replace("T", " ")
    return [at, *(line[name] for name in ("user", "client_address", "action", "target", "outcome", "detail"))]

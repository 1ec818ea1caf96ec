"""`vllm-proxy usage`: tokens and requests by key, user, model, adapter, day, hour."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import AsyncIterator
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.cli.command import Commands, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import BOLD, Output
from vllm_proxy.cli.values import BadValue, ago_ms
from vllm_proxy.common.views import USAGE_COUNTS, USAGE_GROUPS, usage_row

_PAGE = 10_000


def add_commands(commands: Commands) -> None:
    usage = add_command(commands, "usage", "tokens and requests that were used", _usage)
    usage.add_argument(
        "--by", default="user", metavar="A,B", help=f"any of {', '.join(USAGE_GROUPS)}; `none`: one sum (default: user)"
    )
    usage.add_argument(
        "--from", dest="start", type=ago_ms, metavar="WHEN", help="7d, 2026-11-01 (UTC); default: the beginning"
    )
    usage.add_argument("--to", dest="end", type=ago_ms, metavar="WHEN", help="exclusive; default: now")
    usage.add_argument("--key", default="", metavar="ID", help="only this key's")
    usage.add_argument("--user", default="", help="only this user's")
    usage.add_argument("--model", default="", help="only this model's or adapter's")
    usage.add_argument("--csv", action="store_true", help="print CSV")


async def _usage(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    groups = [] if args.by == "none" else [name.strip() for name in args.by.split(",") if name.strip()]
    for name in groups:
        if name not in USAGE_GROUPS:
            raise BadValue(f"--by: {name!r} must be one of {', '.join(USAGE_GROUPS)}, or none")
    if args.csv:
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow([*groups, *USAGE_COUNTS])
        async for row in _rows(args, connection, groups):
            lines.writerow(row.values())
        return
    rows = [row async for row in _rows(args, connection, groups)]
    if output.as_json:
        output.json(rows)
        return
    counts = [count for count in USAGE_COUNTS if count != "charged_tokens" or _weighted(rows)]
    names = [name.upper().replace("_", " ").removesuffix(" TOKENS") for name in (*groups, *counts)]
    shown: list[list[Any]] = [[row[name] or "-" for name in groups] + [row[name] for name in counts] for row in rows]
    if groups and len(rows) > 1:
        totals = [sum(row[name] for row in rows) for name in counts]
        shown.append(["total", *[""] * (len(groups) - 1), *totals])
    output.table(names, shown, {"total": BOLD})
    if groups and not rows:
        output.note("Nothing was used in that time.")


def _weighted(rows: list[dict[str, Any]]) -> bool:
    return any(row["charged_tokens"] != row["total_tokens"] for row in rows)


async def _rows(args: argparse.Namespace, connection: Connection, groups: list[str]) -> AsyncIterator[dict[str, Any]]:
    request = auth_pb2.QueryUsageRequest(
        from_ms=args.start or 0,
        to_ms=args.end or 0,
        group_by=[USAGE_GROUPS[name][0] for name in groups],
        key_id=args.key,
        user=args.user,
        model=args.model,
        page_size=_PAGE,
    )
    while True:
        answer = await connection.ask(connection.auth.QueryUsage, request)
        for row in answer.rows:
            yield usage_row(row, groups)
        request.page_token = answer.next_page_token
        if not answer.next_page_token:
            return

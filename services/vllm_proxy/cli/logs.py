"""`vllm-proxy logs`: the lines of all services in the order of time, or the story of one request."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from vllm_proxy.cli.command import Commands, Failed, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.log_follow import POLL_S, FollowedLogs, end_of
from vllm_proxy.cli.log_history import all_lines, last_lines, lines_with
from vllm_proxy.cli.log_lines import LEVELS, Line, as_json, at_least, for_people, names
from vllm_proxy.cli.output import DIM, RED, YELLOW, Output
from vllm_proxy.cli.services import log_files
from vllm_proxy.cli.values import BadValue, ago_ms

DEFAULT_LINES = 100
#: Fields that name the same request in other words: the auth service's lease, the engine's own id.
_ALIASES = ("lease_id", "engine_request_id", "error_id")
_COLOURS = {"WARNING": YELLOW, "ERROR": RED, "CRITICAL": RED}
#: So often Ctrl-C is looked for while much is read.
_TURN = 500


def add_commands(commands: Commands) -> None:
    logs = add_command(commands, "logs", "the services' logs in the order of time, or one request's story", _logs)
    logs.set_defaults(survives=True)
    logs.add_argument(
        "service",
        nargs="?",
        default="all",
        metavar="SERVICE",
        help="edge, auth, router, engine-NAME, vllm (an engine's own output), nginx, supervisord; default: all",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="stay and show what comes; Ctrl-C ends")
    logs.add_argument("--request-id", metavar="ID", help="only what is about this request (x-request-id of its answer)")
    logs.add_argument(
        "--lines", metavar="N", help=f"the last N (default: {DEFAULT_LINES}; all with --since or --request-id)"
    )
    logs.add_argument("--since", type=ago_ms, metavar="WHEN", help="not before: 15m, 2h, 2026-11-01T12:00 (UTC)")
    logs.add_argument("--level", type=str.upper, choices=LEVELS[:-1], help="only lines of this level and above")


async def _logs(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    count = _count(args)
    logs = log_files(connection.loaded, args.service)
    missing = [_shown(path, connection.loaded.root) for path in logs.values() if not path.exists()]
    if missing and (args.follow or len(missing) == len(logs)):
        are = "is" if len(missing) == 1 else "are"
        output.note(f"{', '.join(missing)} {are} not there yet{'; waiting' if args.follow else ''}")
    ends = {label: end_of(path) for label, path in logs.items()}
    printer = LinePrinter(output, logs, request_id=args.request_id)
    since = (args.since or 0) / 1000
    ids: set[str] = set()
    found: Iterable[Line]
    if args.request_id:
        ids = await _ids_of(args.request_id, lines_with(logs, ends, since, [args.request_id]))
        found = (line for line in lines_with(logs, ends, since, ids) if names(line, ids))
    elif count is not None and args.level is None and not since:
        found = last_lines(logs, ends, count)
    else:
        found = all_lines(logs, ends, since)
    if args.level:
        found = (line for line in found if at_least(line, args.level))
    kept: deque[Line] = deque(maxlen=count)
    shown = 0
    async for line in _turns(found):
        shown += 1
        if count is None:
            printer.print(line)
        else:
            kept.append(line)
    for line in kept:
        printer.print(line)
    if args.follow:
        await _follow(args, FollowedLogs(logs, ends), printer, ids)
    elif args.request_id and not shown:
        raise Failed(
            f"no log here names the request {args.request_id}: look at --since and --level, at the logs of other "
            "machines, and whether log_level hides requests (it must be INFO or DEBUG)"
        )


def _count(args: argparse.Namespace) -> int | None:
    if args.lines is None:
        return None if args.request_id or args.since else DEFAULT_LINES
    if not args.lines.isdecimal():
        raise BadValue(f"--lines (TAIL): {args.lines}: must be a number")
    return int(args.lines)


async def _ids_of(request_id: str, lines: Iterator[Line]) -> set[str]:
    ids = {request_id}
    async for line in _turns(lines):
        if line.fields is not None and names(line, {request_id}):
            ids |= {str(line.fields[name]) for name in _ALIASES if line.fields.get(name)}
    return ids


async def _turns(lines: Iterable[Line]) -> AsyncIterator[Line]:
    """Lets Ctrl-C through now and then."""
    for number, line in enumerate(lines):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        yield line


async def _follow(args: argparse.Namespace, logs: FollowedLogs, printer: LinePrinter, ids: set[str]) -> None:
    with closing(logs):
        while True:
            for line in logs.new_lines():
                wanted = not args.request_id or names(line, ids)
                if wanted and args.request_id and line.fields is not None:
                    ids |= {str(line.fields[name]) for name in _ALIASES if line.fields.get(name)}
                if wanted and (args.level is None or at_least(line, args.level)):
                    printer.print(line)
            sys.stdout.flush()
            await asyncio.sleep(POLL_S)


class LinePrinter:
    """A line for each line: JSON for programs; for people the time (UTC), the log, the level, what happened."""

    def __init__(self, output: Output, labels: Iterable[str], request_id: str | None = None) -> None:
        self._output = output
        self._labels = max(map(len, labels), default=0)
        self._known = frozenset({"request_id"}) if request_id else frozenset()

    def print(self, line: Line) -> None:
        output = self._output
        if output.as_json:
            output.line(json.dumps(as_json(line), ensure_ascii=False))
            return
        when, level, text = for_people(line, self._known)
        colour = _COLOURS.get(level, "")
        head = f"{output.paint(when.ljust(24), DIM)} {line.label:<{self._labels}} "
        output.line(f"{head}{output.paint(f'{level:<7}', colour) if colour else f'{level:<7}'} {text}".rstrip())


def follow_until(logs: dict[str, Path], ended: Callable[[], bool]) -> None:
    """Prints what is appended to the logs until `ended()`. For a program without an event loop."""
    printer = LinePrinter(Output(as_json=False), logs)
    with closing(FollowedLogs(logs)) as followed:
        while True:
            last = ended()
            for line in followed.new_lines():
                printer.print(line)
            sys.stdout.flush()
            if last:
                return
            time.sleep(POLL_S)


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)

"""`vllm-proxy top`: requests, tokens, times and queues, per host and per key, again and again."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from vllm_proxy.cli.command import Commands, Failed, add_command
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.output import BOLD, Figure, Output
from vllm_proxy.cli.status import STATE_COLOURS, percent
from vllm_proxy.cli.top_sample import Moment, compare, observe
from vllm_proxy.cli.values import BadValue

DEFAULT_INTERVAL_S = 2.0
LEAST_INTERVAL_S = 0.2
DEFAULT_KEYS = 15
#: The other screen, without a cursor and with lines cut off at its edge, and back.
_ENTER, _LEAVE = "\033[?1049h\033[?25l\033[?7l", "\033[?7h\033[?25h\033[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\033[H", "\033[K", "\033[J"


def add_commands(commands: Commands) -> None:
    top = add_command(commands, "top", "requests/s, tokens/s, time to first token, queues, per host and per key", _top)
    top.set_defaults(survives=True)
    top.add_argument(
        "--interval",
        default=DEFAULT_INTERVAL_S,
        metavar="SECONDS",
        help=f"between two samples (default: {DEFAULT_INTERVAL_S:g})",
    )
    top.add_argument("--once", action="store_true", help="one sample, over one interval, and no more")
    top.add_argument(
        "--keys",
        type=int,
        default=DEFAULT_KEYS,
        metavar="N",
        help=f"so many keys, the busiest (default: {DEFAULT_KEYS})",
    )


async def _top(args: argparse.Namespace, connection: Connection, output: Output) -> None:
    interval_s = _interval_s(args.interval)
    live = output.is_terminal and not args.once and not output.as_json
    with _screen() if live else contextlib.nullcontext():
        before = await observe(connection, args.keys)
        if not before.answers and args.once:
            raise Failed("no service answers: is anything running? (make status)")
        if live:
            _draw(output, compare(before, before), interval_s)
        while True:
            now, before = await _next(connection, args, before, interval_s), before
            sample = compare(before, now)
            before = now
            if live:
                _draw(output, sample, interval_s)
            elif output.as_json:
                output.line(json.dumps(sample, ensure_ascii=False))
            else:
                _print(output, sample)
            sys.stdout.flush()
            if args.once:
                return


async def _next(connection: Connection, args: argparse.Namespace, before: Moment, interval_s: float) -> Moment:
    await asyncio.sleep(max(0.0, before.at + interval_s - time.monotonic()))
    return await observe(connection, args.keys)


def _interval_s(text: str | float) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not LEAST_INTERVAL_S <= seconds <= 3600:
        raise BadValue(f"--interval: {text} must be a number of seconds from {LEAST_INTERVAL_S:g} to 3600")
    return seconds


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen; what was on it before is there again afterwards, whatever ends this."""
    sys.stdout.write(_ENTER)
    sys.stdout.flush()
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _draw(output: Output, sample: dict[str, Any], interval_s: float) -> None:
    """Over what was there, so that nothing flickers; no more than fits."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        _print(output, sample)
        output.line(f"\nEvery {interval_s:g} s. Ctrl-C ends.")
    rows = text.getvalue().splitlines()[: shutil.get_terminal_size().lines - 1]
    sys.stdout.write(_HOME + "".join(f"{row}{_CLEAR_LINE}\r\n" for row in rows) + _CLEAR_BELOW)
    sys.stdout.flush()


def _print(output: Output, sample: dict[str, Any]) -> None:
    total = sample["total"]
    output.line(
        f"{output.paint(sample['at'], BOLD)}  {_number(total['requests_per_s'])} requests/s  "
        f"{_number(total['completion_tokens_per_s'])} tokens/s out, {_number(total['prompt_tokens_per_s'])} in"
    )
    output.line(
        f"TTFT p50 {_ms(total['ttft_p50_ms'])}, p95 {_ms(total['ttft_p95_ms'])}  "
        f"{_count(total['in_flight'])} running, {_count(total['waiting'])} waiting  "
        f"{_number(total['refused_per_s'])} refused/s"
    )
    if sample["down"]:
        output.line(output.paint(f"No answer from {', '.join(sample['down'])}.", STATE_COLOURS["down"]))
    output.line()
    shown = output.table(
        ["HOST", "STATE", "REQ/S", "TOK/S", "TTFT P50", "P95", "RUNNING", "WAITING", "KV", "IN FLIGHT"],
        (
            [
                host["name"],
                host["state"],
                _number(host["requests_per_s"]),
                _number(host["completion_tokens_per_s"]),
                _ms(host["ttft_p50_ms"]),
                _ms(host["ttft_p95_ms"]),
                host["running"],
                host["waiting"],
                percent(host["kv_usage"]),
                host["in_flight"],
            ]
            for host in sample["hosts"]
        ),
        STATE_COLOURS,
    )
    if shown and sample["keys"]:
        output.line()
    output.table(
        ["KEY", "USER", "NAME", "REQ/S", "TOK/S", "RUNNING"],
        (
            [
                key["id"],
                key["user"],
                key["name"],
                _number(key["requests_per_s"]),
                _number(key["tokens_per_s"]),
                key["running"],
            ]
            for key in sample["keys"]
        ),
    )
    output.line()


def _number(value: float | None) -> Figure:
    return Figure("-" if value is None else f"{value:,.1f}")


def _ms(value: float | None) -> Figure:
    return Figure("-" if value is None else f"{value:,.0f} ms")


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"

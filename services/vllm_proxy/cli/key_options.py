"""The options that say what a key may do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.cli.values import NONE, UNLIMITED, ahead_ms, duration_s, quantity
from vllm_proxy.common.views import PERIODS


def add_spec_options(parser: argparse.ArgumentParser) -> None:
    """Beside --user. Each is None if it was not given, NONE if it is to be cleared."""
    add = parser.add_argument
    add("--name", help="what people call it")
    add("--quota", type=_or(quantity, NONE), metavar="TOKENS", help="tokens that it may use: 500k, 1M; none: unlimited")
    add("--period", choices=tuple(PERIODS), help="when the quota begins anew, at midnight UTC (default: total)")
    add("--qps", type=_or(float, NONE, UNLIMITED), metavar="N", help="requests per second; none: the configuration's")
    add("--concurrent", type=_or(quantity, NONE, UNLIMITED), metavar="N", help="requests that run at once")
    add(
        "--tpm",
        dest="tokens_per_minute",
        type=_or(quantity, NONE, UNLIMITED),
        metavar="TOKENS",
        help="tokens per minute; unlimited: whatever the configuration says",
    )
    add(
        "--max-response-tokens",
        type=_or(quantity, NONE, UNLIMITED),
        metavar="TOKENS",
        help="the longest answer that it may ask for",
    )
    add("--models", metavar="A,B*", help="models and adapters that it may use; none: all")
    add("--expires", type=_or(ahead_ms, NONE), metavar="WHEN", help="30d, 2027-01-31; none: never")
    add("--priority", metavar="CLASS", help="a priority class of the configuration, or its number")
    add("--wait", type=_or(duration_s, NONE), metavar="TIME", help="how long a request may wait for a limit: 0, 5s")
    enabled = parser.add_mutually_exclusive_group()
    enabled.add_argument("--disable", dest="enabled", action="store_false", default=None, help="refuse it for now")
    enabled.add_argument("--enable", dest="enabled", action="store_true", default=None, help="accept it again")


def _or(parse: Callable[[str], Any], *words: str) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        if text in words:
            return text
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None

    return value


def spec_of(args: argparse.Namespace) -> tuple[auth_pb2.KeySpec, list[str]]:
    """What was given, and the names of those fields."""
    spec, paths = auth_pb2.KeySpec(), []
    for option, field in (
        ("user", "user"),
        ("name", "name"),
        ("enabled", "enabled"),
        ("quota", "quota"),
        ("period", "quota_period"),
        ("max_response_tokens", "max_response_tokens"),
        ("models", "models"),
        ("expires", "expires_at_ms"),
        ("priority", "priority"),
        ("wait", "admission_wait_ms"),
    ):
        value = getattr(args, option)
        if value is None:
            continue
        paths.append(field)
        if value != NONE:
            _set(spec, field, value)
    for name in ("qps", "concurrent", "tokens_per_minute"):
        value = getattr(args, name)
        if value is None:
            continue
        if "rate_limit" not in paths:
            paths.append("rate_limit")
        if value != NONE:
            setattr(spec.rate_limit, name, 0 if value == UNLIMITED else value)
    return spec, paths


def _set(spec: auth_pb2.KeySpec, field: str, value: Any) -> None:
    match field:
        case "quota_period":
            spec.quota_period = PERIODS[value]
        case "models":
            spec.models.patterns.extend(name.strip() for name in value.split(",") if name.strip())
        case "admission_wait_ms":
            spec.admission_wait_ms = round(value * 1000)
        case _:
            setattr(spec, field, 0 if value == UNLIMITED else value)

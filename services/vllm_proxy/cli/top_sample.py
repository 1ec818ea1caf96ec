"""What `top` shows: two moments, and the difference between them.

Counters come from the services' metrics, loads from the router, keys from the auth service's usage: for a key, a
request's tokens count when it ends.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from vllm_proxy.api.auth.v1 import auth_pb2
from vllm_proxy.cli.connection import Connection
from vllm_proxy.cli.fleet import ANSWER_TIMEOUT_S, DOWN, Fleet, look
from vllm_proxy.cli.router_views import host_view
from vllm_proxy.cli.samples import Samples, quantile, rate
from vllm_proxy.cli.services import NGINX, services_of

_HOUR_MS = 3_600_000
_HOST = "vllm_proxy_engine_host_"
_EDGE = "vllm_proxy_edge_"
_AUTH = "vllm_proxy_auth_"


@dataclass(slots=True)
class KeyUse:
    """What a key has used since a fixed hour, and what it runs now."""

    requests: int
    tokens: int
    user: str = ""
    name: str = ""
    running: int | None = None


@dataclass(slots=True)
class Moment:
    at: float
    """On the monotonic clock."""
    fleet: Fleet
    keys: dict[str, KeyUse] | None
    """None: the auth service did not answer."""

    @property
    def answers(self) -> bool:
        return any(state != DOWN for state in self.fleet.states.values())


async def observe(connection: Connection, keys: int) -> Moment:
    """`keys`: of so many, the busiest of this and the last hour, the names are asked for."""
    services = [service for service in services_of(connection.loaded) if service.name != NGINX]
    fleet, used = await asyncio.gather(look(connection, services, declarations=False), _keys(connection, keys))
    return Moment(time.monotonic(), fleet, used)


async def _keys(connection: Connection, most: int) -> dict[str, KeyUse] | None:
    # Whole hours back: what an hour's sum was is subtracted by the moment before.
    since_ms = (int(time.time() * 1000) // _HOUR_MS - 1) * _HOUR_MS
    request = auth_pb2.QueryUsageRequest(
        from_ms=since_ms, group_by=[auth_pb2.USAGE_GROUP_KEY, auth_pb2.USAGE_GROUP_USER], page_size=10_000
    )
    used: dict[str, KeyUse] = {}
    try:
        answer = await connection.auth.QueryUsage(request, timeout=ANSWER_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return None
    for row in answer.rows:
        used[row.key_id] = KeyUse(row.requests, row.prompt_tokens + row.completion_tokens, user=row.user)
    busiest = sorted(used, key=lambda key: used[key].tokens, reverse=True)[:most]

    async def name(key_id: str) -> None:
        try:
            answer = await connection.auth.GetKey(auth_pb2.GetKeyRequest(key_id=key_id), timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return
        used[key_id].name, used[key_id].running = answer.key.spec.name, answer.key.running

    await asyncio.gather(*map(name, busiest))
    return used


def compare(before: Moment, now: Moment) -> dict[str, Any]:
    """One sample, as --json prints it; its names are kept. Rates are None where a moment has no figures."""
    seconds = now.at - before.at
    hosts = [_host(host_view(host), before, now, seconds) for host in now.fleet.hosts]
    edge, edge_before = now.fleet.metrics.get("edge"), before.fleet.metrics.get("edge")
    auth, auth_before = now.fleet.metrics.get("auth"), before.fleet.metrics.get("auth")
    ttft = f"{_EDGE}time_to_first_byte_seconds"
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "interval_s": round(seconds, 3),
        "down": [name for name, state in now.fleet.states.items() if state == DOWN],
        "total": {
            "requests_per_s": _rate(edge, edge_before, f"{_EDGE}requests_total", seconds),
            "completion_tokens_per_s": _sum(host["completion_tokens_per_s"] for host in hosts),
            "prompt_tokens_per_s": _sum(host["prompt_tokens_per_s"] for host in hosts),
            "ttft_p50_ms": _quantile(edge, edge_before, ttft, 0.5),
            "ttft_p95_ms": _quantile(edge, edge_before, ttft, 0.95),
            "in_flight": int(edge.total(f"{_EDGE}requests_in_flight")) if edge else None,
            "waiting": int(auth.total(f"{_AUTH}waiting")) + sum(h["waiting"] for h in hosts) if auth else None,
            "refused_per_s": _refused(auth, auth_before, seconds),
        },
        "hosts": hosts,
        "keys": _compared_keys(before, now, seconds),
    }


def _host(view: dict[str, Any], before: Moment, now: Moment, seconds: float) -> dict[str, Any]:
    new, old = (moment.fleet.metrics.get(f"engine-{view['name']}") for moment in (now, before))
    ttft = f"{_HOST}time_to_first_byte_seconds"
    return {
        "name": view["name"],
        "state": view["state"],
        "requests_per_s": _rate(new, old, f"{_HOST}requests_total", seconds),
        "completion_tokens_per_s": _tokens(new, old, seconds),
        "prompt_tokens_per_s": _rate(new, old, f"{_HOST}tokens_total", seconds, kind="prompt"),
        "ttft_p50_ms": _quantile(new, old, ttft, 0.5),
        "ttft_p95_ms": _quantile(new, old, ttft, 0.95),
        **{name: view[name] for name in ("running", "waiting", "kv_usage", "in_flight")},
    }


def _compared_keys(before: Moment, now: Moment, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for key_id, use in (now.keys or {}).items():
        if use.running is None:
            continue
        # One that was not there has used nothing before, unless there was no answer.
        old = use if before.keys is None else before.keys.get(key_id) or KeyUse(0, 0)
        rows.append(
            {
                "id": key_id,
                "user": use.user,
                "name": use.name,
                "requests_per_s": rate(use.requests, old.requests, seconds),
                "tokens_per_s": rate(use.tokens, old.tokens, seconds),
                "running": use.running,
            }
        )
    return sorted(rows, key=lambda row: (row["tokens_per_s"], row["running"]), reverse=True)


def _rate(now: Samples | None, before: Samples | None, name: str, seconds: float, **labels: str) -> float | None:
    if now is None or before is None or seconds <= 0:
        return None
    return round(rate(now.total(name, **labels), before.total(name, **labels), seconds), 3)


def _tokens(now: Samples | None, before: Samples | None, seconds: float) -> float | None:
    """Completion tokens, also of requests that have not ended."""
    if now is None or before is None or seconds <= 0:
        return None
    ended, ended_before = (s.total(f"{_HOST}tokens_total", kind="completion") for s in (now, before))
    running, running_before = (s.total(f"{_HOST}running_completion_tokens") for s in (now, before))
    if ended < ended_before:  # the host was started anew
        ended_before = running_before = 0
    return round(max(0.0, ended + running - ended_before - running_before) / seconds, 3)


def _refused(now: Samples | None, before: Samples | None, seconds: float) -> float | None:
    if now is None or before is None or seconds <= 0:
        return None
    name = f"{_AUTH}admissions_total"
    new, old = (s.total(name) - s.total(name, result="admitted") for s in (now, before))
    return round(rate(new, old, seconds), 3)


def _quantile(now: Samples | None, before: Samples | None, name: str, q: float) -> float | None:
    """In milliseconds."""
    if now is None or before is None:
        return None
    seconds = quantile(now.buckets(name), before.buckets(name), q)
    return None if seconds is None else round(seconds * 1000, 1)


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 3) if known else None

"""The Redis that auth replicas share, if there is one: whether it answers, and what its clock says."""

from __future__ import annotations

import asyncio
import os
import time
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok
from vllm_proxy.common.settings import REDIS_PASSWORD_VARIABLE

_TIMEOUT_S = 2.0
_DEFAULT_PORT = 6379


async def store(site: Site) -> list[Finding]:
    url = site.settings.auth.store
    if url.startswith("sqlite:"):
        return [ok("auth keeps its records in SQLite, on this machine")]
    shown = _without_password(url)
    meanwhile = "admits and remembers" if site.settings.auth.store_outage == "fail_open" else "admits nothing new"
    fix = (
        f"start it (systemctl start valkey-server, or redis-server), or correct auth.store; until then auth {meanwhile}"
    )
    try:
        if "+" in url.partition(":")[0]:
            await _first_that_connects(url)
            return [ok(f"{shown} takes connections")]
        return await _asked(site, url, shown)
    except AuthenticationError:
        password = f"put the right password into {REDIS_PASSWORD_VARIABLE} or into auth.store"
        return [fail(f"the store {shown} refuses the password", password)]
    except (RedisError, OSError, TimeoutError, ValueError) as e:
        return [fail(f"the store {shown} does not answer: {_why(e)}", fix)]


async def _asked(site: Site, url: str, shown: str) -> list[Finding]:
    # A password in the URL wins.
    password = os.environ.get(REDIS_PASSWORD_VARIABLE) or None
    client: Redis = Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        password=password,
    )
    try:
        asked_at = time.time()
        try:
            seconds, micros = await client.time()
        except ResponseError as e:
            if "NOAUTH" in str(e):
                raise AuthenticationError from None
            raise
        answered_at = time.time()
    finally:
        await client.aclose()
    ahead_s = seconds + micros / 1e6 - (asked_at + answered_at) / 2
    if abs(ahead_s) - (answered_at - asked_at) / 2 > site.max_skew_s:
        return [skewed(f"the store {shown}", ahead_s)]
    return [ok(f"{shown} answers")]


def skewed(whose: str, ahead_s: float) -> Finding:
    direction = "ahead of" if ahead_s > 0 else "behind"
    return fail(
        f"the clock of {whose} is {abs(ahead_s):.1f} s {direction} this machine's",
        "keep both in step: timedatectl set-ntp true (chrony, systemd-timesyncd) on each machine",
    )


async def _first_that_connects(url: str) -> None:
    nodes = urlsplit(url).netloc.rpartition("@")[2].split(",")
    last: Exception = ValueError("it names no node")
    for node in filter(None, nodes):
        host, colon, port = node.rpartition(":")
        try:
            async with asyncio.timeout(_TIMEOUT_S / len(nodes)):
                _, writer = await asyncio.open_connection(
                    host if colon else node, int(port) if colon else _DEFAULT_PORT
                )
        except (OSError, TimeoutError) as e:
            last = e
            continue
        writer.close()
        return
    raise last


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

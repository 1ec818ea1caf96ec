"""Refuses requests whose media URLs lead into the operator's own network: the engine would fetch them.

Names are looked up too. The engine looks them up again, so a name that changes its address in between is not caught;
who must rule that out forbids the engine's machine to reach what it should not.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson

from vllm_proxy.common.errors import InvalidRequest

LOOK_UP_TIMEOUT_S = 5.0
#: Of one request; no conversation has more.
MAX_HOSTS = 64


def may_name_urls(body: bytes) -> bool:
    """A quick look: hardly any body needs the long one. An escape may hide any ASCII character."""
    return (b"url" in body and (b"://" in body or b":\\/" in body)) or b"\\u00" in body


async def refuse_private(body: bytes) -> None:
    """Raises InvalidRequest if the engine would be sent to an address that is not public."""
    if not may_name_urls(body):
        return
    hosts = set(_hosts(_read(body)))
    if len(hosts) > MAX_HOSTS:
        raise _refused("The request names media on too many hosts.")
    for host in hosts:
        if not await _is_public(host):
            raise _refused(f"The media URL's host {host[:200]!r} has no public address.")


def _read(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)  # takes what some engines take: NaN, UTF-16
    except (ValueError, RecursionError):
        return None


def _hosts(value: Any) -> Iterator[str]:
    """The hosts of all URLs that an engine might fetch, wherever they stand."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
            for key, inner in value.items():
                if isinstance(inner, dict) and key.endswith("_url"):
                    inner = inner.get("url")
                elif not (key.endswith("_url") or (key == "url" and value.get("type") == "url")):
                    continue
                if isinstance(inner, str):
                    yield from _host_of(inner)


def _host_of(url: str) -> Iterator[str]:
    if not url.strip().lower().startswith(("http:", "https:", "ftp:")):
        return
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
    except ValueError:
        host = None
    # Readers of URLs disagree about the rest.
    if not host or "\\" in url or any(c.isspace() or ord(c) < 0x20 for c in url.strip()):
        raise _refused("A media URL is not well-formed.")
    yield host


async def _is_public(host: str) -> bool:
    """True also for a name that has no address: the engine says so itself."""
    try:
        async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return True
    except TimeoutError:
        return False
    return all(_is_global(str(info[4][0])) for info in found)


def _is_global(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if inner is not None and not inner.is_global:
            return False
    return parsed.is_global and not parsed.is_multicast


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, metadata={"param": "messages"})

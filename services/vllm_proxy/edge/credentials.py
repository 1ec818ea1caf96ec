"""Who a client is: its key, hashed at once, and whether it is on this machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from vllm_proxy.common.errors import InvalidApiKey

#: A proxy names the real client in one of these.
_FORWARDED = frozenset((b"x-forwarded-for", b"x-real-ip", b"forwarded"))
_FORWARDED_FOR = re.compile(r'for\s*=\s*("[^"]*"|[^;,\s]*)', re.IGNORECASE)
_LOCAL = frozenset({"127.0.0.1", "::1"})
_MAX_ADDRESS = 64


def api_key_sha256(headers: Mapping[bytes, bytes]) -> bytes:
    """The hash of the key in `Authorization` (`Bearer KEY` or a bare `KEY`), else in `x-api-key`, which Anthropic's
    clients send. Raises InvalidApiKey if there is none."""
    key = (headers.get(b"authorization") or headers.get(b"x-api-key") or b"").strip()
    if key[:7].lower() == b"bearer ":
        key = key[7:].strip()
    if not key or key.lower() == b"bearer":
        raise InvalidApiKey("No API key was provided: send it as `Authorization: Bearer YOUR_KEY`.")
    return sha256(key).digest()


def client_is_local(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bool:
    """True if the peer is on loopback (or a Unix socket) and no forwarding header names another machine.

    `headers` is used to see quickly that there is no such header; every occurrence counts.
    """
    client = scope.get("client")
    if client is not None and not _is_loopback(client[0]):
        return False
    if _FORWARDED.isdisjoint(headers):
        return True
    return all(_is_loopback(address) for address in _forwarded_addresses(scope["headers"]))


def client_address(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
    """Where the client is, for the audit log: the peer, or whom a proxy on this machine names as its own peer."""
    client = scope.get("client")
    peer = str(client[0]) if client is not None else "unix"
    if (client is None or _is_loopback(peer)) and not _FORWARDED.isdisjoint(headers):
        # The last one was written by the proxy that we see; those before it are hearsay.
        *_, peer = _forwarded_addresses(scope["headers"])
    return peer.strip()[:_MAX_ADDRESS]


def _forwarded_addresses(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[str]:
    for name, value in headers:
        if name not in _FORWARDED:
            continue
        text = value.decode("latin-1")
        if name == b"forwarded":
            # An element without `for` names nobody, which is not a loopback address either.
            yield from _FORWARDED_FOR.findall(text) or [""]
        else:
            yield from text.split(",")


def _is_loopback(address: str) -> bool:
    if address in _LOCAL:
        return True
    address = address.strip().strip('"')
    if address in _LOCAL:
        return True
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback

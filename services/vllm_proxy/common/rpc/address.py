"""Listener addresses: `unix:PATH` or `host:port`, and which of them only this machine can reach."""

from __future__ import annotations

import ipaddress
from pathlib import Path

#: The kernel's limit for the path of a Unix socket is 108 bytes with its closing zero.
MAX_UNIX_PATH_BYTES = 107


def is_unix(address: str) -> bool:
    return address.startswith("unix:")


def is_local(address: str) -> bool:
    """True if no other machine can connect to it."""
    if is_unix(address):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def prepare_unix(address: str) -> None:
    """Makes the socket's folder (0700). Raises ValueError if the path is too long for the kernel."""
    path = Path(address.removeprefix("unix:"))
    if len(str(path).encode()) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"{address}: longer than the {MAX_UNIX_PATH_BYTES} bytes that a Unix socket's path may have")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

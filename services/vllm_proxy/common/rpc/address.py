"""Addresses of services: `unix:PATH` or `host:port`, which of them only this machine can reach, and how one is dialled
that stands for several replicas."""

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


def dial_target(addresses: str) -> str:
    """What gRPC dials for an address, or for several separated by commas: it takes the first that answers.

    Raises ValueError for a list of names: gRPC takes literal addresses there, or one name that stands for all.
    """
    if "," not in addresses:
        return addresses
    versions = set()
    literal = []
    for address in addresses.split(","):
        host, _, port = address.rpartition(":")
        host = "127.0.0.1" if host == "localhost" else host
        try:
            versions.add(ipaddress.ip_address(host.strip("[]")).version)
        except ValueError:
            raise ValueError(
                f"a list has ip:port only, not {address!r}; one DNS name may stand for several replicas"
            ) from None
        literal.append(f"{host}:{port}")
    if len(versions) > 1:
        raise ValueError("a list has addresses of IPv4 or of IPv6, not of both")
    return f"ipv{versions.pop()}:{','.join(literal)}"

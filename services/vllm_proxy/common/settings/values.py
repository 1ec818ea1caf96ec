"""What is wrong with one value, in the words of a user."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from vllm_proxy.common.rpc.address import dial_target, is_local

if TYPE_CHECKING:
    pass

_STORES = ("sqlite", "unix", *(f"redis{tls}{kind}" for tls in ("", "s") for kind in ("", "+sentinel", "+cluster")))

#: What an empty value should have been, by the beginning of pydantic's name for the fault.
_WANTED = (
    ("int", "a number"),
    ("float", "a number"),
    ("string", "a text"),
    ("path", "a path"),
    ("bool", "true or false"),
)


def checked_address(value: str) -> str:
    """Raises ValueError unless it is unix:PATH or host:port."""
    scheme, _, path = value.partition(":")
    host, _, port = value.rpartition(":")
    good = bool(path) if scheme == "unix" else bool(host) and port.isdecimal() and int(port) <= 65535
    if not good or "://" in value:
        raise ValueError(f"must be unix:PATH or host:port, not {value!r}")
    return value


def checked_addresses(value: str) -> str:
    """Raises ValueError unless it is one address, or several separated by commas as a channel can take them."""
    if "," not in value:
        return checked_address(value)
    for one in value.split(","):
        checked_address(one)
    dial_target(value)
    return value


def checked_store(value: str) -> str:
    """Raises ValueError unless it begins like a store that there is. The auth service checks the rest."""
    scheme, _, rest = value.partition(":")
    if scheme not in _STORES or not rest.removeprefix("//") or (scheme != "sqlite") != rest.startswith("//"):
        # The rest of a URL may hold a password.
        raise ValueError(f"must be sqlite:PATH or the URL of a Redis (redis://host:port/db), not {scheme!r}:...")
    return value


def checked_loopback(value: str) -> str:
    """Raises ValueError for a host that other machines reach, or might."""
    if not is_local(f"{value}:0"):
        raise ValueError(
            f"must be loopback (localhost): the engine's own port has no keys and no limits, not {value!r}"
        )
    return value


def checked_url(value: str) -> str:
    """Raises ValueError unless it is http://host[:port] or https://host[:port], a path allowed."""
    parts = urlsplit(value)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be http://host:port or https://host, without a user, a query or a fragment")
    return value.rstrip("/")


def fault_of(error: Any, schema: type[BaseModel]) -> str:
    """One of pydantic's errors as a line that begins with its key."""
    key = ".".join(str(part) for part in error["loc"]) or "(top level)"
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(error["loc"], schema), n=1)
        return f"{key}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    if kind == "value_error":
        return f"{key}: {error['ctx']['error']}"
    if value is None:
        wanted = next((wanted for begin, wanted in _WANTED if kind.startswith(begin)), "a value")
        if kind == "literal_error":
            wanted = error["ctx"]["expected"]
        return f"{key}: is empty: give {wanted}, or leave the line out"
    shown = f", not {value!r}" if isinstance(value, (str, int, float, bool)) else ""
    return f"{key}: {error['msg']}{shown}"


def _known_keys(location: Sequence[str | int], schema: type[BaseModel]) -> list[str]:
    """The keys of the section that a location's last part should be one of."""
    section: Any = schema
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
        else:  # sections by name, or a list of them
            section = typing.get_args(section)[-1]
    return list(section.model_fields)

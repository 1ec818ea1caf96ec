"""What is wrong with a configuration, in the words of a user: values of the wrong kind, and settings that do not work
together. settings.py, which owns the schema, asks for both while it loads a file."""

from __future__ import annotations

import difflib
import shlex
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vllm_proxy.common.rpc.address import dial_target, is_local

if TYPE_CHECKING:
    from vllm_proxy.common.settings import EngineSection, Settings

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


def conflicts(settings: Settings, root: Path) -> Iterator[str]:
    """What each value alone does not show. Reads the start-command files, which are relative to `root`."""
    faults = [
        *_section_faults("vllm", settings.vllm, root),
        *_section_faults("sglang", settings.sglang, root),
    ]
    yield from faults
    if faults:  # which hosts there are cannot be told
        return
    engines = [spec.engine for spec in settings.hosts(root).values()]
    for kind in ("vllm", "sglang"):
        if engines.count(kind) > 1:  # they would share the engine's port and log file
            yield f"engine_hosts: only one {kind} host per configuration; give another one its own configuration"
    if bool(settings.nginx.tls_certificate) != bool(settings.nginx.tls_key):
        yield "nginx.tls_certificate, nginx.tls_key: both or none"
    if "," in settings.auth.address and settings.auth.store.startswith("sqlite:"):
        yield "auth.address: several replicas need a store that they share: set auth.store to the URL of a Redis"
    if settings.auth.admission_wait_ms > settings.max_admission_wait_ms:
        yield (
            f"auth.admission_wait_ms: {settings.auth.admission_wait_ms} is more than edge.admission_timeout_s leaves: "
            f"at most {settings.max_admission_wait_ms}"
        )
    yield from _port_conflicts(_loopback_ports(settings, engines))


def _loopback_ports(settings: Settings, engines: Sequence[str]) -> Iterator[tuple[str, int | None]]:
    """The HTTP ports that are bound on loopback, by their keys."""
    if settings.fastapi_host in ("0.0.0.0", "::", "") or is_local(f"{settings.fastapi_host}:0"):
        yield "fastapi_port", settings.fastapi_port
    if "vllm" in engines:
        yield "vllm_port", settings.vllm_port
    if "sglang" in engines:
        yield "sglang_port", settings.sglang_port
    if settings.nginx.enabled:
        yield "nginx.port", settings.nginx.port
    yield "auth.metrics_port", settings.auth.metrics_port
    yield "router.metrics_port", settings.router.metrics_port
    for name, spec in settings.engine_hosts.items():
        yield f"engine_hosts.{name}.metrics_port", spec.metrics_port


def _port_conflicts(ports: Iterable[tuple[str, int | None]]) -> Iterator[str]:
    taken: dict[int, str] = {}
    for key, port in ports:
        if not port:  # none, or any that is free
            continue
        if port in taken:
            yield f"{key}: {port} is {taken[port]} too; give each a port of its own"
        taken.setdefault(port, key)


def _section_faults(name: str, section: EngineSection, root: Path) -> Iterator[str]:
    if section.launch_mode != "python_api":
        yield f"{name}.launch_mode: {section.launch_mode} is not supported by this version; set python_api"
    usual = type(section).model_fields["start_cmd_file"].default
    if not section.start_cmd and section.start_cmd_file != usual and not (root / section.start_cmd_file).exists():
        yield f"{name}.start_cmd_file: {section.start_cmd_file} is not there"
        return
    try:
        shlex.split(section.command(root))
    except OSError as e:
        yield f"{name}.start_cmd_file: {section.start_cmd_file}: {e.strerror}"
    except ValueError as e:
        yield f"{name}.{section.command_source}: {e}"

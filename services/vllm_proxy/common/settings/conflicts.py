"""Settings that do not work together, in the words of a user."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from vllm_proxy.common.rpc.address import is_local
from vllm_proxy.common.settings.engine_hosts import EngineHostSpec
from vllm_proxy.common.settings.engines import EngineSection
from vllm_proxy.common.settings.schema import Settings


def conflicts(settings: Settings, root: Path) -> Iterator[str]:
    """What each value alone does not show. Reads the start-command files, which are relative to `root`."""
    faults = [
        *_section_faults("vllm", settings.vllm, root),
        *_section_faults("sglang", settings.sglang, root),
        *(fault for name, spec in settings.engine_hosts.items() for fault in _host_faults(settings, name, spec, root)),
    ]
    yield from faults
    if faults:  # which hosts there are cannot be told
        return
    hosts = settings.hosts(root)
    yield from _mapping_faults(settings, {spec.engine for spec in hosts.values()})
    of_hosts = {name: settings.for_host(name) for name in hosts}
    services = ["edge", "auth", "router", *(f"engine-{name}" for name in hosts)]
    for service in settings.log_levels.keys() - services:
        yield f"log_levels.{service}: there is no such service, only {', '.join(services)}"
    if bool(settings.nginx.tls_certificate) != bool(settings.nginx.tls_key):
        yield "nginx.tls_certificate, nginx.tls_key: both or none"
    tls = settings.grpc.tls
    if len({bool(path) for path in (tls.certificate, tls.key, tls.ca)}) > 1:
        yield "grpc.tls.certificate, grpc.tls.key, grpc.tls.ca: all or none"
    if tls.certificate and "," in settings.auth.address and not tls.server_name:
        yield "grpc.tls.server_name: the addresses in auth.address are dialled as one: say what their certificates name"
    if "," in settings.auth.address and settings.auth.store.startswith("sqlite:"):
        yield "auth.address: several replicas need a store that they share: set auth.store to the URL of a Redis"
    if settings.auth.admission_wait_ms > settings.max_admission_wait_ms:
        yield (
            f"auth.admission_wait_ms: {settings.auth.admission_wait_ms} is more than edge.admission_timeout_s leaves: "
            f"at most {settings.max_admission_wait_ms}"
        )
    if settings.edge.max_buffered_bytes < settings.edge.max_body_bytes:
        yield "edge.max_buffered_bytes: must be at least edge.max_body_bytes"
    yield from _port_conflicts(_loopback_ports(settings, of_hosts, hosts))
    yield from _file_conflicts(of_hosts, hosts)


def _mapping_faults(settings: Settings, kinds: Collection[str]) -> Iterator[str]:
    for model, kind in settings.model_backend_mapping.items():
        if kind not in kinds:
            running = ", ".join(sorted(kinds)) or "none"
            yield f"model_backend_mapping.{model}: no engine host runs {kind!r} (configured engines: {running})"


def _loopback_ports(
    settings: Settings, of_hosts: Mapping[str, Settings], hosts: Mapping[str, EngineHostSpec]
) -> Iterator[tuple[str, int | None]]:
    """The HTTP ports that are bound on loopback, by their keys."""
    if settings.fastapi_host in ("0.0.0.0", "::", "") or is_local(f"{settings.fastapi_host}:0"):
        yield "fastapi_port", settings.fastapi_port
    for name, spec in hosts.items():
        section = of_hosts[name].section(spec.engine)
        if section is not None and section.launch_mode != "attached":
            key = f"{spec.engine}_port" if spec.port is None else f"engine_hosts.{name}.port"
            yield key, of_hosts[name].native_address(spec.engine)[1]
    if settings.nginx.enabled:
        yield "nginx.port", settings.nginx.port
    yield "auth.metrics_port", settings.auth.metrics_port
    yield "router.metrics_port", settings.router.metrics_port
    for name, spec in settings.engine_hosts.items():
        yield f"engine_hosts.{name}.metrics_port", spec.metrics_port


def _file_conflicts(of_hosts: Mapping[str, Settings], hosts: Mapping[str, EngineHostSpec]) -> Iterator[str]:
    """Engines that would write into one file."""
    taken: dict[Path, str] = {}
    for name, spec in hosts.items():
        section = of_hosts[name].section(spec.engine)
        if section is None or section.launch_mode == "attached":
            continue
        for key in ("log_file", "pid_file"):
            path: Path = getattr(section, key)
            if (other := taken.setdefault(path, name)) != name:
                yield f"engine_hosts.{name}.{key}: {path} is that of {other} too; give each host its own"


def _port_conflicts(ports: Iterable[tuple[str, int | None]]) -> Iterator[str]:
    taken: dict[int, str] = {}
    for key, port in ports:
        if not port:  # none, or any that is free
            continue
        if port in taken:
            other = "another engine host's" if taken[port] == key else taken[port]
            yield f"{key}: {port} is {other} too; give each a port of its own"
        taken.setdefault(port, key)


def _host_faults(settings: Settings, name: str, spec: EngineHostSpec, root: Path) -> Iterator[str]:
    key = f"engine_hosts.{name}"
    given = [*spec.overrides, *(k for k in ("host", "port") if getattr(spec, k) is not None)]
    if spec.engine == "sim":
        if given:
            yield f"{key}.{given[0]}: the simulator has no such setting"
        return
    section = settings.for_host(name).section(spec.engine)
    assert section is not None
    if spec.url is not None and section.launch_mode != "attached":
        yield f"{key}.url: is for launch_mode attached; here it is {section.launch_mode}"
    if {"start_cmd", "start_cmd_file"} & set(given):
        yield from _command_faults(key, section, root)


def _section_faults(name: str, section: EngineSection, root: Path) -> Iterator[str]:
    if section.url is not None and section.launch_mode != "attached":
        yield f"{name}.url: is for launch_mode attached; here it is {section.launch_mode}"
    yield from _command_faults(name, section, root)


def _command_faults(name: str, section: EngineSection, root: Path) -> Iterator[str]:
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

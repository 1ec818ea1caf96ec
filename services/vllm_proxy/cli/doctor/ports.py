"""The TCP ports that the services listen on: whether somebody else has one."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok
from vllm_proxy.cli.doctor.processes import holders, listeners
from vllm_proxy.common.rpc.address import is_unix

_ALL = ("0.0.0.0", "::")
_NAMES = {"localhost": ("127.0.0.1", "::1"), "": _ALL}


def ports(site: Site) -> Iterator[Finding]:
    free, held = [], []
    for setting, host, port, mark in _listeners(site):
        own = _NAMES.get(host, (host.strip("[]"),))
        rivals = {
            inode
            for inode, address in listeners(port).items()
            if address in own or address in _ALL or not set(own).isdisjoint(_ALL)
        }
        if not rivals:
            free.append(port)
            continue
        found = list(holders(rivals))
        if any(process.is_ours(site.loaded.root, mark) for process in found):
            held.append(port)
            continue
        by = ", ".join(map(str, found)) or "another user's process"
        stop = f"stop it (kill {found[0].pid})" if found else f"see who it is (as root: ss -ltnp 'sport = :{port}')"
        yield fail(f"port {port} ({setting}) is taken by {by}", f"{stop}, or set {setting} to another port")
    if free or held:
        parts = [f"{', '.join(map(str, ports))} {what}" for ports, what in ((held, "ours"), (free, "free")) if ports]
        yield ok("; ".join(parts))


def _listeners(site: Site) -> Iterator[tuple[str, str, int, str]]:
    """Setting, host, port, and what stands in the command of an engine that listens there itself."""
    settings = site.settings
    yield "fastapi_port", settings.fastapi_host, settings.fastapi_port, "vllm_proxy"
    if settings.nginx.enabled:
        yield "nginx.port", settings.nginx.host, settings.nginx.port, "nginx"
    for name, spec in settings.hosts().items():
        section = settings.for_host(name).section(spec.engine)
        if section is not None and section.launch_mode != "attached":
            setting = f"{spec.engine}_port" if spec.port is None else f"engine_hosts.{name}.port"
            yield setting, *settings.for_host(name).native_address(spec.engine), spec.engine
        if spec.metrics_port:
            yield f"engine_hosts.{name}.metrics_port", "127.0.0.1", spec.metrics_port, "vllm_proxy"
        if spec.address and not is_unix(spec.address):
            yield f"engine_hosts.{name}.address", *_split(spec.address), "vllm_proxy"
    for section_name, part in (("auth", settings.auth), ("router", settings.router)):
        if part.metrics_port:
            yield f"{section_name}.metrics_port", "127.0.0.1", part.metrics_port, "vllm_proxy"
    listens = {
        "auth.address": settings.auth.listen_address or settings.auth.address,
        "router.address": settings.router.address,
    }
    for setting, address in listens.items():
        if not is_unix(address) and "," not in address:
            yield setting, *_split(address), "vllm_proxy"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)

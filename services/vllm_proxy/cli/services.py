"""Which services a configuration consists of, where each can be asked, and which files on this machine it logs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings

AUTH, EDGE, NGINX, SUPERVISOR = "auth", "edge", "nginx", "supervisord"
_WORKER_LOG = re.compile(r"fastapi(-\d+)?\.log")


@dataclass(frozen=True, slots=True)
class Service:
    """`name` is the one of `make start-NAME`: auth, router, engine-NAME, nginx, edge."""

    name: str
    address: str
    """A gRPC address; for the edge a URL, for nginx host:port."""
    logs: tuple[Path, ...]
    """Below the root, one for each process."""

    @property
    def host(self) -> str | None:
        """The name of an engine host in the configuration."""
        return self.name.removeprefix("engine-") if self.name.startswith("engine-") else None


def services_of(loaded: LoadedSettings) -> list[Service]:
    """In the order of their start. nginx is among them if it is wanted or was started."""
    settings, folder = loaded.settings, loaded.settings.logs.dir
    found = [
        Service(AUTH, settings.auth.address, (folder / "auth.log",)),
        Service("router", settings.router.address, (folder / "router.log",)),
    ]
    for name, spec in settings.hosts(loaded.root).items():
        found.append(Service(f"engine-{name}", spec.address or "", (folder / f"engine-{name}.log",)))
    if settings.nginx.enabled or (loaded.root / settings.pid_dir / "nginx.pid").exists():
        at = reached_at(settings.nginx.host, settings.nginx.port)
        found.append(Service(NGINX, at, (folder / "nginx-access.log", folder / "nginx-error.log")))
    workers = settings.fastapi_workers
    names = [f"fastapi-{number}.log" for number in range(workers)] if workers > 1 else ["fastapi.log"]
    return [*found, Service(EDGE, edge_url(settings), tuple(folder / name for name in names))]


def edge_url(settings: Settings) -> str:
    """Where a client on this machine finds the edge."""
    return f"http://{reached_at(settings.fastapi_host, settings.fastapi_port)}"


def reached_at(host: str, port: int) -> str:
    """Where a listener is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def log_files(loaded: LoadedSettings, name: str) -> dict[str, Path]:
    """Logs by the label of their lines: of a service, of an engine's own output (`vllm`), of `supervisord`, or `all`.

    A log's own name (`fastapi`) will do too. Raises ConfigError for a name that there is not.
    """
    logs: dict[str, dict[str, Path]] = {}
    for service in services_of(loaded):
        paths = [loaded.root / path for path in service.logs]
        if service.name == NGINX:
            labels = ["nginx", "nginx-error"]
        else:
            labels = [path.stem for path in paths] if len(paths) > 1 else [service.name]
        logs[service.name] = dict(zip(labels, paths, strict=True))
    for path in _other_workers_logs(loaded):
        logs[EDGE].setdefault(path.stem, path)
    logs |= _engine_outputs(loaded)
    if name == "all":
        return {label: path for files in logs.values() for label, path in files.items()}
    logs[SUPERVISOR] = {SUPERVISOR: loaded.root / loaded.settings.logs.dir / "supervisord.log"}
    if name in logs:
        return logs[name]
    by_file = {label: path for files in logs.values() for label, path in files.items() if path.stem == name}
    if by_file or name == "fastapi":
        return by_file or logs[EDGE]
    raise ConfigError(f"SERVICE={name}: there is {', '.join(sorted(logs))}, all")


def _other_workers_logs(loaded: LoadedSettings) -> list[Path]:
    """Those of edge workers that were started while `fastapi_workers` was another number; they may still run."""
    known = {loaded.root / path for service in services_of(loaded) for path in service.logs}
    there = sorted((loaded.root / loaded.settings.logs.dir).glob("fastapi*.log"))
    return [path for path in there if _WORKER_LOG.fullmatch(path.name) and path not in known]


def _engine_outputs(loaded: LoadedSettings) -> dict[str, dict[str, Path]]:
    """What engines print, by their kind, or by their host where several are of one kind."""
    settings = loaded.settings
    hosts = settings.hosts(loaded.root)
    kinds = [spec.engine for spec in hosts.values()]
    outputs = {}
    for host, spec in hosts.items():
        section = settings.for_host(host).section(spec.engine)
        if section is not None and section.launch_mode != "attached":
            label = spec.engine if kinds.count(spec.engine) == 1 else f"{host}-engine"
            outputs[label] = {label: loaded.root / section.log_file}
    return outputs

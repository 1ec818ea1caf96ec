"""Which processes this project consists of, and the supervisord configuration that runs them.

supervisord (supervisord.org) starts, restarts and stops them and rotates their logs. The edge's workers are an
[fcgi-program]: its listener is opened by the supervisor and handed to every worker as file descriptor 0, so one
worker can be restarted while others serve, and no connection is refused meanwhile.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts import external_tools, nginx_config

from vllm_proxy.cli.services import edge_url, reached_at
from vllm_proxy.cli.supervised import control_socket
from vllm_proxy.common.settings import ConfigError, EngineHostSpec, EngineKind, EngineSection, LoadedSettings, Settings

#: Where the code and its environments are; a configuration's own root may be elsewhere.
CODE_ROOT = Path(__file__).resolve().parent.parent
EXEC_WITH_PID = CODE_ROOT / "scripts" / "exec_with_pid.sh"

#: Besides its drain, how long a service may take to end before it is killed.
STOP_MARGIN_S = 10
NGINX_PID = "nginx.pid"
#: File descriptors that services may have, as far as the hard limit allows.
WANTED_FILES = 65536
#: What supervisord fills in.
EXPANSION = re.compile(r"%\((process_num|program_name|ENV_PATH)\)[ds]")


#: A start command whose program is named without a path, and no wrapper that finds it elsewhere (conda, a shell).
_OWN_PROGRAM = re.compile(r"\s*([A-Za-z_]\w*=\S*\s+)*(python[\d.]*|vllm|sglang)\s")


@dataclass(frozen=True, slots=True)
class Program:
    """One service as supervisord runs it. `name` is the service's name for `make start-<name>` and logs."""

    name: str
    command: tuple[str, ...]
    priority: int
    stop_wait_s: int
    log: str
    """Below the folder of logs; `%(process_num)d` if there are several processes."""
    pid: str
    """Below the folder of pid files, likewise."""
    address: str
    """Where it can be asked how it is: a gRPC address, for the edge a URL, for nginx host:port."""
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""
    """Below the folder of sockets: where each process writes its id once it serves; empty: it can be asked."""
    listener: str | None = None
    """host:port of the listener that its processes inherit."""
    processes: int = 1
    engine: EngineKind | None = None
    error_log: str | None = None
    """Where its standard error goes, if not into `log`."""
    stop_signal: str = "TERM"
    is_optional: bool = False
    """Whether it is started only where it is named."""

    @property
    def host(self) -> str:
        """The name of an engine host in the configuration."""
        return self.name.removeprefix("engine-")

    @property
    def log_names(self) -> list[str]:
        """One for each process."""
        return [self.log % {"process_num": number} for number in range(self.processes)]

    @property
    def pid_names(self) -> list[str]:
        return [self.pid % {"process_num": number} for number in range(self.processes)]


def programs(loaded: LoadedSettings, overrides: Sequence[str] = ()) -> list[Program]:
    """In the order of their start. Raises ConfigError for what cannot be supervised."""
    settings = loaded.settings
    common = ("--config", str(loaded.path), *(part for item in overrides for part in ("--set", item)))
    gateway = str(environment_python("gateway"))
    hosts = [_engine_host(settings, name, spec, common) for name, spec in settings.hosts().items()]
    return [
        Program(
            name="auth",
            command=(gateway, "-m", "vllm_proxy.auth", *common),
            priority=10,
            stop_wait_s=_stop_wait_s(settings.auth.drain_timeout_s),
            log="auth.log",
            pid="auth.pid",
            address=settings.auth.address,
        ),
        Program(
            name="router",
            command=(gateway, "-m", "vllm_proxy.router", *common),
            priority=20,
            stop_wait_s=_stop_wait_s(settings.router.drain_timeout_s),
            log="router.log",
            pid="router.pid",
            address=settings.router.address,
        ),
        *hosts,
        *_nginx(loaded),
        _edge(loaded, common),
    ]


def render(loaded: LoadedSettings, wanted: Sequence[Program]) -> str:
    """The configuration file. Its paths are absolute but for the control socket, whose path the kernel limits."""
    settings = loaded.settings
    supervisord = {
        "logfile": _path(loaded.root / settings.logs.dir / "supervisord.log"),
        "logfile_maxbytes": str(settings.logs.max_bytes),
        "logfile_backups": str(settings.logs.backups),
        "pidfile": _path(loaded.root / settings.pid_dir / "supervisord.pid"),
        "minfds": str(_files_limit()),
        "identifier": "vllm-proxy",
    }
    if os.geteuid() == 0:
        supervisord["user"] = "root"  # says that this is meant
    sections = [
        _section("unix_http_server", {"file": control_socket(settings), "chmod": "0700"}),
        _section("supervisord", supervisord),
        _section(
            "rpcinterface:supervisor",
            {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        ),
        *(_program_section(loaded, program) for program in wanted),
    ]
    return "; Generated from config.yaml at each start; not to be edited.\n\n" + "\n".join(sections)


def metrics_folder(loaded: LoadedSettings) -> Path:
    """Where the edge's workers keep the counters that they share."""
    return loaded.root / loaded.settings.run_dir / "metrics"


def environment_python(name: str) -> Path:
    return CODE_ROOT / ".venv" / name / "bin" / "python"


def nginx_url(settings: Settings) -> str:
    """Where a client on this machine finds nginx."""
    scheme = "https" if settings.nginx.tls_certificate else "http"
    return f"{scheme}://{reached_at(settings.nginx.host, settings.nginx.port)}"


def write_nginx(loaded: LoadedSettings, program: Program) -> bool:
    """Writes nginx's configuration and has it checked; whether it changed. Raises ConfigError."""
    changed = nginx_config.write(loaded, _edge_target(loaded.settings))
    nginx_config.check(loaded, Path(program.command[0]))
    return changed


def _edge_target(settings: Settings) -> str:
    return reached_at(settings.fastapi_host, settings.fastapi_port)


def _nginx(loaded: LoadedSettings) -> list[Program]:
    """If it is wanted, or was started. Stops after the edge, whose drain ends what runs, and answers 503 meanwhile."""
    settings = loaded.settings
    if not settings.nginx.enabled and not (loaded.root / settings.pid_dir / NGINX_PID).exists():
        return []
    found = external_tools.find("nginx") or Path("nginx")
    return [
        Program(
            name="nginx",
            command=nginx_config.command(loaded, found),
            priority=35,
            stop_wait_s=_stop_wait_s(0),
            log="nginx-access.log",
            error_log="nginx-error.log",
            pid=NGINX_PID,
            address=reached_at(settings.nginx.host, settings.nginx.port),
            stop_signal="QUIT",
            is_optional=not settings.nginx.enabled,
        )
    ]


def engine_section(settings: Settings, program: Program) -> EngineSection | None:
    """How the engine of an engine host is started; None for other programs and the simulator."""
    if program.engine is None:
        return None
    return settings.for_host(program.host).section(program.engine)


def _engine_host(settings: Settings, name: str, spec: EngineHostSpec, common: tuple[str, ...]) -> Program:
    assert spec.address is not None
    own, of_command = engine_environments(settings, name, spec)
    python = environment_python(own)
    return Program(
        name=f"engine-{name}",
        command=(str(python), "-m", "vllm_proxy.engine_host", "--name", name, *common),
        priority=30,
        stop_wait_s=_stop_wait_s(settings.engine_host.drain_timeout_s),
        log=f"engine-{name}.log",
        pid=f"engine-{name}.pid",
        address=spec.address,
        # A start command's `python` and `vllm` are the engine environment's.
        environment={"PATH": f"{environment_python(of_command or own).parent}:%(ENV_PATH)s"},
        engine=spec.engine,
    )


def engine_environments(settings: Settings, name: str, spec: EngineHostSpec) -> tuple[str, str | None]:
    """The names of the virtual environments that an engine host runs in, and that its start command finds its programs
    in (None: it brings its own)."""
    section = settings.for_host(name).section(spec.engine)
    if section is None or section.launch_mode == "attached":
        return "gateway", None
    if section.launch_mode == "python_api":
        return spec.engine, spec.engine
    return "gateway", spec.engine if _OWN_PROGRAM.match(section.command()) else None


def _edge(loaded: LoadedSettings, common: tuple[str, ...]) -> Program:
    settings = loaded.settings
    host, port, workers = settings.fastapi_host, settings.fastapi_port, settings.fastapi_workers
    if port == 0:
        raise ConfigError(f"{loaded.path}: fastapi_port: must be a port that clients can know, not 0")
    # supervisord opens IPv4 listeners only.
    inherits = ":" not in host
    if not inherits and workers > 1:
        raise ConfigError(f"{loaded.path}: fastapi_workers: {workers} workers cannot share an IPv6 listener; set 1")
    numbered = "-%(process_num)d" if workers > 1 else ""
    ready = f"edge{numbered}.ready"
    return Program(
        name="edge",
        command=(
            str(environment_python("gateway")),
            "-m",
            "vllm_proxy.edge",
            *common,
            *(("--listen-fd", "0") if inherits else ()),
            "--ready-file",
            str(loaded.root / settings.run_dir / ready),
        ),
        priority=40,
        stop_wait_s=_stop_wait_s(settings.edge.drain_timeout_s + settings.edge.drain_notice_s),
        log=f"fastapi{numbered}.log",
        pid=f"edge{numbered}.pid",
        address=edge_url(settings),
        environment={"PROMETHEUS_MULTIPROC_DIR": str(metrics_folder(loaded))},
        ready=ready,
        listener=f"{host}:{port}" if inherits else None,
        processes=workers,
    )


def _program_section(loaded: LoadedSettings, program: Program) -> str:
    settings = loaded.settings
    pid_file = loaded.root / settings.pid_dir / program.pid
    command = ["/bin/sh", str(EXEC_WITH_PID), str(pid_file), *program.command]
    values = {
        "command": " ".join(_word(word) for word in command),
        "directory": _path(loaded.root),
        "environment": ",".join(f"{name}={_word(value)}" for name, value in program.environment.items()),
        "priority": str(program.priority),
        "autostart": "false",  # scripts/proxyctl.py starts what is asked for
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "1000",
        "stopsignal": program.stop_signal,
        # Only the service is told to stop: an engine's processes must live until its requests have ended.
        "stopasgroup": "false",
        "killasgroup": "true",
        "stopwaitsecs": str(program.stop_wait_s),
        "redirect_stderr": "false" if program.error_log else "true",
        **_log_file(settings, "stdout", loaded.root / settings.logs.dir / program.log),
    }
    if program.error_log:
        values |= _log_file(settings, "stderr", loaded.root / settings.logs.dir / program.error_log)
    if program.processes > 1:
        values |= {"numprocs": str(program.processes), "process_name": "%(program_name)s-%(process_num)d"}
    if program.listener is None:
        return _section(f"program:{program.name}", values)
    values |= {"socket": f"tcp://{program.listener}", "socket_backlog": "2048"}
    return _section(f"fcgi-program:{program.name}", values)


def _log_file(settings: Settings, stream: str, path: Path) -> dict[str, str]:
    return {
        f"{stream}_logfile": _path(path),
        f"{stream}_logfile_maxbytes": str(settings.logs.max_bytes),
        f"{stream}_logfile_backups": str(settings.logs.backups),
    }


def _section(name: str, values: Mapping[str, str]) -> str:
    lines = [f"{key} = {value}" for key, value in values.items() if value]
    return "\n".join([f"[{name}]", *lines, ""])


def _word(text: str) -> str:
    """One word of a command or environment, quoted for supervisord's shell-like splitting."""
    if any(char in text for char in "\"'\\"):
        raise ConfigError(f"{text}: quotes and backslashes cannot stand in a path that supervisord is given")
    return f'"{_path(text)}"'


def _path(path: Path | str) -> str:
    """As it may stand in the configuration, whose expansions (%) are meant as such."""
    text = str(path)
    bare = EXPANSION.sub("", text)
    if any(fault in bare for fault in ("%", "\n", " ;", " #")):
        raise ConfigError(f"{text!r}: supervisord cannot be given this path; move the project elsewhere")
    return text


def _stop_wait_s(drain_s: float) -> int:
    return int(drain_s) + STOP_MARGIN_S


def _files_limit() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)

"""What can be done with the services of one configuration: start, stop, show. Decides; the supervisor does."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from scripts import nginx_config
from scripts.make_demo_model import DEMO_MODEL
from scripts.readiness import LogMarks, StartFailed, wait_ready
from scripts.rolling_restart import RollingRestart
from scripts.show import show_welcome
from scripts.start_command import StartCommand
from scripts.supervisor_client import State, Supervisor, SupervisorError
from scripts.supervisor_config import (
    CODE_ROOT,
    Program,
    engine_section,
    environment_python,
    programs,
    render,
    write_nginx,
)

from vllm_proxy.cli import last_start, process_table
from vllm_proxy.cli.logs import follow_until
from vllm_proxy.cli.services import log_files
from vllm_proxy.cli.supervised import ProcessState
from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings

PROGRESS_INTERVAL_S = 5.0
#: How long a process may outlive the service that started it.
LEFT_BEHIND_S = 3.0


class Services:
    def __init__(self, loaded: LoadedSettings, start_command: StartCommand | None = None) -> None:
        """`start_command` is vLLM's, in `loaded` already; a start writes its file."""
        self._loaded = loaded
        self._settings = loaded.settings
        self._supervisor = Supervisor(loaded)
        self._start_command = start_command
        self.programs = programs(loaded, start_command.overrides if start_command else ())

    def named(self, names: Sequence[str]) -> list[Program]:
        """In the order of their start; without names all but the optional ones. `fastapi` is the edge, as in logs.

        Raises ConfigError.
        """
        names = ["edge" if name == "fastapi" else name for name in names]
        known = {program.name: program for program in self.programs}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"no service {', '.join(unknown)}; there is {', '.join(known)}")
        return [p for p in self.programs if (p.name in names if names else not p.is_optional)]

    def hosts_of(self, engine: str) -> list[str]:
        """The engine hosts of a kind. Raises ConfigError if there is none."""
        names = [program.name for program in self.programs if program.engine == engine]
        if not names:
            raise ConfigError(f"no {engine} engine is configured: its start command is empty (see {self._loaded.path})")
        return names

    # -- start

    def to_start(self, names: Sequence[str]) -> list[Program]:
        """What a start of `names` starts: with the edge also engines that say auto_start. Raises ConfigError."""
        wanted = self.named(names)
        if not names and not any(program.engine for program in wanted):
            raise ConfigError(
                f"no engine is configured: put a start command into {self._settings.vllm.start_cmd_file}, "
                "or set engine_hosts"
            )
        return self._with_auto_start(wanted, bool(names))

    def start(self, names: Sequence[str], *, follow: bool, wait: bool, timeout_s: float | None) -> int:
        """Starts what is not up, adopts what is. With `follow`, stays until stopped and stops what it started.

        Raises ConfigError, SupervisorError, StartFailed, Stopped, TimeoutError.
        """
        wanted = self.to_start(names)
        self._check_environments(wanted)
        self._make_demo_model(wanted)
        began_at = time.monotonic()
        marks = LogMarks(self._loaded, wanted)
        keys_are_new = not (self._loaded.root / self._settings.api_keys_file).exists()
        started: list[Program] = []
        try:
            self._start(wanted, started)
            if wait or follow:
                wait_ready(self._loaded, self._supervisor, wanted, marks, timeout_s)
                show_welcome(self._loaded, wanted, keys_are_new, time.monotonic() - began_at)
            if follow:
                self._follow(started)
        except StartFailed:
            self._stop_started(started)
            raise
        except KeyboardInterrupt:
            if not follow:
                if started:
                    print("\nleft as it is, in the background: see make status, make stop", flush=True)
                raise
            self._stop_started(started)
        return 0

    def _start(self, wanted: Sequence[Program], started: list[Program]) -> None:
        """Adds to `started` what was not up before."""
        with self._supervisor.exclusive():
            if self._supervisor.state() is State.STOPPING:
                print("waiting until the last run has ended", flush=True)
                with _interrupt_noted() as interrupted:
                    self._wait_shut_down(interrupted)
            if self._supervisor.state() is State.GONE:
                self._supervisor.end_leftovers()
            if self._supervisor.is_running():
                up = {process.service for process in self._supervisor.processes() if process.is_up}
                is_other = self._supervisor.configuration() != render(self._loaded, self.programs)
                if is_other or self._runs_other_command(up):
                    print("note: the configuration changed since the start; `make restart` makes it count", flush=True)
            else:
                up = set()
            missing = [program for program in wanted if program.name not in up]
            for program in missing:
                self._check_port_is_free(program)
            for program in wanted:
                if program.name == "nginx" and write_nginx(self._loaded, program) and program not in missing:
                    self._reload_nginx()
            if missing:
                last_start.save(self._loaded)
            if self._start_command and not self._runs_other_command(up):
                self._start_command.write()
            if self._supervisor.is_running():
                self._supervisor.add_new(self.programs)
            else:
                self._supervisor.start(self.programs)
            if adopted := [program.name for program in wanted if program.name in up]:
                print(f"already up: {', '.join(adopted)}", flush=True)
            if missing:
                print(f"starting {', '.join(program.name for program in missing)}", flush=True)
            for program in missing:
                started.append(program)
                self._supervisor.start_service(program.name)

    def _processes(self) -> list[ProcessState]:
        return self._supervisor.processes() if self._supervisor.is_running() else []

    def _reload_nginx(self) -> None:
        for process in self._supervisor.processes():
            if process.service == "nginx" and process.pid:
                nginx_config.reload(process.pid)
                print("nginx reads its changed configuration", flush=True)

    def _runs_other_command(self, up: Collection[str]) -> bool:
        """Whether vLLM is up with a start command that this one must not replace."""
        is_up = any(program.engine == "vllm" and program.name in up for program in self.programs)
        return is_up and self._start_command is not None and self._start_command.differs()

    def _with_auto_start(self, wanted: list[Program], named: bool) -> list[Program]:
        if not named or not any(program.name == "edge" for program in wanted):
            return wanted
        automatic = {
            kind
            for kind, section in (("vllm", self._settings.vllm), ("sglang", self._settings.sglang))
            if section.auto_start
        }
        return [program for program in self.programs if program in wanted or program.engine in automatic]

    def _check_environments(self, wanted: Sequence[Program]) -> None:
        for program in wanted:
            if program.name == "nginx" and not Path(program.command[0]).exists():
                raise ConfigError(nginx_config.MISSING)
            if not Path(program.command[0]).exists():
                raise ConfigError(f"{program.name}: {program.command[0]} is not there; `make install` makes it")

    def _check_port_is_free(self, program: Program) -> None:
        """A port that somebody else holds would show as a service that never comes up."""
        for key, host, port in self._ports(program):
            with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as e:
                    why = "is in use by another program" if e.errno == errno.EADDRINUSE else f"cannot be used: {e}"
                    raise SupervisorError(
                        f"{program.name}: port {port} {why} (who: ss -ltnp 'sport = :{port}'); "
                        f"{key} in {self._loaded.path} names another"
                    ) from None

    def _ports(self, program: Program) -> Iterator[tuple[str, str, int]]:
        settings = self._settings
        if program.name == "edge":
            yield "fastapi_port", settings.fastapi_host, settings.fastapi_port
        if program.name == "nginx":
            yield "nginx.port", settings.nginx.host, settings.nginx.port
        section = engine_section(settings, program)
        if program.engine and section is not None and section.launch_mode == "python_api":
            key = f"{program.engine}_port (or engine_hosts.{program.host}.port)"
            yield key, *settings.for_host(program.host).native_address(program.engine)

    def _make_demo_model(self, wanted: Sequence[Program]) -> None:
        if not any(program.engine == "vllm" for program in wanted) or not wants_demo_model(self._settings):
            return
        if (self._loaded.root / DEMO_MODEL / "config.json").exists():
            return
        made = subprocess.run(
            [
                str(environment_python("vllm")),
                "-m",
                "scripts.make_demo_model",
                "--to",
                str(self._loaded.root / DEMO_MODEL),
            ],
            cwd=CODE_ROOT,
        )
        if made.returncode != 0:
            raise SupervisorError("the demo model could not be made; `make demo-model` tries it alone")

    def _follow(self, started: Sequence[Program]) -> None:
        """Shows the logs until the services are stopped from elsewhere, or until Ctrl-C."""
        print(f"Following the logs; Ctrl-C {'stops' if started else 'leaves'} the services.\n", flush=True)
        # Noted, not raised: an interruption that comes while something is finalised would be swallowed there.
        with _interrupt_noted() as interrupted:
            follow_until(
                log_files(self._loaded, "all"), lambda: interrupted.is_set() or self._supervisor.daemon() is None
            )
        if interrupted.is_set():
            raise KeyboardInterrupt
        print("stopped from elsewhere", flush=True)

    # -- restart

    def restart(self, names: Sequence[str], timeout_s: float | None) -> int:
        """Restarts what is up, of `names` or of everything, process by process: the next one goes when the one before
        serves again. Ends at the first that does not.

        Raises ConfigError, SupervisorError, StartFailed, Stopped, TimeoutError.
        """
        rolling = RollingRestart(self._loaded, self._supervisor, timeout_s)
        with self._supervisor.exclusive():
            wanted = rolling.chosen(self.programs, [program.name for program in self.named(names)] if names else [])
            self._check_environments(wanted)
            last_start.save(self._loaded)
        for program in wanted:
            rolling.restart(program)
        return 0

    # -- stop

    def stop(self, names: Sequence[str]) -> int:
        """Stops services; all of them, and the supervisor, without names. Fine if nothing runs."""
        wanted = self.named(names)
        with self._supervisor.exclusive():
            state = self._supervisor.state()
            if state is State.GONE:
                if left := self._supervisor.leftovers():
                    print(f"ending {len(left)} processes whose supervisor is gone", flush=True)
                self._supervisor.end_leftovers()
                engines = self._supervisor.end_engines(wanted)
                print("stopped" if left or engines else "nothing runs", flush=True)
            elif names and state is State.RUNNING:
                self._stop_some(wanted)
            else:
                self._shut_down()
        return 0

    def _stop_started(self, started: Sequence[Program]) -> None:
        """What this call started; the supervisor as well if nothing else is up then."""
        with self._supervisor.exclusive():
            if not started or not self._supervisor.is_running():
                return
            names = {program.name for program in started}
            others = {p.service for p in self._supervisor.processes() if p.is_up} - names
            if not others:
                self._shut_down()
                return
            self._stop_some(started)
            print(f"still up, because they were before: {', '.join(sorted(others))}; `make stop` ends them", flush=True)

    def _shut_down(self) -> None:
        with _interrupt_noted() as interrupted:
            print("stopping; requests that run may end first, Ctrl-C cuts that short", flush=True)
            self._supervisor.shutdown()
            self._wait_shut_down(interrupted)
            print("stopped", flush=True)

    def _wait_shut_down(self, interrupted: threading.Event) -> None:
        daemon = self._supervisor.daemon()
        family = process_table.with_descendants([daemon] if daemon else [])
        self._wait_ended(family, self._alive_names, interrupted)
        self._supervisor.end_leftovers()
        self._supervisor.end_engines(self.programs)

    def _stop_some(self, wanted: Sequence[Program]) -> None:
        names = {program.name for program in wanted}
        pids = [process.pid for process in self._supervisor.processes() if process.service in names and process.pid]
        family = process_table.with_descendants(filter(None, map(process_table.find, pids)))
        with _interrupt_noted() as interrupted:
            for program in reversed(wanted):
                self._supervisor.stop_service(program.name)
            self._wait_ended(family, lambda: [name for name in self._alive_names() if name in names], interrupted)
            self._supervisor.end_engines(wanted)
            print(f"stopped {', '.join(program.name for program in wanted)}", flush=True)

    def _wait_ended(
        self, family: set[process_table.Process], left: Callable[[], list[str]], interrupted: threading.Event
    ) -> None:
        """Waits for processes that were told to stop, and for what they start meanwhile; Ctrl-C kills them.

        What outlives its service by LEFT_BEHIND_S is killed too: no engine process may outlive its host.
        """
        began_at = shown_at = time.monotonic()
        services_ended_at: float | None = None
        while any(map(process_table.is_alive, family)):
            family |= process_table.with_descendants(family)
            now = time.monotonic()
            names = left()
            if names:
                services_ended_at = None
            elif services_ended_at is None:
                services_ended_at = now
            if names and now - shown_at >= PROGRESS_INTERVAL_S:
                shown_at = now
                print(f"{now - began_at:4.0f} s  waiting for {', '.join(names)} to end", flush=True)
            if interrupted.is_set():
                print("ending them at once", flush=True)
            if interrupted.is_set() or (services_ended_at is not None and now - services_ended_at > LEFT_BEHIND_S):
                process_table.kill(family)
            time.sleep(0.05)

    def _alive_names(self) -> list[str]:
        """Services that have a living process."""
        folder = self._loaded.root / self._settings.pid_dir
        return [
            program.name
            for program in self.programs
            if any(process_table.owner(folder / name) for name in program.pid_names)
        ]


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Within it, Ctrl-C and SIGTERM set an event instead of raising: a stop must not be left half done."""
    noted = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: handler for n in numbers if (handler := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda *_: noted.set())
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wants_demo_model(settings: Settings) -> bool:
    """Whether vLLM's start command names the demo model."""
    return str(DEMO_MODEL) in settings.vllm.command().split()

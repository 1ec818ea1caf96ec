"""What can be done with the services of one configuration: start, stop, show. Decides; the supervisor does."""

from __future__ import annotations

import contextlib
import errno
import json
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scripts import process_table
from scripts.log_follow import FollowedLog, follow
from scripts.make_demo_model import DEMO_MODEL
from scripts.readiness import StartFailed, is_ready, wait_ready
from scripts.supervisor_client import ProcessState, State, Supervisor, SupervisorError
from scripts.supervisor_config import CODE_ROOT, Program, edge_url, environment_python, programs, render

from vllm_proxy.common.settings import ConfigError, LoadedSettings, Settings

DEFAULT_KEY = "sk-default-key-change-me"
PROGRESS_INTERVAL_S = 5.0
LEFT_BEHIND_S = 3.0
#: What a first word of the auth service that is not JSON looks like: keys that it shows once.
SHOWN_ONCE = "=== "


class Services:
    def __init__(self, loaded: LoadedSettings, overrides: Sequence[str] = ()) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._programs = programs(loaded, overrides)
        self._supervisor = Supervisor(loaded)

    # -- start

    def start(self, names: Sequence[str], *, follow: bool, wait: bool, timeout_s: float | None) -> int:
        """Starts what is not up, adopts what is. With `follow`, stays until stopped and stops what it started.

        Raises ConfigError, SupervisorError, StartFailed, Stopped, TimeoutError.
        """
        wanted = self._with_auto_start(self._named(names), bool(names))
        self._check_environments(wanted)
        self._make_demo_model(wanted)
        began_at = time.monotonic()
        first_words = FollowedLog(self._log_path("auth"), _size(self._log_path("auth")))
        started: list[Program] = []
        try:
            self._start(wanted, started)
            if wait or follow:
                wait_ready(self._loaded, self._supervisor, wanted, timeout_s)
                self._tell(wanted, first_words, time.monotonic() - began_at)
            if follow:
                self._follow(started)
        except StartFailed:
            self._stop_started(started)
            raise
        except KeyboardInterrupt:
            if not follow:
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
                if self._supervisor.configuration() != render(self._loaded, self._programs):
                    print("note: the configuration changed since the start; `make restart` makes it count", flush=True)
            else:
                up = set()
            missing = [program for program in wanted if program.name not in up]
            for program in missing:
                self._check_port_is_free(program)
            if not self._supervisor.is_running():
                self._supervisor.start(self._programs)
            if adopted := [program.name for program in wanted if program.name in up]:
                print(f"already up: {', '.join(adopted)}", flush=True)
            if missing:
                print(f"starting {', '.join(program.name for program in missing)}", flush=True)
            for program in missing:
                started.append(program)
                self._supervisor.start_service(program.name)

    def _with_auto_start(self, wanted: list[Program], named: bool) -> list[Program]:
        if not named or not any(program.name == "edge" for program in wanted):
            return wanted
        automatic = {
            kind
            for kind, section in (("vllm", self._settings.vllm), ("sglang", self._settings.sglang))
            if section.auto_start
        }
        return [program for program in self._programs if program in wanted or program.engine in automatic]

    def _check_environments(self, wanted: Sequence[Program]) -> None:
        for program in wanted:
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
        if program.engine == "vllm" and settings.vllm.launch_mode != "attached":
            yield "vllm_port", settings.vllm_host, settings.vllm_port
        if program.engine == "sglang" and settings.sglang.launch_mode != "attached":
            yield "sglang_port", settings.sglang_host, settings.sglang_port

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

    def _tell(self, wanted: Sequence[Program], first_words: FollowedLog, seconds: float) -> None:
        """How to talk to what was started."""
        for line in first_words.new_lines():
            if line.startswith(SHOWN_ONCE):
                print(line)
        first_words.close()
        if not any(program.name == "edge" for program in wanted):
            print(f"up after {seconds:.0f} s: {', '.join(program.name for program in wanted)}", flush=True)
            return
        url = edge_url(self._settings)
        key = _first_key(self._loaded.root / self._settings.api_keys_file)
        model = _first_model(url, key)
        shown_key = key if key == DEFAULT_KEY else "$KEY"
        body = {
            "model": model or "MODEL",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 64,
        }
        where = (
            f"in {self._settings.api_keys_file}"
            if shown_key != key
            else f"(replace it: {self._settings.api_keys_file})"
        )
        print(f"\nvLLM Proxy is up after {seconds:.0f} s")
        print(f"  URL    {url}/v1")
        print(f"  Key    {shown_key} {where}")
        print(f"  Model  {model or 'none yet: no engine has a start command'}")
        print("\nTry it:")
        print(f"  curl {url}/v1/chat/completions \\")
        print(f'    -H "Authorization: Bearer {shown_key}" -H "Content-Type: application/json" \\')
        print(f"    -d {shlex.quote(json.dumps(body))}")
        print("\nSee also: make status, make logs SERVICE=edge, make stop\n", flush=True)

    def _follow(self, started: Sequence[Program]) -> None:
        """Shows the logs until the services are stopped from elsewhere, or until Ctrl-C."""
        print(f"Following the logs; Ctrl-C {'stops' if started else 'leaves'} the services.\n", flush=True)
        follow(self._logs("all"), until=lambda: self._supervisor.daemon() is None)
        print("stopped from elsewhere", flush=True)

    # -- stop

    def stop(self, names: Sequence[str]) -> int:
        """Stops services; all of them, and the supervisor, without names. Fine if nothing runs."""
        wanted = self._named(names)
        with self._supervisor.exclusive():
            state = self._supervisor.state()
            if state is State.GONE:
                if left := self._supervisor.leftovers():
                    print(f"ending {len(left)} processes whose supervisor is gone", flush=True)
                self._supervisor.end_leftovers()
                print("stopped" if left else "nothing runs", flush=True)
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

    def _stop_some(self, wanted: Sequence[Program]) -> None:
        names = {program.name for program in wanted}
        pids = [process.pid for process in self._supervisor.processes() if process.service in names and process.pid]
        family = process_table.with_descendants(filter(None, map(process_table.find, pids)))
        with _interrupt_noted() as interrupted:
            for program in reversed(wanted):
                self._supervisor.stop_service(program.name)
            self._wait_ended(family, lambda: [name for name in self._alive_names() if name in names], interrupted)
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

    # -- show

    def status(self, names: Sequence[str]) -> int:
        """Prints a row per process. Returns 0 if all of them answer, else 3."""
        wanted = self._named(names)
        processes = self._supervisor.processes() if self._supervisor.is_running() else []
        good = True
        print(f"{'SERVICE':<16} {'STATE':<10} {'PID':>8} {'UP':>9}  LOG")
        for program in wanted:
            mine: list[ProcessState | None] = [p for p in processes if p.service == program.name]
            answers = any(p is not None and p.is_up for p in mine) and is_ready(program)
            good = good and answers
            for process, log in zip(mine or [None] * program.processes, program.log_names, strict=True):
                print(_row(process, program, log=self._settings.logs.dir / log, answers=answers))
        if not processes and (left := self._supervisor.leftovers()):
            print(f"\nThe supervisor is gone and left {len(left)} processes; `make stop` ends them.")
        print(f"\nedge: {edge_url(self._settings)}")
        return 0 if good else 3

    def follow_logs(self, name: str, lines: int) -> int:
        """Prints the last lines of a service's log and what follows, until Ctrl-C."""
        follow(self._logs(name), until=lambda: False, last_lines=lines)
        return 0

    def _logs(self, name: str) -> dict[str, Path]:
        """Log files by the name before their lines. Raises ConfigError for a name that there is not."""
        folder = self._loaded.root / self._settings.logs.dir
        logs: dict[str, Path] = {}
        for program in self._programs:
            for log in program.log_names:
                logs[program.name if program.processes == 1 else log.removesuffix(".log")] = folder / log
        for kind, section in (("vllm", self._settings.vllm), ("sglang", self._settings.sglang)):
            if any(program.engine == kind for program in self._programs):
                logs[kind] = self._loaded.root / section.log_file
        if name == "all":
            return logs
        logs["supervisord"] = folder / "supervisord.log"
        known = sorted(logs)
        chosen = {key: path for key, path in logs.items() if name in (key, key.split("-")[0], path.stem)}
        if name == "edge" and "edge" not in logs:
            chosen = {key: path for key, path in logs.items() if key.startswith("fastapi-")}
        if name in logs:
            chosen = {name: logs[name]}
        if not chosen:
            raise ConfigError(f"SERVICE={name}: there is {', '.join(known)}, all")
        return chosen

    def _log_path(self, service: str) -> Path:
        (program,) = self._named([service])
        return self._loaded.root / self._settings.logs.dir / program.log_names[0]

    def _named(self, names: Sequence[str]) -> list[Program]:
        """In the order of their start; all without names. Raises ConfigError."""
        known = {program.name: program for program in self._programs}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"no service {', '.join(unknown)}; there is {', '.join(known)}")
        return [program for program in self._programs if not names or program.name in names]

    def _alive_names(self) -> list[str]:
        """Services that have a living process."""
        folder = self._loaded.root / self._settings.pid_dir
        return [
            program.name
            for program in self._programs
            if any(process_table.owner(folder / name) for name in program.pid_names)
        ]


@contextlib.contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Within it, Ctrl-C and SIGTERM set an event instead of raising: a stop must not be left half done."""
    noted = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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


def _row(process: ProcessState | None, program: Program, *, log: Path, answers: bool) -> str:
    if process is None or not process.is_up:
        state = "stopped" if process is None or process.state == "STOPPED" else process.state.lower()
        return f"{program.name:<16} {state:<10} {'-':>8} {'-':>9}  {log}"
    state = "serving" if answers else "starting" if process.state != "STOPPING" else "stopping"
    up_s = max(0, int(time.time()) - process.started_at)
    up = f"{up_s // 3600}:{up_s // 60 % 60:02}:{up_s % 60:02}"
    return f"{process.name:<16} {state:<10} {process.pid:>8} {up:>9}  {log}"


def _first_key(path: Path) -> str:
    """The default key if it is still there, else the first that is enabled; empty if only hashes are."""
    try:
        rows = [row for row in json.loads(path.read_text())["keys"] if row.get("enabled", True) and row.get("key")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    keys = [str(row["key"]) for row in rows]
    return DEFAULT_KEY if DEFAULT_KEY in keys else next(iter(keys), "")


def _first_model(url: str, key: str) -> str:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

"""Talks to the supervisord of one configuration: starts it, asks it, ends it and everything that it started.

Works in the configuration's root, since the control socket's path is relative to it.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import http.client
import os
import shutil
import subprocess
import time
import xmlrpc.client
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.supervisor_config import Program, engine_section, environment_python, metrics_folder, render
from supervisor.xmlrpc import Faults

from vllm_proxy.cli import process_table, supervised
from vllm_proxy.cli.supervised import ProcessState, control_socket
from vllm_proxy.common import pid_record
from vllm_proxy.common.settings import LoadedSettings

START_DEADLINE_S = 20.0
#: Started processes find these and take them for their own.
NOT_INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONHOME", "PROMETHEUS_MULTIPROC_DIR", "VIRTUAL_ENV")


class SupervisorError(Exception):
    """The message is for the user."""


class SupervisorGone(SupervisorError):
    """It is not there, or on its way out and takes no more orders."""


class State(enum.Enum):
    GONE = enum.auto()
    RUNNING = enum.auto()
    STOPPING = enum.auto()


class Supervisor:
    def __init__(self, loaded: LoadedSettings) -> None:
        self._loaded = loaded
        settings = loaded.settings
        self._socket = control_socket(settings)
        self._config = loaded.root / settings.run_dir / "supervisord.conf"
        self._pids = loaded.root / settings.pid_dir
        self.log = settings.logs.dir / "supervisord.log"

    def state(self) -> State:
        try:
            self._call("getState")
        except SupervisorGone:
            return State.STOPPING if self.daemon() else State.GONE
        return State.RUNNING

    def is_running(self) -> bool:
        return self.state() is State.RUNNING

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Held while something is started, so that two starts at once become one."""
        folder = self._loaded.root / self._loaded.settings.run_dir
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def start(self, wanted: Sequence[Program]) -> None:
        """Starts supervisord itself, no service yet. Raises SupervisorError."""
        settings = self._loaded.settings
        for folder in (settings.logs.dir, settings.pid_dir, settings.run_dir):
            (self._loaded.root / folder).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(metrics_folder(self._loaded), ignore_errors=True)
        metrics_folder(self._loaded).mkdir()
        self._config.write_text(render(self._loaded, wanted))
        environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        environment["PYTHONUNBUFFERED"] = "1"
        environment.setdefault("PATH", os.defpath)
        done = subprocess.run(
            [str(environment_python("gateway")), "-m", "supervisor.supervisord", "-c", str(self._config)],
            cwd=self._loaded.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_DEADLINE_S
        while done.returncode == 0 and time.monotonic() < deadline:
            if self.is_running():
                return
            time.sleep(0.05)
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SupervisorError(
            f"the supervisor did not start: {said[0] if said else 'no word from it'} (log: {self.log})"
        )

    def add_new(self, wanted: Sequence[Program]) -> None:
        """Makes services known that the configuration did not have when the supervisor started."""
        known = {process.service for process in self.processes()}
        new = [program.name for program in wanted if program.name not in known]
        if not new:
            return
        self._config.write_text(render(self._loaded, wanted))
        self._call("reloadConfig")
        for service in new:
            self._call("addProcessGroup", service)

    def configuration(self) -> str:
        """What the running supervisor was started with."""
        try:
            return self._config.read_text()
        except OSError:
            return ""

    def processes(self) -> list[ProcessState]:
        return supervised.processes(self._call("getAllProcessInfo"))

    def start_service(self, service: str) -> None:
        """Returns once it is being started; does nothing if it is up."""
        self._call("startProcessGroup", service, False)

    def stop_service(self, service: str) -> None:
        self._call("stopProcessGroup", service, False)

    def start_process(self, process: ProcessState) -> None:
        self._call("startProcess", f"{process.service}:{process.name}", False)

    def stop_process(self, process: ProcessState) -> None:
        self._call("stopProcess", f"{process.service}:{process.name}", False)

    def shutdown(self) -> None:
        """Tells all services to stop, those that clients see first. Returns at once."""
        with contextlib.suppress(SupervisorGone):
            self._call("shutdown")

    def daemon(self) -> process_table.Process | None:
        """supervisord itself, while it lives."""
        return process_table.owner(self._pids / "supervisord.pid")

    def leftovers(self) -> list[process_table.Process]:
        """Processes of this configuration that its pid files name, no supervisor being there."""
        found = (process_table.owner(path) for path in self._pid_files())
        return [process for process in found if process is not None]

    def end_leftovers(self) -> None:
        """Ends services whose supervisor was killed, and forgets pid files."""
        orphans = self.leftovers()
        everything = process_table.with_descendants(orphans)
        process_table.terminate(everything, patience_s=5.0)
        for path in self._pid_files():
            path.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self._loaded.root / self._socket).unlink()

    def end_engines(self, wanted: Sequence[Program]) -> int:
        """Ends engines in processes of their own that hosts of before left. Returns how many processes there were."""
        ended = 0
        for path in self._engine_pid_files(wanted):
            if (record := pid_record.read(path)) is not None and (group := record.group()):
                ended += len(group)
                record.end(self._loaded.settings.engine_process.stop_timeout_s)
            path.unlink(missing_ok=True)
        return ended

    def _engine_pid_files(self, wanted: Sequence[Program]) -> set[Path]:
        sections = (engine_section(self._loaded.settings, program) for program in wanted)
        cli = (section for section in sections if section is not None and section.launch_mode == "cli")
        return {(self._loaded.root / section.pid_file).resolve() for section in cli}

    def _pid_files(self) -> list[Path]:
        """Of services. An engine in a process of its own may outlive its host, and the next one adopts it."""
        settings = self._loaded.settings
        sections = [settings.vllm, settings.sglang]
        sections += filter(
            None, (settings.for_host(name).section(spec.engine) for name, spec in settings.hosts().items())
        )
        engines = {(self._loaded.root / section.pid_file).resolve() for section in sections}
        return sorted(path for path in self._pids.glob("*.pid") if path.resolve() not in engines)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return supervised.call(self._socket, method, *arguments)
        except (OSError, http.client.HTTPException) as e:
            raise SupervisorGone(f"the supervisor does not answer: {e}") from None
        except xmlrpc.client.Fault as e:
            if e.faultCode == Faults.SHUTDOWN_STATE:
                raise SupervisorGone("the supervisor is stopping") from None
            if e.faultCode in (Faults.ALREADY_STARTED, Faults.NOT_RUNNING):
                return None
            raise SupervisorError(f"supervisor: {e.faultString}") from None

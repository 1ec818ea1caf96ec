"""Restarts services one process after the other, so that what is left serves meanwhile."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial

from scripts.readiness import LogMarks, Stopped, is_ready, wait_ready
from scripts.supervisor_client import Supervisor, SupervisorError, SupervisorGone
from scripts.supervisor_config import Program, render

from vllm_proxy.cli import process_table
from vllm_proxy.cli.supervised import ProcessState
from vllm_proxy.common.settings import LoadedSettings

POLL_S = 0.05
#: Lines about a process that takes its time to end.
LINE_INTERVAL_S = 5.0
#: How long a process may outlive the service that started it.
LEFT_BEHIND_S = 3.0


class RollingRestart:
    """`restart` what is `chosen`, in that order."""

    def __init__(self, loaded: LoadedSettings, supervisor: Supervisor, timeout_s: float | None) -> None:
        """`timeout_s` bounds how long a process may take to serve again."""
        self._loaded = loaded
        self._supervisor = supervisor
        self._timeout_s = timeout_s

    def chosen(self, programs: Sequence[Program], names: Collection[str]) -> list[Program]:
        """Those of `names`, or all that are up but nginx, which has nothing of ours in it.

        Raises SupervisorError if something that is named is not up.
        """
        if not self._supervisor.is_running():
            raise SupervisorError("nothing runs; `make start` starts it")
        up = {process.service for process in self._supervisor.processes() if process.is_up}
        if down := [name for name in names if name not in up]:
            raise SupervisorError(f"not up: {', '.join(down)}; `scripts/start.sh {' '.join(down)}` starts it")
        if self._supervisor.configuration() != render(self._loaded, programs):
            print("note: what the supervisor starts changed (services, port, workers); `make restart` makes that count")
        return [p for p in programs if (p.name in names if names else p.name in up and p.name != "nginx")]

    def restart(self, program: Program) -> None:
        """Raises StartFailed, Stopped, TimeoutError."""
        for process in self._processes(program):
            began_at = time.monotonic()
            print(f"{process.name}: stopping", flush=True)
            marks = LogMarks(self._loaded, [program])
            self._end(process)
            # Not while it waits: a stop need not wait for that.
            with self._supervisor.exclusive():
                self._start(process)
            answers = partial(self._serves, process)
            wait_ready(self._loaded, self._supervisor, [program], marks, self._timeout_s, answers)
            print(f"{process.name}: serves again after {time.monotonic() - began_at:.1f} s", flush=True)

    def _end(self, process: ProcessState) -> None:
        """Returns when it has ended, with all that it started, and may be started."""
        main = process_table.find(process.pid) if process.pid else None
        family = process_table.with_descendants([main] if main else [])
        began_at = shown_at = time.monotonic()
        while not (now := self._now(process)).has_ended:
            if now.state != "STOPPING":
                self._supervisor.stop_process(process)
            if time.monotonic() - shown_at >= LINE_INTERVAL_S:
                shown_at = time.monotonic()
                print(f"{shown_at - began_at:4.0f} s  waiting for {process.name} to end", flush=True)
            family |= process_table.with_descendants(family)
            time.sleep(POLL_S)
        process_table.terminate(family, LEFT_BEHIND_S)

    def _start(self, process: ProcessState) -> None:
        try:
            self._supervisor.start_process(process)
        except SupervisorGone:
            raise Stopped from None

    def _serves(self, process: ProcessState, program: Program) -> bool:
        if not program.ready:
            return is_ready(program, self._loaded.settings.grpc)
        now = self._now(process)
        number = process.name.rpartition("-")[2]
        path = self._loaded.root / self._loaded.settings.run_dir / program.ready.replace("%(process_num)d", number)
        return bool(now.pid) and process_table.read_pid(path) == now.pid

    def _processes(self, program: Program) -> list[ProcessState]:
        return sorted((p for p in self._all() if p.service == program.name), key=lambda process: process.name)

    def _now(self, process: ProcessState) -> ProcessState:
        return next(p for p in self._all() if p.name == process.name)

    def _all(self) -> list[ProcessState]:
        try:
            return self._supervisor.processes()
        except SupervisorGone:
            raise Stopped from None

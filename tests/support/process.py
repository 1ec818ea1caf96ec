"""One service as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.cpu_time import tree_cpu_s
from tests.support.wait import wait_until

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 20.0
SERVICES_ROOT = Path(__file__).parents[2] / "services"
#: vLLM's own environment.
ENGINE_PYTHON = Path(os.environ.get("VLLM_PYTHON", SERVICES_ROOT.parent / ".venv/vllm/bin/python"))
#: SGLang's.
SGLANG_PYTHON = Path(os.environ.get("SGLANG_PYTHON", SERVICES_ROOT.parent / ".venv/sglang/bin/python"))
#: That of other people's clients.
CLIENTS_PYTHON = SERVICES_ROOT.parent / ".venv/clients/bin/python"
#: On PYTHONPATH, it lets SGLang run on a CPU.
SGLANG_CPU_STUB = Path(__file__).with_name("sglang_cpu")


class ServiceProcess:
    """Starts, stops, kills and restarts one service; its standard error is appended to `log_path`.

    `is_healthy` is polled by `wait_healthy`. `pass_fds` are inherited under their own numbers.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        log_path: Path,
        is_healthy: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        start_deadline_s: float = START_DEADLINE_S,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._command = list(command)
        self._cwd = cwd
        self._is_healthy = is_healthy
        self._environment = {**os.environ, "PYTHONPATH": str(SERVICES_ROOT), **(environment or {})}
        self._pass_fds = tuple(pass_fds)
        self._start_deadline_s = start_deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        #: CPU time of earlier starts, so that cpu_seconds never goes back.
        self._cpu_s_before = 0.0

    @staticmethod
    def python_module(module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments]

    def start(self) -> None:
        """Starts the process and returns at once."""
        assert not self.running, f"{self.name} runs already"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
            )

    def wait_healthy(self, deadline_s: float | None = None) -> None:
        """Raises AssertionError with the end of the log if it ends or is not healthy in time."""

        def healthy() -> bool:
            if not self.running:
                raise AssertionError(f"{self.name} ended with {self.exit_status} at start")
            return self._is_healthy()

        try:
            wait_until(healthy, f"{self.name} healthy", deadline_s or self._start_deadline_s)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log_tail()}") from None

    @property
    def is_healthy(self) -> bool:
        return self.running and self._is_healthy()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll() if self._process else None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def terminate(self) -> None:
        """Sends SIGTERM and returns at once."""
        self._signal(signal.SIGTERM)

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """SIGTERM, then waits. Returns the exit status. Raises AssertionError if it does not end in time."""
        if self.running:
            self._keep_cpu_time()
            self.terminate()
        return self.wait_ended(deadline_s)

    def wait_ended(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        assert self._process is not None
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {deadline_s:g} s:\n{self.log_tail()}") from None

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        if self.running:
            self._keep_cpu_time()
            self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def end(self, deadline_s: float) -> None:
        """Stops it, the hard way after the deadline. Does nothing if it does not run."""
        if not self.running:
            return
        self.resume()
        self.terminate()
        with suppress(AssertionError):
            self.wait_ended(deadline_s)
        self.kill()

    def restart(self, *, kill: bool = False) -> None:
        """Stops (or kills) it, starts it again and waits until it is healthy."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()
        self.wait_healthy()

    def pause(self) -> None:
        """SIGSTOP: alive, but does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """User and system time of the process and its live children, all its starts together."""
        return self._cpu_s_before + self._cpu_s_now()

    def log_lines(self) -> list[dict[str, Any]]:
        return log_lines(self.log_path)

    def log_tail(self, lines: int = 40) -> str:
        if not self.log_path.exists():
            return "(no log)"
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self.name} was not started"
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _keep_cpu_time(self) -> None:
        self._cpu_s_before += self._cpu_s_now()

    def _cpu_s_now(self) -> float:
        return tree_cpu_s(self.pid) if self.running else 0.0


def log_lines(path: Path) -> list[dict[str, Any]]:
    """Every JSON line of a log so far; anything else becomes {"event": the line}."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        lines.append(line if isinstance(line, dict) else {"event": text})
    return lines

"""Starting and stopping as a user does: the whole gateway under its supervisor, over the simulated engine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.support.command_line import vllm_proxy
from tests.support.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
SERVICES = {"auth", "router", "engine-sim", "edge-0", "edge-1"}


class Installation:
    """One configuration in a folder of its own, with a blank in its name, and `proxyctl` for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.config = folder / "config" / "config.yaml"
        self.config.parent.mkdir(parents=True)
        self.configure()

    def configure(self, more: str = "") -> None:
        text = f"engine_hosts: {{sim: {{engine: sim}}}}\nfastapi_port: {self.port}\nfastapi_workers: 2\n{more}"
        self.config.write_text(text)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "scripts.proxyctl", "--config", str(self.config), *arguments]

    def control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    def status(self) -> subprocess.CompletedProcess[str]:
        return vllm_proxy(self.config, "status")

    def pids(self) -> dict[str, int]:
        """Service -> process id, by the pid files."""
        return {path.stem: int(path.read_text()) for path in (self.folder / ".pids").glob("*.pid")}

    def processes(self) -> list[str]:
        """Command lines of everything that runs for this configuration."""
        lines = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.folder) in line and "proxyctl" not in line:
                lines.append(line)
        return lines

    def health(self) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=2, trust_env=False).status_code
        except httpx.TransportError:
            return 0


@pytest.fixture
def installation() -> Iterator[Installation]:
    # A short path: a Unix socket's has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="vp-", dir="/tmp") as folder:
        made = Installation(Path(folder) / "an installation")
        yield made
        made.control("stop")
        assert made.processes() == []


@contextlib.contextmanager
def _run(installation: Installation) -> Iterator[subprocess.Popen[bytes]]:
    """What `make run` does, once it is up; in a process group of its own, as in a terminal."""
    with (installation.folder / "output").open("w") as file:
        run = subprocess.Popen(
            installation.command("start", "--follow"), cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_until(lambda: "Following the logs" in _output(installation), "the run to be up", DEADLINE_S)
        yield run
    finally:
        run.kill()
        run.wait()


def _output(installation: Installation) -> str:
    return (installation.folder / "output").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop_twice(installation: Installation) -> None:
    """At once: whichever returns first, everything is down then."""
    stops = [subprocess.Popen(installation.command("stop"), cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    while stops:
        ended = [stop for stop in stops if stop.poll() is not None]
        assert not ended or installation.processes() == []
        assert all(stop.returncode == 0 for stop in ended)
        stops = [stop for stop in stops if stop not in ended]
        time.sleep(0.02)


def test_start_serves_adopts_and_stop_leaves_nothing(installation: Installation):
    started = installation.control("start")
    assert started.returncode == 0, started.stderr
    assert f"http://127.0.0.1:{installation.port}/v1" in started.stdout
    assert "sk-default-key-change-me" in started.stdout
    before = installation.pids()
    assert before.keys() == SERVICES | {"supervisord"}
    assert installation.status().returncode == 0
    curl = started.stdout.partition("Try it:\n")[2].partition("\n\n")[0]
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=20, check=True)
    assert '"object":"chat.completion"' in answer.stdout

    again = installation.control("start")
    assert again.returncode == 0
    assert "already up: auth, router, engine-sim, edge" in again.stdout
    assert installation.pids() == before

    _stop_twice(installation)
    assert installation.pids() == {}
    assert installation.control("stop").returncode == 0
    assert installation.status().returncode == 3


def test_a_killed_worker_comes_back_and_no_connection_is_refused(installation: Installation):
    installation.control("start")
    victim = installation.pids()["edge-0"]
    os.kill(victim, signal.SIGKILL)
    seen: set[int] = set()

    def replaced() -> bool:
        seen.add(installation.health())
        return installation.pids()["edge-0"] != victim

    wait_until(replaced, "another edge-0")
    # A connection that waited at the killed worker may be lost, one to the listener is not.
    assert 200 in seen


def test_services_start_and_stop_one_by_one_also_those_configured_later(installation: Installation):
    first = installation.control("start", "auth").stdout
    assert "up after" in first
    assert re.search(r"^  Admin  \S+ \(shown this once", first, re.MULTILINE)
    assert installation.pids().keys() == {"auth", "supervisord"}
    assert installation.control("start").returncode == 0
    assert installation.control("stop", "engine-sim").returncode == 0
    assert not any("engine_host" in line for line in installation.processes())
    assert installation.control("start", "engine-sim").returncode == 0
    wait_until(lambda: installation.health() == 200, "health with the engine back")
    installation.config.write_text(
        installation.config.read_text().replace("engine_hosts: {", "engine_hosts: {extra: {engine: sim}, ")
    )
    joined = installation.control("start", "engine-extra")
    assert joined.returncode == 0, joined.stderr
    assert "engine-extra" in installation.pids()


def test_what_a_killed_supervisor_left_is_found(installation: Installation):
    installation.control("start")
    os.kill(installation.pids()["supervisord"], signal.SIGKILL)
    assert "`make stop` ends them" in installation.status().stdout
    assert installation.control("start").returncode == 0
    assert len(installation.processes()) == len(SERVICES) + 1
    before = set(installation.pids().values())
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert installation.control("start").returncode == 0
    assert installation.health() == 200
    assert not before & set(installation.pids().values()), "what a loss of power leaves is forgotten"
    os.kill(installation.pids()["supervisord"], signal.SIGKILL)
    assert installation.control("stop").returncode == 0
    assert installation.processes() == []


def test_a_stop_in_the_middle_of_a_start_ends_both(installation: Installation):
    start = subprocess.Popen(
        installation.command("start"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: "router" in installation.pids(), "services being started", DEADLINE_S)
    stopped = installation.control("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert installation.processes() == []
    _, said = start.communicate(timeout=DEADLINE_S)
    assert start.returncode == 1, said
    assert installation.processes() == [], "the start has started nothing more"


def test_pid_files_that_name_strangers_are_forgotten_and_nobody_is_killed(installation: Installation):
    folder = installation.folder / ".pids"
    folder.mkdir()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for service in ("supervisord", "auth", "edge-0"):
            (folder / f"{service}.pid").write_text(f"{stranger.pid}\n")
        (folder / "router.pid").write_text("no number\n")
        assert installation.control("stop").returncode == 0
        assert installation.pids() == {}
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_run_in_the_foreground_shows_the_logs_and_ends_with_a_stop_from_elsewhere(installation: Installation):
    with _run(installation) as run:
        assert installation.control("stop").returncode == 0
        assert run.wait(DEADLINE_S) == 0
    assert installation.processes() == []
    assert re.search(r"^\S+Z auth +INFO +stopping", _output(installation), re.MULTILINE)


def test_ctrl_c_stops_what_a_run_started_and_leaves_what_ran_before(installation: Installation):
    installation.control("start", "engine-sim")
    with _run(installation) as run:
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(DEADLINE_S) == 0
    assert "still up, because they were before: engine-sim" in _output(installation)
    assert len(installation.processes()) == 2  # the supervisor and the engine host
    installation.control("stop")
    with _run(installation) as run:
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(DEADLINE_S) == 0
    assert installation.processes() == []


def test_a_service_that_cannot_start_is_named_with_its_log(installation: Installation):
    installation.configure("auth: {store: 'sqlite:/proc/nowhere/auth.db'}\n")
    failed = installation.control("start")
    assert failed.returncode == 1
    assert "auth cannot start" in failed.stderr
    assert "logs/auth.log" in failed.stderr
    assert installation.processes() == []


def test_a_port_in_use_is_said_before_anything_starts(installation: Installation):
    with socket.create_server(("0.0.0.0", installation.port)):
        failed = installation.control("start")
    assert failed.returncode == 1
    assert "fastapi_port" in failed.stderr
    assert installation.processes() == []


def test_a_bad_configuration_is_one_line(installation: Installation):
    installation.configure("frobnicate: 1\n")
    failed = installation.control("start")
    assert failed.returncode == 1
    assert failed.stderr.strip().endswith("frobnicate: unknown key")
    installation.configure()


def test_what_runs_is_shown_and_stopped_though_its_configuration_broke(installation: Installation):
    assert installation.control("start").returncode == 0
    installation.configure("frobnicate: 1\n")
    status = installation.status()
    assert status.returncode == 0, status.stderr
    assert "frobnicate: unknown key; using the configuration of the last start" in status.stderr
    assert installation.control("stop").returncode == 0
    assert installation.processes() == []
    installation.configure()


def test_without_an_engine_nothing_is_started(installation: Installation):
    installation.config.write_text(f"fastapi_port: {installation.port}\n")
    failed = installation.control("start")
    assert failed.returncode == 1
    assert failed.stderr.startswith("no engine is configured: put a start command into config/vllm_start_cmd.txt")
    assert installation.processes() == []

"""The doctor finds each planted fault and names its fix, finds none where none is, and changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import yaml
from tests.support.valkey import Valkey

from vllm_proxy.api.common.v1 import maintenance_pb2, maintenance_pb2_grpc
from vllm_proxy.cli import main as cli
from vllm_proxy.cli.doctor import command
from vllm_proxy.cli.doctor.check import Finding, Verdict

NOBODY = 65534
#: What an operator reads to do, here and in the guide.
FIXES = (
    *("kill PID", "fastapi_port", "correct `--model`", "chmod 600 config/api_keys.json", "clean-logs"),
    *("scripts/stop.sh", "timedatectl set-ntp true", "scripts/install.sh vllm", "--print-cmd"),
    *("systemctl start valkey-server", "a later `expires_at`", "model_backend_mapping", "logs.dir"),
)
GUIDE = Path(__file__).parents[3] / "docs" / "TROUBLESHOOTING.md"
EXPIRED_KEY = {"key": "sk-late-0123456789abcdef", "user": "late", "expires_at": "2025-01-31T12:00:00Z"}


class Installation:
    """One with a vLLM that could be started, and nothing wrong with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.code_root = root / "code"
        self.path = root / "config" / "config.yaml"
        self.keys_path = root / "config" / "api_keys.json"
        self.path.parent.mkdir()
        (root / "models" / "m").mkdir(parents=True)
        (root / "models" / "m" / "config.json").write_text("{}")
        environment = self.code_root / ".venv" / "vllm"
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").touch()
        (environment / "lib" / "python3.12" / "site-packages" / "vllm-1.2.dist-info").mkdir(parents=True)
        for folder in ("logs", "state", ".pids", ".run"):
            (root / folder).mkdir()
        self.config: dict[str, Any] = {
            "fastapi_host": "127.0.0.1",
            "fastapi_port": free_port(),
            "vllm_port": free_port(),
            "vllm": {"start_cmd": "vllm serve models/m --dtype auto"},
        }
        self.write()
        self.write_keys({"key": "sk-admin-0123456789abcdef", "user": "admin"})

    def write(self, **changes: Any) -> None:
        self.config |= changes
        self.path.write_text(yaml.safe_dump(self.config))

    def write_keys(self, *rows: dict[str, Any]) -> None:
        self.keys_path.write_text(json.dumps({"keys": rows}))
        self.keys_path.chmod(0o600)

    def examine(self, min_free_bytes: int = 0) -> dict[str, list[Finding]]:
        found = asyncio.run(command.examine(self.path, min_free_bytes, 2.0, self.code_root))
        return {check.name: findings for check, findings in found}

    def the_fault(self, check: str, **options: Any) -> Finding:
        """The only finding of a check that is not well; no other check may fail because of it."""
        found = self.examine(**options)
        (fault,) = [finding for finding in found[check] if finding.verdict is not Verdict.OK]
        others = {name: findings for name, findings in found.items() if name != check}
        assert failures(others) == []
        return fault


def failures(found: dict[str, list[Finding]]) -> list[Finding]:
    return [finding for findings in found.values() for finding in findings if finding.verdict is Verdict.FAIL]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """In a folder with a short path (of sockets) that others may enter."""
    root = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
    root.chmod(0o755)
    monkeypatch.chdir(root)
    yield Installation(root)
    monkeypatch.undo()
    shutil.rmtree(root)


def contents(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in [root, *root.rglob("*")]}


class TestHealthy:
    def test_nothing_is_found_and_nothing_is_changed(self, installation: Installation) -> None:
        before = contents(installation.root)
        found = installation.examine()
        assert failures(found) == []
        assert set(found) == {check.name for check in command.CHECKS}
        assert [name for name, rows in found.items() if any(row.verdict is Verdict.WARN for row in rows)] == [
            "services"
        ]
        assert contents(installation.root) == before

    def test_before_the_first_start_too(self, installation: Installation) -> None:
        for folder in ("logs", "state", ".pids", ".run"):
            (installation.root / folder).rmdir()
        installation.keys_path.unlink()
        assert failures(installation.examine()) == []
        assert not (installation.root / "logs").exists() and not installation.keys_path.exists()

    def test_the_command_prints_and_says_by_its_exit_code(
        self, installation: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installation.write(engine_hosts={"sim": {"engine": "sim"}}, vllm={})
        arguments = ["--config", str(installation.path), "doctor", "--min-free", "0"]
        assert cli.main(arguments) == 0
        assert "failed: 0, warnings: 1" in capsys.readouterr().out
        (installation.root / "logs").rmdir()
        (installation.root / "logs").touch()
        assert cli.main([*arguments, "--json"]) == 1
        rows = json.loads(capsys.readouterr().out)
        (row,) = [row for row in rows if row["verdict"] == "fail"]
        assert row.keys() == {"check", "looks_at", "verdict", "what", "fix"}
        assert row["check"] == "folders"


class TestTwelveFaults:
    def test_a_port_that_is_taken(self, installation: Installation) -> None:
        with socket.create_server(("127.0.0.1", installation.config["fastapi_port"])):
            fault = installation.the_fault("ports")
        assert fault.verdict is Verdict.FAIL
        assert f"port {installation.config['fastapi_port']} (fastapi_port) is taken by" in fault.what
        assert f"(pid {os.getpid()})" in fault.what
        assert f"kill {os.getpid()}" in fault.fix and "set fastapi_port to another port" in fault.fix

    @pytest.mark.parametrize("command_", ["vllm serve /nowhere/model", "vllm serve --model models/typo"])
    def test_a_wrong_model_path(self, installation: Installation, command_: str) -> None:
        installation.write(vllm={"start_cmd": command_})
        fault = installation.the_fault("models")
        assert fault.verdict is Verdict.FAIL and command_.split()[-1] in fault.what
        assert "correct --model in start_cmd" in fault.fix

    def test_a_key_file_that_cannot_be_read(self, installation: Installation) -> None:
        installation.keys_path.unlink()
        installation.keys_path.mkdir()
        fault = installation.the_fault("keys")
        assert fault.verdict is Verdict.FAIL and "Is a directory" in fault.what
        installation.keys_path.rmdir()
        installation.write_keys()
        installation.keys_path.chmod(0)
        with as_nobody():
            (fault,) = installation.examine()["keys"]
        assert fault.verdict is Verdict.FAIL and "Permission denied" in fault.what
        assert f"chmod 600 {installation.config.get('api_keys_file', 'config/api_keys.json')}" in fault.fix

    def test_a_full_disk(self, installation: Installation) -> None:
        free_bytes = shutil.disk_usage(installation.root).free
        found = installation.examine(min_free_bytes=free_bytes * 2)
        (fault,) = failures(found)
        assert fault in found["disk"] and "MiB free" in fault.what
        assert "/admin/clean-logs" in fault.fix

    def test_a_stale_pid(self, installation: Installation) -> None:
        pid = ended_pid()
        (installation.root / ".pids" / "auth.pid").write_text(f"{pid}\n")
        fault = installation.the_fault("pids")
        assert f".pids/auth.pid is stale: process {pid} has ended" in fault.what
        assert "scripts/stop.sh" in fault.fix
        (installation.root / ".pids" / "auth.pid").write_text(f"{os.getpid()}\n")
        assert f"process {os.getpid()} is" in installation.the_fault("pids").what

    @pytest.mark.parametrize("hours", [1, -1])
    def test_clocks_that_differ(self, installation: Installation, hours: int) -> None:
        class Elsewhere(maintenance_pb2_grpc.MaintenanceServiceServicer):
            async def GetInfo(self, request: Any, context: Any) -> maintenance_pb2.GetInfoResponse:
                now_ms = round((time.time() + hours * 3600) * 1000)
                return maintenance_pb2.GetInfoResponse(service="router", host_name="far", now_ms=now_ms, version="0")

        async def examined() -> dict[str, list[Finding]]:
            server = grpc.aio.server()
            maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server(Elsewhere(), server)
            server.add_insecure_port("unix:.run/router.sock")
            await server.start()
            found = await command.examine(installation.path, 0, 2.0, installation.code_root)
            await server.stop(0)
            return {check.name: findings for check, findings in found}

        found = asyncio.run(examined())
        (fault,) = found["clocks"]
        direction = "ahead of" if hours > 0 else "behind"
        assert fault.verdict is Verdict.FAIL and f"router (on far) is 3600.0 s {direction}" in fault.what
        assert "timedatectl set-ntp true" in fault.fix
        assert [finding.verdict for finding in found["versions"]] == [Verdict.WARN]

    def test_an_engine_environment_that_is_missing(self, installation: Installation) -> None:
        shutil.rmtree(installation.code_root / ".venv")
        fault = installation.the_fault("environments")
        assert fault.verdict is Verdict.FAIL and ".venv/vllm is not there" in fault.what
        assert "scripts/install.sh vllm" in fault.fix
        (installation.code_root / ".venv" / "vllm" / "bin").mkdir(parents=True)
        (installation.code_root / ".venv" / "vllm" / "bin" / "python").touch()
        assert "vllm is not installed in" in installation.the_fault("environments").what

    @pytest.mark.parametrize(
        ("mode", "start_cmd", "why"),
        [
            ("python_api", "vllm sevre models/m", "`vllm sevre` is not `vllm serve`"),
            ("python_api", "python serve.py --model models/m", "starts no module"),
            ("python_api", "python -m vlm.server --model models/m", "is not a server of vllm"),
            ("python_api", "./run.sh", "it starts 'run.sh', not vllm"),
            ("python_api", "bash -c 'sglang serve models/m'", "it does not start vllm"),
            ("cli", "/opt/none/bin/vllm serve models/m", "there is no program '/opt/none/bin/vllm'"),
        ],
    )
    def test_a_bad_start_command(self, installation: Installation, mode: str, start_cmd: str, why: str) -> None:
        installation.write(vllm={"start_cmd": start_cmd, "launch_mode": mode})
        fault = installation.the_fault("start commands")
        assert fault.verdict is Verdict.FAIL and why in fault.what
        assert "--print-cmd" in fault.fix and "vllm serve MODEL" in fault.fix

    def test_a_redis_that_is_down(self, installation: Installation) -> None:
        with Valkey() as valkey:
            installation.write(auth={"store": valkey.url})
            assert [finding.verdict for finding in installation.examine()["store"]] == [Verdict.OK]
            valkey.stop()
            fault = installation.the_fault("store")
        assert fault.verdict is Verdict.FAIL and "does not answer" in fault.what
        assert "systemctl start valkey-server" in fault.fix

    def test_an_expired_key(self, installation: Installation) -> None:
        installation.write_keys({"key": "sk-admin-0123456789abcdef", "user": "admin"}, EXPIRED_KEY)
        fault = installation.the_fault("expired keys")
        assert "the key of 'late' (entry 2 of config/api_keys.json) expired" in fault.what
        assert EXPIRED_KEY["key"] not in fault.what
        assert "a later expires_at" in fault.fix

    def test_a_mapping_to_no_backend(self, installation: Installation) -> None:
        installation.write(model_backend_mapping={"m": "sglang"})
        fault = installation.the_fault("mappings")
        assert fault.verdict is Verdict.FAIL and "no engine host runs 'sglang'" in fault.what
        assert "give that one a start command" in fault.fix

    def test_a_log_folder_that_cannot_be_written(self, installation: Installation) -> None:
        logs = installation.root / "logs"
        logs.chmod(0o555)
        with as_nobody():
            found = installation.examine()["folders"]
        fault = next(finding for finding in found if "logs.dir" in finding.what)
        if os.geteuid() == 0:  # who is not sees what belongs to them
            assert any("sudo -u root scripts/vllm-proxy doctor" in finding.fix for finding in found)
        assert fault.verdict is Verdict.FAIL and "Permission denied" in fault.what
        logs.chmod(0o755)
        logs.rmdir()
        logs.touch()
        fault = installation.the_fault("folders")
        assert "logs is not a folder" in fault.what
        assert "set logs.dir to another" in fault.fix


class TestOtherFaults:
    def test_a_file_that_is_no_configuration_is_all_that_is_said(self, installation: Installation) -> None:
        installation.path.write_text("fastapi_prot: 1\nlog_level: loud\n")
        found = installation.examine()
        assert list(found) == ["config"]
        assert len(failures(found)) == 2
        assert any("did you mean fastapi_port?" in finding.what for finding in found["config"])

    def test_settings_that_do_not_work_together_leave_the_other_checks(self, installation: Installation) -> None:
        installation.write(vllm={"start_cmd": "vllm serve 'models/m"})
        found = installation.examine()
        assert "No closing quotation" in found["config"][0].what
        assert len(found) == len(command.CHECKS)

    def test_a_listener_that_others_reach_needs_a_secret(
        self, installation: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("VLLM_PROXY_INTERNAL_TOKEN", raising=False)
        installation.write(router={"address": f"0.0.0.0:{free_port()}"})
        assert "VLLM_PROXY_INTERNAL_TOKEN" in installation.the_fault("token").fix

    def test_an_attached_engine_that_is_away(self, installation: Installation) -> None:
        port = installation.config["vllm_port"]
        installation.write(vllm={"launch_mode": "attached"})
        assert f"nothing answers at http://localhost:{port}" in installation.the_fault("attached").what

    def test_a_check_that_hangs_is_given_up(self, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang(site: object) -> list[Finding]:
            time.sleep(60)
            return []

        monkeypatch.setattr(command, "CHECK_TIMEOUT_S", 0.01)
        monkeypatch.setattr(command, "CHECKS", (command.CHECKS[0]._replace(name="hangs", look=hang),))
        started = time.monotonic()
        (fault,) = installation.examine()["hangs"]
        assert "no answer within" in fault.what and time.monotonic() - started < 30


@pytest.mark.parametrize("fix", FIXES)
def test_the_guide_names_the_same_fix(fix: str) -> None:
    section = GUIDE.read_text().partition("## What the doctor finds")[2].partition("\n## ")[0]
    assert fix in section

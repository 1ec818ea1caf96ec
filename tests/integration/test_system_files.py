"""What an operator copies into /etc: systemd's own check of the units, the real logrotate on a log that is written."""

from __future__ import annotations

import getpass
import grp
import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.support.tools import tool

from vllm_proxy.common.log_folder import LogFolder

ROOT = Path(__file__).parents[2]
INSTALLED = "/opt/vllm-proxy"
#: What the engine host's unit calls; the engine's environment is not needed to check a unit.
ENGINE_PYTHON = ".venv/vllm/bin/python"


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed")
    units = sorted((ROOT / "config" / "systemd").glob("*.service"))
    assert {unit.stem for unit in units} == {"vllm-proxy", "vllm-proxy-engine@", "vllm-proxy@"}
    for unit in units:
        text = unit.read_text().replace(f"{INSTALLED}/{ENGINE_PYTHON}", sys.executable).replace(INSTALLED, str(ROOT))
        (tmp_path / unit.name).write_text(text.replace(f"{ROOT}/.venv/gateway/bin/python", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", *tmp_path.glob("*.service")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def writer(path: Path) -> Iterator[int]:
    """A descriptor on a log as the supervisor and engine hosts open theirs."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_logrotate_compresses_and_the_service_writes_on(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o700)
    user = f"su {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    text = (ROOT / "config" / "logrotate" / "vllm-proxy").read_text()
    config = tmp_path / "logrotate.conf"
    config.write_text(text.replace(INSTALLED, str(tmp_path)).replace("su vllm-proxy vllm-proxy", user))
    config.chmod(0o600)
    with writer(logs / "auth.log") as log:
        for line in ("first", "second", "third"):
            os.write(log, f"{line}\n".encode())
            subprocess.run(
                [tool("logrotate"), "--force", "--state", tmp_path / "state", config], check=True, capture_output=True
            )
        os.write(log, b"fourth\n")
    assert (logs / "auth.log").read_text() == "fourth\n"
    assert (logs / "auth.log.1").read_text() == "third\n"
    assert gzip.decompress((logs / "auth.log.2.gz").read_bytes()) == b"second\n"
    names = [(file.name, file.in_use) for file in LogFolder(logs, ["auth"]).files()]
    assert names == [(f"auth.log{end}", not end) for end in ("", ".1", ".2.gz", ".3.gz")]


def test_the_units_start_what_there_is() -> None:
    """Modules and paths that only a running systemd would miss."""
    text = "".join(unit.read_text() for unit in (ROOT / "config" / "systemd").glob("*.service"))
    for path in ("scripts/start.sh", "scripts/stop.sh", "config/config.yaml"):
        assert path in text and (ROOT / path).exists()
    settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    assert f"{INSTALLED}/{settings['pid_dir']}/supervisord.pid" in text
    for service in ("auth", "router", "edge", "engine_host"):
        assert (ROOT / "services" / "vllm_proxy" / service / "__main__.py").exists()

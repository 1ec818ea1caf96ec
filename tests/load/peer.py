"""The peer that the gateway is compared with: smg, in a virtual environment of its own that is made on demand."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

from tests.support.cluster import free_port
from tests.support.process import ServiceProcess

ROOT = Path(__file__).parents[2]
VERSION = "1.13.0"
ENVIRONMENT = ROOT / ".venv" / "bench-smg"


def install() -> Path:
    """The peer's executable; makes its environment first if it is not there."""
    executable = ENVIRONMENT / "bin" / "smg"
    if not executable.exists():
        print(f"installing smg {VERSION} into {ENVIRONMENT.relative_to(ROOT)}", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        subprocess.run([ENVIRONMENT / "bin" / "pip", "install", "--quiet", f"smg=={VERSION}"], check=True)
    return executable


class Peer(ServiceProcess):
    """smg in front of one backend at `backend_port` on loopback."""

    def __init__(self, backend_port: int, folder: Path) -> None:
        self.port = free_port()
        health_url = f"http://127.0.0.1:{self.port}/readiness"
        command = [
            str(install()),
            "launch",
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--worker-urls", f"http://127.0.0.1:{backend_port}"),
            *("--policy", "round_robin", "--prometheus-port", str(free_port())),
            *("--log-level", "warn", "--disable-retries"),
        ]
        super().__init__(
            "smg", command, cwd=folder, log_path=folder / "logs" / "smg.log", is_healthy=lambda: _answers(health_url)
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False

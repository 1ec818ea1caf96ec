"""`vllm-proxy`, as on the machine of the services; from another folder than the installation's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.support.process import SERVICES_ROOT

TIMEOUT_S = 60
#: It needs nothing of the test's own environment.
ENVIRONMENT = {"PYTHONPATH": str(SERVICES_ROOT), "PATH": "/usr/bin:/bin", "GRPC_VERBOSITY": "NONE"}


def command_line(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vllm_proxy.cli", "--config", str(config), *arguments]


def vllm_proxy(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_line(config, *arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=Path(__file__).parent,
        env=ENVIRONMENT,
        check=False,
    )


async def cli(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(vllm_proxy, config, *arguments)

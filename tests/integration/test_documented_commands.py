"""Every command of a page of the documentation, as it stands there, against running services."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import StartCluster
from tests.support.cluster import ADMIN, Cluster
from tests.support.process import SERVICES_ROOT

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
TIMEOUT_S = 110
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster({"sim": {"model": MODEL, "adapters": ["pirate"]}})


def commands(page: str) -> str:
    """The page's blocks as one script: what one sets the next may use."""
    return "\n".join(_BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))


def test_keys_and_usage(cluster: Cluster, tmp_path: Path) -> None:
    # Fails on an HTTP error, and of what a reader fills in it knows the values.
    script = commands("KEYS_AND_USAGE.md")
    for written, meant in (
        ("curl -s ", "curl -sS --fail-with-body "),
        ("http://localhost:8001", cluster.url),
        ("sk-admin-...", ADMIN.key),
        ('"$PWD/scripts:$PATH"', f'"{tmp_path}/bin:$PATH"'),
    ):
        assert written in script
        script = script.replace(written, meant)
    command = tmp_path / "bin" / "vllm-proxy"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m vllm_proxy.cli --config {cluster.config_path} "$@"\n', encoding="utf-8"
    )
    command.chmod(0o755)
    ended = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SERVICES_ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert (tmp_path / "usage.csv").read_text().startswith("hour,key,requests,")
    assert ended.stdout.count('"object"') >= 8

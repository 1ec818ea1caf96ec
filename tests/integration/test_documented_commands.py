"""Every command of a page of the documentation, as it stands there, against running services."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import StartCluster
from tests.support.adapter_files import write_adapter
from tests.support.cluster import ADMIN, Cluster, free_port
from tests.support.process import SERVICES_ROOT
from tests.support.proxyctl import proxyctl
from tests.support.site import Site

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
TIMEOUT_S = 110
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster({"sim": {"model": MODEL, "adapters": ["pirate"]}})


@pytest.fixture
def own_site() -> Iterator[Site]:
    """An installation that the page's own commands start."""
    site = Site({"sim": {"model": MODEL}, "fastapi_host": "127.0.0.1"}, port=free_port())
    (site.root / "config" / "api_keys.json").unlink()
    yield site
    proxyctl(site, "stop")
    site.remove()


def commands(page: str) -> str:
    """The page's blocks as one script: what one sets the next may use."""
    return "\n".join(_BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))


def run_on(cluster: Cluster, folder: Path, script: str, **variables: str) -> str:
    """What a page's commands print, asked of the cluster. They are run in `folder` and fail on an HTTP error."""
    for written, meant in (
        ("curl -s ", "curl "),
        ("curl ", "curl -sS --fail-with-body "),
        ("http://localhost:8001", cluster.url),
        ('"$PWD/scripts:$PATH"', f'"{folder}/bin:$PATH"'),
        ("sk-admin-...", ADMIN.key),
    ):
        script = script.replace(written, meant)
    assert script.count(cluster.url) and script.count(f"{folder}/bin")
    command = folder / "bin" / "vllm-proxy"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m vllm_proxy.cli --config {cluster.config_path} "$@"\n', encoding="utf-8"
    )
    command.chmod(0o755)
    ended = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SERVICES_ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_keys_and_usage(cluster: Cluster, tmp_path: Path) -> None:
    shown = run_on(cluster, tmp_path, commands("KEYS_AND_USAGE.md"))
    assert (tmp_path / "usage.csv").read_text().startswith("hour,key,requests,")
    assert shown.count('"object"') >= 8


def test_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    write_adapter(cluster.root / "adapters" / "robot", base=MODEL)
    # The simulated engine has a pirate already.
    shown = run_on(cluster, tmp_path, commands("CLI.md").replace("pirate", "robot"), KEY=ADMIN.key)
    assert "Unloaded robot from sim." in shown
    assert re.search(r"^edge\S+ +DEBUG$", shown, re.MULTILINE)
    assert re.search(r"^\S+Z edge +INFO +request (?!request_id).* status=200 ", shown, re.MULTILINE)


def test_quick_start_and_adapters(own_site: Site) -> None:
    """From `make start` to `make stop`, the simulated engine in the place of vLLM."""
    before, stop, after = commands("QUICKSTART.md").partition("make stop")
    script = "\n".join([before, commands("LORA_USAGE_EXAMPLES.md"), commands("LOG_ROTATION.md"), stop, after])
    for adapter in ("pirate", "robot"):
        write_adapter(own_site.root / "adapters" / adapter, base=MODEL)
    root = shlex.quote(str(ROOT))
    for written, meant in (
        ("curl ", "curl -sS --fail-with-body "),
        ("http://localhost:8001", own_site.url),
        ("make demo-lora", ""),
        ("make ", f"make -C {root} "),
        ("scripts/", f"{root}/scripts/"),
    ):
        assert written in script
        script = script.replace(written, meant)
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _without_the_engines_port(script)],
        cwd=own_site.root,
        env={**os.environ, "CONFIG": str(own_site.config_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert ended.stdout.count('"object":"chat.completion"') == 1 + len(
        re.findall('"model": "(?:pirate|robot)"', script)
    )
    assert "Success: LoRA adapter 'pirate' removed" in ended.stdout


def _without_the_engines_port(script: str) -> str:
    """The simulated engine has none."""
    return re.sub(r"^curl[^\n]*:8002(?:[^\n]*\\\n)*[^\n]*\n", "", script, flags=re.MULTILINE)

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
from scripts import proxyctl
from scripts.show import log_files
from scripts.supervisor_config import programs

from vllm_proxy.common.settings import ConfigError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "vllm_start_cmd.txt").write_text("vllm serve models/smollm2-135m-instruct --seed 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_BUILD", "cpu")
    return tmp_path


def _load(root: Path, text: str = "", **changes: object):
    path = root / "config" / "config.yaml"
    path.write_text(text)
    args = {"config": path, "action": "start", "model": "", "model_args": ""} | changes
    return proxyctl._load(argparse.Namespace(**args))


def test_a_named_model_leaves_the_tracked_command_alone(root: Path):
    loaded, overrides = _load(root, model="Qwen/Qwen3-0.6B", model_args="--seed 3")
    words = shlex.split(loaded.settings.vllm.command())
    assert words[words.index("--model") + 1] == "Qwen/Qwen3-0.6B"
    assert words[-2:] == ["--seed", "3"]
    assert "smollm2" in (root / "config" / "vllm_start_cmd.txt").read_text()
    assert all("=" in override for override in overrides)


def test_a_named_model_wins_over_start_cmd(root: Path):
    loaded, _ = _load(root, "vllm: {start_cmd: vllm serve other/model}", model="Qwen/Qwen3-0.6B")
    assert "other/model" not in loaded.settings.vllm.command()


def test_a_model_folder_is_served_under_its_own_name(root: Path):
    (root / "models" / "mine").mkdir(parents=True)
    words = shlex.split(proxyctl.model_command("models/mine", ""))
    assert words[words.index("--model") + 1] == str(root / "models" / "mine")
    assert words[words.index("--served-model-name") + 1] == "mine"


def test_a_gpu_gets_no_flags_that_slow_it_down(root: Path, monkeypatch: pytest.MonkeyPatch):
    assert "--enforce-eager" in proxyctl.model_command("a/b", "")
    monkeypatch.setenv("VLLM_BUILD", "gpu")
    assert "--enforce-eager" not in proxyctl.model_command("a/b", "")


def test_a_model_cannot_be_named_for_somebody_elses_engine(root: Path):
    with pytest.raises(ConfigError, match="attached"):
        _load(root, "vllm: {launch_mode: attached}", model="a/b")


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        ("", ["demo", "gateway", "vllm"]),
        ("engine_hosts: {sim: {engine: sim}}", ["gateway"]),
        ("vllm: {launch_mode: attached}", ["gateway"]),
        ("vllm: {start_cmd: vllm serve a/b}", ["gateway", "vllm"]),
    ],
)
def test_what_has_to_be_installed(root: Path, config: str, needs: list[str]):
    assert proxyctl._needs(_load(root, config)[0]) == needs


def test_a_model_that_is_made_needs_no_tools_to_make_it(root: Path):
    (root / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    assert proxyctl._needs(_load(root)[0]) == ["gateway", "vllm"]


def test_logs_by_service_by_file_and_all(root: Path):
    loaded, _ = _load(root, "fastapi_workers: 2")
    wanted = programs(loaded)

    def names(name: str) -> list[str]:
        return [path.name for path in log_files(loaded, wanted, name).values()]

    assert names("edge") == names("fastapi") == ["fastapi-0.log", "fastapi-1.log"]
    assert names("fastapi-1") == ["fastapi-1.log"]
    assert names("auth") == ["auth.log"]
    assert names("vllm") == ["vllm.log"]
    assert names("all") == ["auth.log", "router.log", "engine-vllm.log", "fastapi-0.log", "fastapi-1.log", "vllm.log"]
    with pytest.raises(ConfigError, match="there is auth, edge"):
        names("nonsense")

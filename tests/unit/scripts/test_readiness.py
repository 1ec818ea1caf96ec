from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts.readiness import awaited_log, explain
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


def _program(loaded: LoadedSettings, name: str):
    return next(program for program in programs(loaded) if program.name == name)


def test_a_failure_names_its_last_error_its_cause_and_its_logs(loaded: LoadedSettings):
    lines = [
        {"level": "INFO", "event": "starting"},
        {"level": "ERROR", "event": "engine died", "cause": "exit 1", "traceback": "Traceback\nOSError: nope"},
    ]
    (loaded.root / "logs/engine-vllm.log").write_text("\n".join(map(json.dumps, lines)))
    (loaded.root / "logs/vllm.log").write_text("OSError: some/model is not a valid model identifier\n")
    text = explain(loaded, _program(loaded, "engine-vllm"))
    assert "engine-vllm cannot start" in text
    assert "engine died: cause=exit 1, OSError: nope" in text
    assert "starting" not in text
    assert "likely cause: no such model" in text
    assert "logs/vllm.log, logs/engine-vllm.log" in text


def test_a_crash_before_the_json_log_is_shown_as_it_is(loaded: LoadedSettings):
    (loaded.root / "logs/auth.log").write_text("ModuleNotFoundError: No module named 'grpc'\n")
    text = explain(loaded, _program(loaded, "auth"))
    assert "| ModuleNotFoundError: No module named 'grpc'" in text
    assert "likely cause: the environment is not complete" in text


def test_a_failure_without_any_log_still_names_it(loaded: LoadedSettings):
    assert "log: logs/router.log" in explain(loaded, _program(loaded, "router"))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("api_server.py: error: unrecognized arguments: --frobnicate", "flag"),
        ("torch.OutOfMemoryError: CUDA out of memory", "memory"),
        ("ValueError: No available memory for the cache blocks", "KV cache"),
        ("Cannot access gated repo for url", "HF_TOKEN"),
        ("ValueError: FooForCausalLM does not support LoRA yet.", "lora.enabled"),
        ("OSError: [Errno 98] Address already in use", "port"),
    ],
)
def test_likely_causes(loaded: LoadedSettings, line: str, cause: str):
    (loaded.root / "logs/vllm.log").write_text(f"(EngineCore pid=1) ERROR 11-22 17:00:00 [x.py:1] {line}\n")
    assert cause in explain(loaded, _program(loaded, "engine-vllm"))


def test_while_waiting_the_engines_newest_line_is_shown(loaded: LoadedSettings):
    (loaded.root / "logs/vllm.log").write_text("INFO 11-22 17:00:00 [loader.py:9] Loading weights\rLoading 50%\n")
    assert awaited_log(loaded, _program(loaded, "engine-vllm"), since=0) == " (logs/vllm.log: Loading 50%)"


def test_what_an_earlier_engine_said_is_not_shown(loaded: LoadedSettings):
    (loaded.root / "logs/vllm.log").write_text("yesterday's words\n")
    later = (loaded.root / "logs/vllm.log").stat().st_mtime + 60
    assert awaited_log(loaded, _program(loaded, "engine-vllm"), since=later) == " (logs/vllm.log)"

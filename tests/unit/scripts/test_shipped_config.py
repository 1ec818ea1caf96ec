"""What ships in config/ says the same as the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from scripts.make_demo_model import DEMO_MODEL

from vllm_proxy.common.settings import EngineHostSpec, Settings, load_settings

CONFIG = Path(__file__).resolve().parents[3] / "config"


def test_the_file_says_the_defaults_and_needs_no_correction():
    loaded = load_settings(CONFIG / "config.yaml")
    assert loaded.settings == Settings()
    assert loaded.warnings == ()


def test_every_setting_stands_in_the_file():
    written = yaml.safe_load((CONFIG / "config.yaml").read_text())
    assert _missing(Settings(), written) == []


def test_the_example_of_engine_hosts_shows_every_field():
    before, _, _ = (CONFIG / "config.yaml").read_text().partition("\nengine_hosts: {}")
    comment = before.rpartition("\n\n")[2]
    words = set(re.findall(r"\w+", comment))
    assert words >= EngineHostSpec.model_fields.keys()
    examples = yaml.safe_load("\n".join(line.lstrip("# ") for line in comment.splitlines() if "{engine: " in line))
    for example in examples.values():
        EngineHostSpec.model_validate(example)


def test_the_shipped_sglang_command_is_an_example_only(monkeypatch):
    monkeypatch.chdir(CONFIG.parent)
    settings = Settings()
    assert settings.sglang.command() == ""
    assert list(settings.hosts()) == ["vllm"]


def test_the_shipped_vllm_command_runs_the_demo_model(monkeypatch):
    monkeypatch.chdir(CONFIG.parent)
    words = Settings().vllm.command().split()
    assert words[words.index("--model") + 1] == str(DEMO_MODEL)
    assert words[words.index("--served-model-name") + 1] == DEMO_MODEL.name


def _missing(section: BaseModel, written: Any, prefix: str = "") -> list[str]:
    faults = []
    for name in type(section).model_fields:
        if name not in written:
            faults.append(prefix + name)
        elif isinstance(value := getattr(section, name), BaseModel):
            faults += _missing(value, written[name], f"{prefix}{name}.")
    return faults

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_proxy.common.setting_effects import effect_of, values_of
from vllm_proxy.common.settings import LoadedSettings, Settings


def test_every_setting_stands_somewhere() -> None:
    for path in values_of(LoadedSettings(Settings(), Path("config.yaml"), Path()), "edge"):
        effect_of(path)
    for name in Settings.model_fields:
        effect_of((name,))


def test_the_nearest_entry_counts() -> None:
    assert effect_of(("vllm", "lora", "preload")).at_once == ("engine:vllm",)
    assert effect_of(("vllm", "lora", "max_loras")).restart == ("engine:vllm",)
    with pytest.raises(KeyError):
        effect_of(("vllm_hosts",))

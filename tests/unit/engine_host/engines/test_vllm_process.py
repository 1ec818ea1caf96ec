from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_proxy.common.settings import RuntimeResolver, Vllm, VllmLora
from vllm_proxy.engine_host.engines.engine_owner import OWNER_VARIABLE
from vllm_proxy.engine_host.engines.vllm_process import set_environment


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {"VLLM_PLUGINS": "mine", "VLLM_NO_USAGE_STATS": "0", "PROMETHEUS_MULTIPROC_DIR": "/x"}
    monkeypatch.setattr(os, "environ", environment)
    resolver = RuntimeResolver(cache_dir=tmp_path / "cache")
    set_environment(Vllm(extra_env={"A": "1"}, lora=VllmLora(runtime_resolver=resolver)))
    assert environment["A"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "0"
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment
    assert environment["VLLM_PLUGINS"] == "mine,lora_filesystem_resolver,vllm_proxy"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert Path(environment["VLLM_LORA_RESOLVER_CACHE_DIR"]).is_dir()
    assert environment[OWNER_VARIABLE].startswith(f"{os.getpid()}:")

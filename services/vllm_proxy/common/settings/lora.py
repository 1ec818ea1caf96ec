"""Adapters: how many, from where, and how they come to an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import model_validator

from vllm_proxy.common.settings.fields import PositiveInt, Section


class LoraPreload(Section):
    name: str
    """The name that requests ask for."""
    path: Path
    """The folder with adapter_config.json and adapter_model.safetensors."""
    base_model_name: str | None = None
    """The base model as it is served; null: the one that the engine runs."""


class RuntimeResolver(Section):
    allow_runtime_updates: bool = True
    """Whether adapters may be loaded and unloaded while the engine runs."""
    plugins: list[str] = ["lora_filesystem_resolver"]
    """With lora_filesystem_resolver, an adapter in cache_dir/<name> is loaded at its first request."""
    cache_dir: Path = Path("./lora_cache")
    """The folder that the resolver looks in."""


class Lora(Section):
    """What both engines share."""

    enabled: bool = True
    """Whether adapters can be used at all."""
    max_lora_rank: PositiveInt = 64
    """The largest rank of an adapter."""
    max_loras: PositiveInt = 4
    """Adapters that compute in one batch."""
    preload: list[LoraPreload] = []
    """Loaded at start: name, path, base_model_name."""
    allowed_roots: list[Path] = [Path("./adapters"), Path("/data/lora")]
    """Folders that adapters may be loaded from, besides cache_dir and the preloaded ones."""
    runtime_resolver: RuntimeResolver = RuntimeResolver()


class VllmLora(Lora):
    max_cpu_loras: PositiveInt = 4
    """Adapters that stay in memory; at least max_loras."""
    default_mm_loras: dict[str, str] = {}
    """Modality -> adapter path, for multi-modal models."""
    limit_mm_per_prompt: dict[str, Any] = {}
    """Modality -> items per prompt."""

    @model_validator(mode="before")
    @classmethod
    def _raise_cpu_loras(cls, data: Any) -> Any:
        # The guide's own example has max_cpu_loras 2 below max_loras 4, which vLLM refuses.
        if isinstance(data, dict):
            loras = data.get("max_loras", 4)
            cpu = data.get("max_cpu_loras", loras)
            too_few = isinstance(loras, int) and isinstance(cpu, int) and 0 < cpu < loras
            if too_few or "max_cpu_loras" not in data:
                data = {**data, "max_cpu_loras": loras}
        return data


class SglangLora(Lora):
    target_modules: list[str] = ["all"]
    """The modules that adapters may change, by name; all: every one that the model has."""

"""What adapters must fit, read off the base model's own weight files.

SGLang takes an adapter of wrong shapes in and dies of it at its first request, so they are checked before. Blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_proxy.engine_host.engines.base import AdapterLimits

_SUFFIX = ".weight"


def adapter_limits(model_path: str, server_args: Any, max_rank: int) -> AdapterLimits:
    """Shapes are left out where they cannot be told: weights that are not there as safetensors, or not 2-D."""
    seen: dict[str, set[tuple[int, int]]] = {}
    for path in _weight_files(model_path):
        for name, shape in _shapes(path):
            if name.endswith(_SUFFIX) and len(shape) == 2:
                seen.setdefault(name.removesuffix(_SUFFIX).rpartition(".")[2], set()).add((shape[0], shape[1]))
    targets = set(server_args.lora_target_modules or ())
    modules = set(seen) if not targets or "all" in targets else targets
    return AdapterLimits(
        max_rank=max_rank,
        target_modules=frozenset(modules),
        shapes={name: next(iter(sizes)) for name, sizes in seen.items() if len(sizes) == 1},
    )


def _weight_files(model_path: str) -> list[Path]:
    folder = Path(model_path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model_path, local_files_only=True))
        except (OSError, ValueError):
            return []
    return sorted(folder.glob("*.safetensors"))


def _shapes(path: Path) -> list[tuple[str, list[int]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return [(name, file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return []

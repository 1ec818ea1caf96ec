"""The linear layers of a model, read off its safetensors files without loading them."""

from __future__ import annotations

from pathlib import Path

from vllm_proxy.common.errors import InvalidAdapter
from vllm_proxy.engine_host.lora.checks import read_header

_WEIGHT = ".weight"
#: Only models that are built like Llama: others keep some layers transposed or fused.
_KNOWN_BY = "q_proj"


def linear_layers(folder: Path) -> tuple[frozenset[str], dict[str, tuple[int, int]]]:
    """The suffixes of modules with a matrix of weights, and suffix -> (output size, input size) where all layers agree.

    Both are empty if the folder cannot be read, or holds quantised weights or another kind of model. Blocks."""
    seen: dict[str, set[tuple[int, int]]] = {}
    try:
        if "quantization_config" in (folder / "config.json").read_text(encoding="utf-8"):
            return frozenset(), {}
        for file in sorted(folder.glob("*.safetensors")):
            for name, tensor in read_header(file).items():
                if name.endswith(_WEIGHT) and len(tensor["shape"]) == 2:
                    suffix = name.removesuffix(_WEIGHT).rpartition(".")[2]
                    seen.setdefault(suffix, set()).add((tensor["shape"][0], tensor["shape"][1]))
    except (OSError, ValueError, InvalidAdapter):
        return frozenset(), {}
    if _KNOWN_BY not in seen:
        return frozenset(), {}
    return frozenset(seen), {suffix: next(iter(shapes)) for suffix, shapes in seen.items() if len(shapes) == 1}

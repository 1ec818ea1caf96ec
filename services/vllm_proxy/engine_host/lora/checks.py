"""What an adapter must be before an engine sees it: its name, where it lies, its files, its shapes.

Reads files and blocks; needs neither torch nor the engine. The rules for `adapter_config.json` are vLLM's own
(`vllm/lora/peft_helper.py`, 0.32), checked here because the engine answers them with a server error.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vllm_proxy.common.errors import InvalidAdapter
from vllm_proxy.engine_host.engines.base import AdapterLimits

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILES = ("adapter_model.bin", "adapter_model.pt")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_CHUNK_BYTES = 1024 * 1024
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
#: PEFT features that change what an adapter means and that the engines do not compute.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
#: Initialisations that leave the base weights alone.
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
#: Heads of classification models, which vLLM takes whole.
_HEADS = frozenset({"classifier", "score"})


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter that passed. `digest` is the SHA-256 of its two files, in hex."""

    path: Path
    digest: str
    rank: int


def check_name(name: str) -> None:
    """An adapter's name is one harmless path component. Raises InvalidAdapter."""
    if not _NAME.fullmatch(name):
        raise InvalidAdapter(
            f"{name[:140]!r} is no adapter name: letters, digits and ._- only, at most 128, beginning with a letter "
            "or digit."
        )


def confine(path: Path, roots: Sequence[Path]) -> Path:
    """The real folder behind `path`. Raises InvalidAdapter unless it exists and lies under one of `roots`.

    A path that lies elsewhere and one that does not exist are told apart only under a root, so that nobody can ask
    what is on the disk.
    """
    if ".." in path.parts:
        raise InvalidAdapter(f"The adapter path {path} may not contain '..'.")
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a NUL
        raise InvalidAdapter("The adapter path cannot be resolved.") from None
    if not _under(real, roots):
        raise InvalidAdapter(f"The adapter path {path} does not lie under an allowed root (lora.allowed_roots).")
    if not real.is_dir():
        raise InvalidAdapter(f"The adapter path {path} is not a folder.")
    return real


def _under(real: Path, roots: Sequence[Path]) -> bool:
    return any(real.is_relative_to(root.resolve()) for root in roots)


def check_adapter(folder: Path, limits: AdapterLimits, roots: Sequence[Path]) -> CheckedAdapter:
    """Checks an adapter's files against the engine's limits. `folder` comes from `confine`. Raises InvalidAdapter."""
    try:
        config_path = _file(folder, CONFIG_FILE, roots)
        config = _read_config(config_path)
        rank = _check_config(config, limits)
        weights_path = _file(folder, WEIGHTS_FILE, roots)
        _check_weights(read_header(weights_path), limits, rank)
        return CheckedAdapter(folder, _digest(config_path, weights_path), rank)
    except OSError as e:
        raise InvalidAdapter(f"The adapter cannot be read: {e.strerror}.") from None


def _file(folder: Path, name: str, roots: Sequence[Path]) -> Path:
    path = folder / name
    real = path.resolve()
    if not real.is_file():
        if name == WEIGHTS_FILE and any((folder / other).exists() for other in PICKLED_FILES):
            raise InvalidAdapter("The adapter's weights are pickled (.bin or .pt); only safetensors are loaded.")
        raise InvalidAdapter(f"The adapter has no {name}.")
    if not _under(real, roots):
        raise InvalidAdapter(f"The adapter's {name} links to a place outside the allowed roots.")
    return real


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"The adapter's {CONFIG_FILE} is too large.")
    try:
        config = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as e:
        raise InvalidAdapter(f"The adapter's {CONFIG_FILE} is not valid JSON: {e}.") from None
    if not isinstance(config, dict):
        raise InvalidAdapter(f"The adapter's {CONFIG_FILE} is not a JSON object.")
    return config


def _check_config(config: dict[str, Any], limits: AdapterLimits) -> int:
    """Returns the largest rank that the configuration names."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InvalidAdapter(f"The adapter's peft_type is {kind!r}, not 'LORA'.")
    patterns = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    if not all(type(r) is int and r > 0 for r in ranks):
        raise InvalidAdapter("The adapter's rank `r` (or one in rank_pattern) is not a positive integer.")
    rank: int = max(ranks)
    if rank > limits.max_rank:
        raise InvalidAdapter(f"The adapter's rank {rank} is above the maximum, {limits.max_rank} (max_lora_rank).")
    alpha = config.get("lora_alpha")
    if type(alpha) not in (int, float):
        raise InvalidAdapter("The adapter's lora_alpha is not a number.")
    if not isinstance(config.get("target_modules"), (list, str)):
        raise InvalidAdapter("The adapter's target_modules is neither a list nor a string.")
    if config.get("bias", "none") != "none":
        raise InvalidAdapter("The adapter has biases, which the engine does not support.")
    for feature in _UNSUPPORTED:
        if config.get(feature):
            raise InvalidAdapter(f"The adapter uses {feature}, which the engine does not support.")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise InvalidAdapter(f"The adapter's init_lora_weights {init!r} changes the base weights: convert it first.")
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not set(map(str, saved)) <= _HEADS:
        raise InvalidAdapter("The adapter replaces whole modules (modules_to_save), which the engine does not support.")
    return rank


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, offsets checked against the file's size.

    Format: https://github.com/huggingface/safetensors#format
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is not a safetensors file.")
        try:
            header = orjson.loads(file.read(length))
        except orjson.JSONDecodeError:
            raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is not a safetensors file.") from None
    if not isinstance(header, dict):
        raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is not a safetensors file.")
    header.pop("__metadata__", None)
    end = 0
    for begin, stop in sorted(_offsets(tensor) for tensor in header.values()):
        if begin != end:
            raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is corrupt.")
        end = stop
    if end != size - 8 - length:
        raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is truncated or corrupt.")
    return header


def _offsets(tensor: Any) -> tuple[int, int]:
    try:
        begin, end = tensor["data_offsets"]
        shape, dtype = tensor["shape"], tensor["dtype"]
        elements = 1
        for extent in shape:
            elements *= extent
        whole = all(type(n) is int and n >= 0 for n in (begin, end, *shape))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is corrupt.")
    if dtype not in _DTYPE_BYTES:
        raise InvalidAdapter(f"The adapter's weights are {str(dtype)[:20]}, not floating point.")
    if end - begin != elements * _DTYPE_BYTES[dtype]:
        raise InvalidAdapter(f"The adapter's {WEIGHTS_FILE} is corrupt.")
    return begin, end


def _check_weights(header: dict[str, Any], limits: AdapterLimits, rank: int) -> None:
    if not header:
        raise InvalidAdapter("The adapter has no weights.")
    modules: dict[str, dict[str, Sequence[int]]] = {}
    for key, tensor in header.items():
        module, half = _split_key(key)
        if half:
            modules.setdefault(module, {})[half] = tensor["shape"]
    for module, halves in modules.items():
        suffix = module.rpartition(".")[2]
        expert = module.partition(".experts")[1]
        if limits.target_modules and not expert and suffix not in limits.target_modules:
            known = ", ".join(sorted(limits.target_modules))
            raise InvalidAdapter(f"The base model has no module {suffix} that takes an adapter (it has {known}).")
        if set(halves) != {"A", "B"}:
            raise InvalidAdapter(f"The adapter has only one half of {module}.")
        if len(halves["A"]) == len(halves["B"]) == 2 and not expert:
            _check_shapes(module, halves["A"], halves["B"], limits.shapes.get(suffix), rank)


def _check_shapes(module: str, a: Sequence[int], b: Sequence[int], size: tuple[int, int] | None, max_rank: int) -> None:
    if a[0] != b[1]:
        raise InvalidAdapter(f"The two halves of {module} do not fit each other: {list(a)} and {list(b)}.")
    if a[0] > max_rank:
        raise InvalidAdapter(f"The weights of {module} have rank {a[0]}, above the {max_rank} of {CONFIG_FILE}.")
    if size is not None and (b[0], a[1]) != size:
        raise InvalidAdapter(
            f"The weights of {module} are for another base model: {b[0]}x{a[1]} where this one has {size[0]}x{size[1]}."
        )


def _split_key(key: str) -> tuple[str, str]:
    """`base_model.model.….q_proj.lora_A.weight` -> (`base_model.model.….q_proj`, `A`). A head's half is empty."""
    for half in ("A", "B"):
        for ending in (f".lora_{half}.weight", f".lora_embedding_{half}"):
            if key.endswith(ending):
                return key.removesuffix(ending), half
    parts = key.split(".")
    if len(parts) >= 2 and parts[-2] in _HEADS:
        return key, ""
    raise InvalidAdapter(f"The adapter has a tensor that is no LoRA weight: {key[:200]}.")


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(struct.pack("<Q", path.stat().st_size))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()

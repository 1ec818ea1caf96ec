from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.adapter_files import write_adapter

from vllm_proxy.common.errors import InvalidAdapter
from vllm_proxy.engine_host.engines.base import AdapterLimits
from vllm_proxy.engine_host.lora.checks import CONFIG_FILE, WEIGHTS_FILE, check_adapter, check_name, confine

LIMITS = AdapterLimits(max_rank=8, target_modules=frozenset({"q_proj", "v_proj"}), shapes={"q_proj": (8, 8)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "root/adapter")


def check(folder: Path, limits: AdapterLimits = LIMITS) -> str:
    return check_adapter(folder, limits, [folder.parent]).digest


def configure(folder: Path, **values: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_good_adapter_has_a_digest_of_its_content(folder: Path, tmp_path: Path) -> None:
    digest = check(folder)
    assert len(digest) == 64
    assert check(write_adapter(tmp_path / "root/same")) == digest
    assert check(write_adapter(tmp_path / "root/other", fill=1.0)) != digest
    configure(folder, lora_alpha=3)
    assert check(folder) != digest


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": 9}, "above the maximum"),
        ({"r": 0}, "positive integer"),
        ({"r": True}, "positive integer"),
        ({"r": "8"}, "positive integer"),
        ({"rank_pattern": {"q_proj": 16}}, "above the maximum"),
        ({"rank_pattern": 3.5}, "positive integer"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"target_modules": None}, "target_modules"),
        ({"bias": "all"}, "biases"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_the_engine_cannot_compute_is_refused(folder: Path, values: dict[str, Any], reason: str) -> None:
    configure(folder, **values)
    with pytest.raises(InvalidAdapter, match=reason):
        check(folder)


def test_plain_options_of_peft_pass(folder: Path) -> None:
    configure(folder, use_rslora=True, init_lora_weights="gaussian", rank_pattern={}, modules_to_save=None)
    check(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_configuration_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidAdapter, match="JSON"):
        check(folder)


def test_missing_files(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match="only safetensors"):
        check(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(InvalidAdapter, match="no adapter_model"):
        check(folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(InvalidAdapter, match="no adapter_config"):
        check(folder)


def test_foreign_modules_and_shapes(folder: Path) -> None:
    with pytest.raises(InvalidAdapter, match="no module q_proj"):
        check(folder, AdapterLimits(max_rank=8, target_modules=frozenset({"k_proj"})))
    with pytest.raises(InvalidAdapter, match="another base model: 8x8 where this one has 16x8"):
        check(folder, AdapterLimits(max_rank=8, shapes={"q_proj": (16, 8)}))
    # An engine that does not tell is not guessed at.
    check(folder, AdapterLimits(max_rank=8))


def test_weights_of_a_higher_rank_than_the_configuration_says(folder: Path) -> None:
    configure(folder, r=1)
    with pytest.raises(InvalidAdapter, match="rank 2, above the 1"):
        check(folder)


def weights(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape: list[int], begin: int, dtype: str = "F32", **more: Any) -> dict[str, Any]:
    size = shape[0] * shape[1] * 4
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size], **more}


A, B = "base_model.model.l.0.q_proj.lora_A.weight", "base_model.model.l.0.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a safetensors"),
        (b"PK\x03\x04" * 10, "not a safetensors"),
        (struct.pack("<Q", 2**60) + b"{}", "not a safetensors"),
        (weights([]), "not a safetensors"),
        (weights({}), "no weights"),
        (weights({A: tensor([2, 8], 0)}, bytes(64)), "only one half"),
        (weights({A: tensor([2, 8], 0), B: tensor([8, 2], 64)}, bytes(120)), "truncated"),
        (weights({A: tensor([2, 8], 0), B: tensor([8, 2], 32)}, bytes(96)), "corrupt"),
        (weights({A: tensor([2, 8], 0), B: tensor([8, 1], 64)}, bytes(96)), "do not fit each other"),
        (weights({A: tensor([2, 8], 0, dtype="I32")}, bytes(64)), "not floating point"),
        (weights({A: tensor([2, 8], 0, data_offsets="x")}, bytes(64)), "corrupt"),
        (weights({A: 3}), "corrupt"),
        (weights({"q_proj.weight": tensor([2, 8], 0)}, bytes(64)), "no LoRA weight"),
    ],
)
def test_weights_that_are_none(folder: Path, content: bytes, reason: str) -> None:
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InvalidAdapter, match=reason):
        check(folder)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 500))
def test_a_damaged_file_is_refused_or_whole_but_never_a_fault(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    folder = write_adapter(tmp_path_factory.mktemp("noise") / "adapter")
    path = folder / WEIGHTS_FILE
    content = path.read_bytes()
    path.write_bytes(content[:at] + noise + content[at + len(noise) :])
    with contextlib.suppress(InvalidAdapter):
        check(folder)


@pytest.mark.parametrize("name", ["a", "A-b_c.1", "x" * 128, "0"])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".a", "-a", "x" * 129, "a b", "ä", "a\n", "a\0", "a\\b"]
)
def test_names_that_are_more_than_one_component(name: str) -> None:
    with pytest.raises(InvalidAdapter):
        check_name(name)


def test_places(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert confine(folder, [root]) == folder
    (root / "link").symlink_to(folder)
    assert confine(root / "link", [root]) == folder
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    outside = write_adapter(tmp_path / "outside")
    (root / "escape").symlink_to(outside)
    for path in (outside, root / "escape", root / "out/outside", root / "x/../adapter", root / "none", root / "loop"):
        with pytest.raises(InvalidAdapter):
            confine(path, [root])
    with pytest.raises(InvalidAdapter):
        confine(Path("a\0b"), [root])
    with pytest.raises(InvalidAdapter):
        confine(tmp_path / "root-2", [root])


def test_a_file_that_links_out(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    (folder / CONFIG_FILE).rename(secret)
    (folder / CONFIG_FILE).symlink_to(secret)
    with pytest.raises(InvalidAdapter, match="outside the allowed roots"):
        check(folder)

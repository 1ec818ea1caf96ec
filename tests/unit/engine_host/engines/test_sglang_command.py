from __future__ import annotations

import pytest

from vllm_proxy.common.settings import ConfigError, SglangLora
from vllm_proxy.engine_host.engines.sglang_command import adapter_of, lora_arguments, read_command


@pytest.mark.parametrize(
    "text",
    [
        "sglang serve M --dtype bfloat16",
        "/opt/x/bin/sglang serve M --dtype bfloat16",
        "python -m sglang.cli.main serve M --dtype bfloat16",
        "conda run -n sglang --no-capture-output sglang serve M --dtype bfloat16",
        "env HF_HUB_OFFLINE=1 python3 -m sglang.launch_server M --dtype bfloat16 --host 0.0.0.0 --port=80",
    ],
)
def test_spellings_of_one_command(text: str) -> None:
    assert read_command(text).arguments == ("M", "--dtype", "bfloat16")


def test_what_the_host_decides_is_dropped_and_said() -> None:
    command = read_command("A=1 sglang serve M --host 0.0.0.0 --grpc-mode --api-key k")
    assert command.environment == {"A": "1"}
    assert command.arguments == ("M", "--api-key", "k")
    assert [warning.split(" ")[1] for warning in command.warnings] == ["--host", "--grpc-mode"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vllm serve M", "neither `sglang serve …` nor `python -m sglang.launch_server …`"),
        ("sglang generate M", "`sglang generate` is not `sglang serve`"),
        ("python -m vllm.entrypoints.openai.api_server", "is not a server of sglang"),
        ("sglang serve 'M", "No closing quotation"),
    ],
)
def test_another_command_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"sglang\.start_cmd: .*{said.replace('.', '[.]')}"):
        read_command(text)


def test_the_lora_section_fills_in_what_the_command_leaves_open() -> None:
    added, warnings = lora_arguments(read_command("sglang serve M"), SglangLora(max_loras=2))
    # The base model takes one of a batch's slots.
    assert added == [
        *("--enable-lora", "--max-lora-rank", "64"),
        *("--max-loras-per-batch", "3", "--lora-target-modules", "all"),
    ]
    assert warnings == []
    command = read_command("sglang serve M --max_lora_rank=8 --lora-target-modules q_proj v_proj --enable-lora")
    added, warnings = lora_arguments(command, SglangLora())
    assert added == ["--max-loras-per-batch", "5"]
    assert warnings == [
        "sglang.start_cmd: --max-lora-rank 8 wins over sglang.lora (64)",
        "sglang.start_cmd: --lora-target-modules q_proj wins over sglang.lora (all)",
    ]
    assert lora_arguments(command, SglangLora(enabled=False)) == ([], [])


@pytest.mark.parametrize(
    ("model", "adapter"),
    [("m", None), ("default", None), ("pirate", "pirate"), ("m:pirate", "pirate"), ("x:pirate", "x:pirate")],
)
def test_the_adapter_that_a_model_names(model: str, adapter: str | None) -> None:
    assert adapter_of(model, "m") == adapter

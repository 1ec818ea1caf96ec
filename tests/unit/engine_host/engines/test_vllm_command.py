from __future__ import annotations

import pytest

from vllm_proxy.common.settings import ConfigError, Vllm, VllmLora
from vllm_proxy.engine_host.engines.vllm_command import engine_rank, lora_arguments, read_command


@pytest.mark.parametrize(
    "text",
    [
        "vllm serve M --dtype bfloat16",
        "/opt/x/bin/vllm serve M --dtype bfloat16",
        "python -m vllm.entrypoints.cli.main serve M --dtype bfloat16",
        "conda run -n vllm --no-capture-output vllm serve M --dtype bfloat16",
        "nohup vllm serve M --dtype bfloat16 --disable-log-requests",
        "vllm serve M --host 0.0.0.0 --port=80 --dtype bfloat16",
    ],
)
def test_spellings_of_one_command(text: str) -> None:
    assert read_command(text).arguments == ("M", "--dtype", "bfloat16")


def test_the_guides_spelling_over_several_lines() -> None:
    vllm = Vllm(
        start_cmd="# my model\npython -m vllm.entrypoints.openai.api_server \\\n  --model M \\\n  --max-num-seqs 4"
    )
    assert read_command(vllm.command()).arguments == ("--model", "M", "--max-num-seqs", "4")


def test_environment_before_the_command() -> None:
    command = read_command("env VLLM_X=1 Y='a b' python3.11 -u -m vllm.entrypoints.openai.api_server --model M")
    assert command.environment == {"VLLM_X": "1", "Y": "a b"}
    # A value with = in it is no assignment.
    assert read_command("vllm serve M --hf-overrides A=B").environment == {}


@pytest.mark.parametrize("text", ["", "vllm bench", "vllm", "python x.py", "python -m http.server", "vllm serve 'M"])
def test_something_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"vllm\.start_cmd"):
        read_command(text)


def test_dropped_flags_are_told() -> None:
    command = read_command("vllm serve M --disable-log-requests --port 9")
    assert [w.split()[1] for w in command.warnings] == ["--disable-log-requests", "--port"]


def test_the_lora_section_fills_in_what_the_command_leaves_open() -> None:
    added, warnings = lora_arguments(
        read_command("vllm serve M"), VllmLora(max_lora_rank=48, default_mm_loras={"image": "/p"})
    )
    assert added == [
        *("--enable-lora", "--max-lora-rank", "64", "--max-loras", "4", "--max-cpu-loras", "4"),
        *("--default-mm-loras", '{"image": "/p"}'),
    ]
    assert warnings == []
    assert lora_arguments(read_command("vllm serve M"), VllmLora(enabled=False)) == ([], [])


def test_a_flag_in_the_command_wins_and_is_told() -> None:
    added, warnings = lora_arguments(
        read_command("vllm serve M --max_loras=8 --enable-lora --max-lora-rank 64"), VllmLora()
    )
    assert added == ["--max-cpu-loras", "8"]
    assert len(warnings) == 1
    assert "--max-loras 8 wins" in warnings[0]
    _, warnings = lora_arguments(
        read_command("vllm serve M --no-enable-lora --limit-mm-per-prompt.image 2"), VllmLora()
    )
    assert any("--enable-lora off wins" in w for w in warnings)


def test_ranks_are_raised_to_one_that_vllm_has() -> None:
    assert [engine_rank(r) for r in (1, 2, 8, 9, 64, 200, 999)] == [1, 8, 8, 16, 64, 256, 999]

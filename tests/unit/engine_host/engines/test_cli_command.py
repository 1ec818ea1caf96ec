"""What is run for a start command, wrappers and all."""

from __future__ import annotations

import shlex

import pytest

from vllm_proxy.common.settings import ConfigError, Sglang, Tracing, Vllm
from vllm_proxy.engine_host.engines.cli_command import CliCommand, read_command
from vllm_proxy.engine_host.engines.http_dialects import SGLANG, VLLM

NO_TRACING = Tracing()
PLAIN = Vllm.model_validate({"lora": {"enabled": False}})


def read(text: str, section: Vllm = PLAIN, port: int = 8002, tracing: Tracing = NO_TRACING) -> CliCommand:
    return read_command(text, VLLM, "localhost", port, section, tracing)


def test_host_and_port_come_from_the_settings() -> None:
    command = read("python -m vllm.entrypoints.openai.api_server --model m")
    assert shlex.join(command.words).endswith("--model m --host localhost --port 8002")
    assert (command.host, command.port, command.warnings) == ("localhost", 8002, ())


def test_a_port_of_the_command_wins_and_is_said() -> None:
    command = read("vllm serve m --port=9000 --host 0.0.0.0")
    assert command.words == ("vllm", "serve", "m", "--port=9000", "--host", "0.0.0.0")
    assert (command.host, command.port) == ("127.0.0.1", 9000)
    [said] = command.warnings
    assert "9000" in said and "8002" in said


@pytest.mark.parametrize(
    "text",
    ["conda run -n engine python -m vllm.x --model m", "env A=1 nohup vllm serve m", "/opt/e/bin/vllm serve m"],
)
def test_wrappers_stay(text: str) -> None:
    words = read(text).words
    assert words[: len(shlex.split(text))] == tuple(shlex.split(text))


def test_assignments_become_environment() -> None:
    command = read("A=1 B='x y' vllm serve m")
    assert (command.environment, command.words[0]) == ({"A": "1", "B": "x y"}, "vllm")


@pytest.mark.parametrize("shell", ["bash -lc", "sh -c", "/bin/bash -c", "bash -e -c"])
def test_flags_go_into_a_shells_script(shell: str) -> None:
    command = read(f"{shell} 'source e/bin/activate && exec vllm serve m --disable-log-requests > x.log 2>&1'")
    script = command.words[-1]
    assert script.startswith("source e/bin/activate && exec vllm serve m ")
    assert script.endswith("> x.log 2>&1 --host localhost --port 8002")
    assert "--disable-log-requests" not in script
    assert any("--disable-log-requests" in said for said in command.warnings)


@pytest.mark.parametrize("end", ["| tee vllm.log", "&", "; echo done"])
def test_a_script_that_goes_on_is_left_alone_and_said(end: str) -> None:
    text = f"vllm serve m --port 9 {end}"
    command = read(f"bash -c '{text}'")
    assert (command.words[-1], command.port) == (text, 9)
    assert any("nothing can be added" in said for said in command.warnings)
    assert read(f"bash -c 'vllm serve m --x {end}'").port == VLLM.default_port


def test_adapters_flags_are_added_unless_the_command_says_otherwise() -> None:
    section = Vllm.model_validate({"lora": {"max_lora_rank": 20, "limit_mm_per_prompt": {"image": 2}}})
    command = read("vllm serve m --max-loras 9", section)
    text = shlex.join(command.words)
    assert "--enable-lora --max-lora-rank 32 --max-cpu-loras 9" in text and "--max-loras 4" not in text
    assert "--limit-mm-per-prompt '{\"image\": 2}'" in text
    assert command.max_lora_rank == 32
    assert any("--max-loras 9 wins" in said for said in command.warnings)


def test_another_engines_flags() -> None:
    command = read_command(
        "python -m sglang.launch_server --model-path m", SGLANG, "localhost", 8003, Sglang(), NO_TRACING
    )
    text = shlex.join(command.words)
    assert "--enable-lora" in text and "--lora-target-modules all" in text and text.endswith("--port 8003")


def test_the_key_is_known() -> None:
    assert read("vllm serve m --api-key sk-1").api_key == "sk-1"
    assert read("bash -c 'vllm serve m --api-key=sk-2'").api_key == "sk-2"
    assert read("vllm serve m").api_key is None


@pytest.mark.parametrize("text", ["vllm serve 'm", "", "A=1"])
def test_what_cannot_be_run(text: str) -> None:
    with pytest.raises(ConfigError, match=r"vllm\.start_cmd"):
        read(text)


TRACED = Tracing.model_validate({"endpoint": "http://c:4317", "service_prefix": "gw"})


def test_an_engine_is_told_where_spans_go() -> None:
    command = read("vllm serve M", tracing=TRACED)
    assert "--otlp-traces-endpoint http://c:4317" in shlex.join(command.words)
    assert command.environment == {"OTEL_SERVICE_NAME": "gw-vllm", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}
    sglang = read_command("sglang serve M", SGLANG, "localhost", 8003, Sglang(), TRACED)
    assert "--enable-trace --otlp-traces-endpoint http://c:4317" in shlex.join(sglang.words)


def test_what_the_command_says_of_tracing_wins() -> None:
    command = read("OTEL_SERVICE_NAME=mine vllm serve M --otlp-traces-endpoint http://d:1", tracing=TRACED)
    assert command.words.count("--otlp-traces-endpoint") == 1 and "http://c:4317" not in command.words
    assert command.environment["OTEL_SERVICE_NAME"] == "mine"


def test_engines_can_be_left_out_of_tracing() -> None:
    command = read("vllm serve M", tracing=TRACED.model_copy(update={"engines": False}))
    assert "--otlp-traces-endpoint" not in command.words and command.environment == {}

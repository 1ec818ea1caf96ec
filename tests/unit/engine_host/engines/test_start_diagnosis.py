from __future__ import annotations

import pytest

from vllm_proxy.engine_host.engines.start_diagnosis import diagnose


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        (-9, [], "killed by signal 9"),
        (137, [], "killed by signal 9"),
        (-15, [], "signal 15 (SIGTERM)"),
        (127, ["bash: vllm: command not found"], "command was not found"),
        (2, ["api_server.py: error: unrecognized arguments: --frob"], "a flag of the start command"),
        (1, ["OSError: [Errno 98] Address already in use"], "a port is in use"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory."], "memory is too small"),
        (1, ["OSError: You are trying to access a gated repo."], "set HF_TOKEN"),
        (1, ["huggingface_hub.errors.LocalEntryNotFoundError: offline"], "no such model"),
        (None, [], "it is gone"),
    ],
)
def test_the_usual_deaths(status: int | None, lines: list[str], said: str) -> None:
    assert said in diagnose(status, lines)


def test_the_last_error_lines_are_quoted_once_each() -> None:
    lines = ["ValueError: 1", "INFO", *2 * ["ValueError: 2"], "Exception: 3", "KeyError: 4"]
    assert diagnose(1, lines).endswith(" | ValueError: 2 | Exception: 3 | KeyError: 4")


def test_without_an_error_the_last_line_is_quoted() -> None:
    assert diagnose(1, ["INFO a", "INFO b"]) == "exit status 1 | INFO b"

"""From a start command as people write it to vLLM's own parsed arguments.

The command's flags are vLLM's business: its own parser reads them, so every flag of the installed version works.
The `lora` section fills in what the command leaves open; an explicit flag wins.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vllm_proxy.common.settings import ConfigError, VllmLora
from vllm_proxy.engine_host.engines import start_command
from vllm_proxy.engine_host.engines.start_command import StartCommand, given, missing_flags

log = logging.getLogger(__name__)

DIALECT = start_command.Dialect(
    section="vllm",
    modules=("vllm.entrypoints.openai.api_server", "vllm.entrypoints.launchers.api_server.entry"),
    command_modules=("vllm.entrypoints.cli.main",),
    host_flags={
        "--host": True,
        "--port": True,
        "--uds": True,
        "--api-server-count": True,
        "-asc": True,
        "--headless": False,
        "--grpc": False,
        "--worker-extension-cls": True,
    },
    removed_flags=frozenset({"--disable-log-requests"}),
)
WORKER_EXTENSION = "vllm_proxy.engine_host.engines.vllm_worker.WorkerExtension"


def read_command(text: str) -> StartCommand:
    """Raises ConfigError if it does not start vLLM's server."""
    return start_command.read(text, DIALECT)


def lora_arguments(command: StartCommand, lora: VllmLora) -> tuple[list[str], list[str]]:
    """The flags that the `lora` section adds to the command, and what it wanted but the command says otherwise."""
    if not lora.enabled:
        return [], []
    return missing_flags(command.arguments, lora_flags(lora, command.arguments), "vllm")


def lora_flags(lora: VllmLora, arguments: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The flags, each with the words that follow it, for a command that has these arguments."""
    loras = given(arguments, "--max-loras") or ""
    flags: dict[str, Sequence[str]] = {
        "--enable-lora": (),
        "--max-lora-rank": (str(engine_rank(lora.max_lora_rank)),),
        "--max-loras": (str(lora.max_loras),),
        # vLLM refuses fewer in memory than in a batch.
        "--max-cpu-loras": (str(max(lora.max_cpu_loras, int(loras) if loras.isdigit() else 0)),),
    }
    if lora.default_mm_loras:
        flags["--default-mm-loras"] = (json.dumps(lora.default_mm_loras),)
    if lora.limit_mm_per_prompt:
        flags["--limit-mm-per-prompt"] = (json.dumps(lora.limit_mm_per_prompt),)
    return flags


#: The ranks that vLLM lays LoRA memory out for (`MaxLoRARanks` in vllm/config/lora.py, 0.32).
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_rank(rank: int) -> int:
    """The smallest rank vLLM accepts as `--max-lora-rank` that holds `rank`; the registry enforces `rank` itself."""
    return next((r for r in _RANKS if r >= rank), rank)


def parse_arguments(command: StartCommand, lora: VllmLora) -> Namespace:
    """vLLM's own arguments. Imports vLLM. Raises ConfigError with one line that names the flag."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"vllm.start_cmd: {' '.join(message.split())}")

        def print_help(self, file: Any = None) -> NoReturn:
            raise ConfigError("vllm.start_cmd: --help starts nothing")

    added, warnings = lora_arguments(command, lora)
    for warning in (*command.warnings, *warnings):
        log.warning("start command", extra={"detail": warning})
    # The subcommand makes a leading model a positional argument for vLLM's --config handling too.
    arguments = [*command.arguments, *added, "--worker-extension-cls", WORKER_EXTENSION]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    try:
        parsed = make_arg_parser(Parser(prog="vllm", allow_abbrev=False)).parse_args(arguments)
        validate_parsed_serve_args(parsed)
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as e:
        raise ConfigError(f"vllm.start_cmd: {' '.join(str(e).split())}") from None
    return _finish(parsed)


def _finish(parsed: Namespace) -> Namespace:
    if parsed.model_tag:
        parsed.model = parsed.model_tag
    # The launcher of `vllm serve` sets these; in-process there is one front end, ours.
    parsed.api_server_count = 1
    values: dict[str, Any] = vars(parsed)
    values.setdefault("uds", None)
    return parsed

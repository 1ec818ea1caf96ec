"""From a start command as people write it to SGLang's own parsed arguments.

The command's flags are SGLang's business: its own parser reads them, so every flag of the installed version works.
The `lora` section fills in what the command leaves open; an explicit flag wins. Written against SGLang 0.5.23.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vllm_proxy.common.settings import ConfigError, SglangLora
from vllm_proxy.engine_host.engines import start_command
from vllm_proxy.engine_host.engines.start_command import StartCommand, missing_flags

log = logging.getLogger(__name__)

DIALECT = start_command.Dialect(
    section="sglang",
    modules=("sglang.launch_server",),
    command_modules=("sglang.cli.main",),
    host_flags={
        "--host": True,
        "--port": True,
        "--grpc-port": True,
        "--tokenizer-worker-num": True,
        "--model-type": True,
        "--enable-http2": False,
        "--grpc-mode": False,
        "--smg-grpc-mode": False,
    },
)

#: What SGLang takes for a missing `model`.
_DEFAULT_MODEL = "default"

#: Each with the value that the host can serve: it runs one engine, whole, on this machine.
_ONLY = {"node_rank": 0, "dp_size": 1, "encoder_only": False, "use_ray": False, "skip_tokenizer_init": False}


def read_command(text: str) -> StartCommand:
    """Raises ConfigError if it does not start SGLang's server."""
    return start_command.read(text, DIALECT)


def lora_arguments(command: StartCommand, lora: SglangLora) -> tuple[list[str], list[str]]:
    """The flags that the `lora` section adds to the command, and what it wanted but the command says otherwise."""
    return missing_flags(command.arguments, lora_flags(lora), "sglang") if lora.enabled else ([], [])


def lora_flags(lora: SglangLora) -> Mapping[str, Sequence[str]]:
    """The flags, each with the words that follow it."""
    return {
        "--enable-lora": (),
        "--max-lora-rank": (str(lora.max_lora_rank),),
        # The base model takes a slot of a batch as if it were an adapter.
        "--max-loras-per-batch": (str(lora.max_loras + 1),),
        "--lora-target-modules": tuple(lora.target_modules),
    }


def parse_arguments(command: StartCommand, lora: SglangLora) -> Any:
    """SGLang's own ServerArgs. Imports SGLang. Raises ConfigError with one line that names the flag."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    added, warnings = lora_arguments(command, lora)
    for warning in (*command.warnings, *warnings):
        log.warning("start command", extra={"detail": warning})
    arguments = [*command.arguments, *added]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model-path", *arguments]
    parser = _Parser(prog="sglang serve", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    try:
        if "--config" in arguments:
            arguments = ConfigArgumentMerger(parser).merge_config_with_args(arguments)
        parsed = parser.parse_args(arguments)
        # As SGLang's own `prepare_server_args`, which would also take over the process's logging.
        parsed._radix_eviction_policy_explicitly_set = command.has("--radix-eviction-policy")
        server_args = ServerArgs.from_cli_args(parsed)
    except (ValueError, TypeError, AssertionError, OSError) as e:
        raise ConfigError(f"sglang.start_cmd: {' '.join(str(e).split())}") from None
    _check(server_args)
    return server_args


def _check(server_args: Any) -> None:
    for name, only in _ONLY.items():
        if getattr(server_args, name, only) not in (only, None):
            raise ConfigError(f"sglang.start_cmd: --{name.replace('_', '-')} cannot be served by an engine host")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"sglang.start_cmd: {' '.join(message.split())}")

    def print_help(self, file: Any = None) -> NoReturn:
        raise ConfigError("sglang.start_cmd: --help starts nothing")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise ConfigError(f"sglang.start_cmd: starts nothing {message or ''}".strip())


def api_keys(server_args: Any) -> Sequence[str]:
    """What the start command's `--api-key` says."""
    return (server_args.api_key,) if server_args.api_key else ()


def adapter_of(model: str, base: str) -> str | None:
    """The adapter that `model` names, by its name or as SGLang's `base:adapter`; None for the base model."""
    if model in (base, _DEFAULT_MODEL):
        return None
    return model.removeprefix(f"{base}:") or None

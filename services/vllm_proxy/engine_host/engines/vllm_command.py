"""From a start command as people write it to vLLM's own parsed arguments.

The command's flags are vLLM's business: its own parser reads them, so every flag of the installed version works.
The `lora` section fills in what the command leaves open; an explicit flag wins.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from vllm_proxy.common.settings import ConfigError, VllmLora

log = logging.getLogger(__name__)

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.launchers.api_server.entry")
_MODULE_MAIN = "vllm.entrypoints.cli.main"

#: Flags of older versions that vLLM no longer knows, none of which takes a value. Dropped with a warning.
REMOVED_FLAGS = frozenset({"--disable-log-requests"})
#: Flags that the host decides: the engine is served through it, on vllm_host:vllm_port. Name -> takes a value.
HOST_FLAGS = {
    "--host": True,
    "--port": True,
    "--uds": True,
    "--api-server-count": True,
    "-asc": True,
    "--headless": False,
    "--grpc": False,
    "--worker-extension-cls": True,
}
WORKER_EXTENSION = "vllm_proxy.engine_host.engines.vllm_worker.WorkerExtension"


@dataclass(frozen=True, slots=True)
class StartCommand:
    """A start command taken apart."""

    #: Assignments before the command, e.g. `VLLM_X=1 vllm serve`.
    environment: dict[str, str]
    #: What follows `vllm serve` or the module; a model may come first.
    arguments: tuple[str, ...]
    #: Things that were dropped or overridden.
    warnings: tuple[str, ...] = ()

    def has(self, flag: str) -> bool:
        """Whether the command names a flag, in any spelling: `--max_loras`, `--max-loras=4`, `--x.y 1`, `--no-x`."""
        return any(_flag(word) in (flag, "--no-" + flag.removeprefix("--")) for word in self.arguments)


def read_command(text: str) -> StartCommand:
    """Takes `python -m vllm…`, `vllm serve …`, both behind `conda run …` or `NAME=value`, apart.

    Raises ConfigError if it starts something else.
    """
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"vllm.start_cmd: {e}") from None
    environment: dict[str, str] = {}
    for i, word in enumerate(words):
        if i == _program_index(words):
            break
        if _ASSIGNMENT.match(word):
            name, _, value = word.partition("=")
            environment[name] = value
    return StartCommand(environment, *_clean(words[_arguments_index(words) :]))


def _program_index(words: Sequence[str]) -> int:
    """Where the command's own program is: behind wrappers like `conda run -n x`, `env`, `nohup`, `exec`."""
    for i, word in enumerate(words):
        if i and words[i - 1] in ("-n", "--name", "-p", "--prefix"):  # conda run -n vllm …
            continue
        program = word.rpartition("/")[2]
        if program == "vllm" or re.fullmatch(r"python[0-9.]*", program):
            return i
    raise ConfigError("vllm.start_cmd: neither `vllm serve …` nor `python -m vllm.entrypoints.openai.api_server …`")


def _arguments_index(words: Sequence[str]) -> int:
    start = _program_index(words)
    rest = list(words[start + 1 :])
    if words[start].rpartition("/")[2] == "vllm":
        if rest[:1] != ["serve"]:
            raise ConfigError(f"vllm.start_cmd: `vllm {rest[0] if rest else ''}` is not `vllm serve`")
        return start + 2
    if "-m" in rest:
        at = rest.index("-m")
        module = rest[at + 1] if at + 1 < len(rest) else ""
        if module in _MODULES:
            return start + at + 3
        if module == _MODULE_MAIN and rest[at + 2 : at + 3] == ["serve"]:
            return start + at + 4
        raise ConfigError(f"vllm.start_cmd: `-m {module}` is not vLLM's server")
    raise ConfigError("vllm.start_cmd: neither `vllm serve …` nor `python -m vllm.entrypoints.openai.api_server …`")


def _flag(word: str) -> str:
    """A word as a flag name, dashes for underscores, without `=value` and `.key`; "" if it is none."""
    if not word.startswith("-"):
        return ""
    name = word.partition("=")[0].partition(".")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def _clean(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    kept: list[str] = []
    warnings: list[str] = []
    skip_value = False
    for word in words:
        if skip_value:
            skip_value = False
            continue
        flag = _flag(word)
        if flag in REMOVED_FLAGS:
            warnings.append(f"vllm.start_cmd: {flag} no longer exists in vLLM and was dropped")
        elif flag in HOST_FLAGS:
            skip_value = HOST_FLAGS[flag] and "=" not in word
            warnings.append(f"vllm.start_cmd: {flag} was dropped: the engine host decides it (vllm_host, vllm_port)")
        else:
            kept.append(word)
    return tuple(kept), tuple(warnings)


def lora_arguments(command: StartCommand, lora: VllmLora) -> tuple[list[str], list[str]]:
    """The flags that the `lora` section adds to the command, and what it wanted but the command says otherwise."""
    if not lora.enabled:
        return [], []
    wanted: dict[str, str | None] = {
        "--enable-lora": None,
        "--max-lora-rank": str(engine_rank(lora.max_lora_rank)),
        "--max-loras": str(lora.max_loras),
        "--max-cpu-loras": str(lora.max_cpu_loras),
    }
    if lora.default_mm_loras:
        wanted["--default-mm-loras"] = json.dumps(lora.default_mm_loras)
    if lora.limit_mm_per_prompt:
        wanted["--limit-mm-per-prompt"] = json.dumps(lora.limit_mm_per_prompt)
    loras = _given(command.arguments, "--max-loras") or ""
    if loras.isdigit():  # vLLM refuses fewer in memory than in a batch
        wanted["--max-cpu-loras"] = str(max(lora.max_cpu_loras, int(loras)))
    added: list[str] = []
    warnings: list[str] = []
    for flag, value in wanted.items():
        if command.has(flag):
            given = _given(command.arguments, flag)
            if given != value and not (value is None and given in (None, "true")):
                warnings.append(f"vllm.start_cmd: {flag} {given or ''} wins over vllm.lora ({value})")
        else:
            added += [flag] if value is None else [flag, value]
    return added, warnings


#: The ranks that vLLM lays LoRA memory out for (`MaxLoRARanks` in vllm/config/lora.py, 0.32).
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_rank(rank: int) -> int:
    """The smallest rank vLLM accepts as `--max-lora-rank` that holds `rank`; the registry enforces `rank` itself."""
    return next((r for r in _RANKS if r >= rank), rank)


def _given(arguments: Sequence[str], flag: str) -> str | None:
    for i, word in enumerate(arguments):
        if _flag(word) == flag:
            if "=" in word:
                return word.partition("=")[2]
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            return None if not following or following.startswith("--") else following
        if _flag(word) == "--no-" + flag.removeprefix("--"):
            return "off"
    return None


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

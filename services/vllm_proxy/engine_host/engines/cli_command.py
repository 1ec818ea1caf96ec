"""A start command that is run as it is (cli): what to execute, and what it says of port, key and adapters.

Wrappers stay: `conda run -n x python -m …`, `bash -lc '…'`, `env X=1 …`. Flags that the command leaves open are added
at its end, within a shell's quoted script too, unless something follows the engine there that would get them instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_proxy.common.settings import ConfigError, EngineSection, Tracing
from vllm_proxy.engine_host.engines.engine_tracing import tracing_environment, tracing_flags
from vllm_proxy.engine_host.engines.http_dialects import HttpDialect
from vllm_proxy.engine_host.engines.start_command import flag_name, given, has, missing_flags

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_SCRIPT_OPTION = re.compile(r"-[a-z]*c")
_OPERATORS = frozenset({"|", "||", "&", "&&", ";", "|&"})


@dataclass(frozen=True, slots=True)
class CliCommand:
    #: What is executed.
    words: tuple[str, ...]
    #: Assignments before the command.
    environment: dict[str, str]
    host: str
    port: int
    #: What `--api-key` says; the first if there are several.
    api_key: str | None
    #: What the flag of the maximal adapter rank says.
    max_lora_rank: int | None
    warnings: tuple[str, ...] = field(default=())


def read_command(
    text: str, dialect: HttpDialect, host: str, port: int, settings: EngineSection, tracing: Tracing
) -> CliCommand:
    """`host` and `port` are the settings'; the command's own win.

    Raises ConfigError for a command that cannot be read."""
    section = dialect.kind
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"{section}.start_cmd: {e}") from None
    environment: dict[str, str] = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if not words:
        raise ConfigError(f"{section}.start_cmd: names no program")
    warnings: list[str] = []
    script_at = _script_at(words)
    arguments = _split(words[script_at]) if script_at is not None else words
    for flag in sorted(dialect.removed_flags):
        if has(arguments, flag):
            warnings.append(f"{section}.start_cmd: {flag} no longer exists in {dialect.name} and was dropped")
            arguments = [word for word in arguments if flag_name(word) != flag]
            if script_at is None:
                words = arguments
            else:
                words[script_at] = re.sub(rf"(?<!\S){re.escape(flag)}(?!\S)", "", words[script_at])
    said_port = given(arguments, "--port")
    if said_port is not None and said_port.isdigit() and int(said_port) != port:
        warnings.append(f"{section}.start_cmd: --port {said_port} is used, not {section}_port ({port})")
    wanted = dialect.lora_flags(settings, arguments) if settings.lora.enabled else {}
    added, said_otherwise = missing_flags(arguments, wanted, section)
    warnings += said_otherwise
    added += tracing_flags(tracing, section, arguments)
    for flag, value in (("--host", host), ("--port", str(port))):
        if not has(arguments, flag):
            added += [flag, value]
    own_port = int(said_port) if said_port is not None and said_port.isdigit() else port
    if script_at is None:
        words = [*words, *added]
    elif _takes_flags(words[script_at], section):
        words[script_at] = f"{words[script_at].rstrip()} {shlex.join(added)}"
    else:
        warnings.append(
            f"{section}.start_cmd: its script goes on after the engine's command, so nothing can be added to that; "
            f"it should say {shlex.join(added)}"
        )
        own_port = int(said_port) if said_port is not None and said_port.isdigit() else dialect.default_port
    rank = given([*arguments, *added], dialect.max_rank_flag)
    return CliCommand(
        words=tuple(words),
        environment={
            **tracing_environment(tracing, section, {**settings.extra_env, **environment}),
            **environment,
        },
        host=_reachable(given(arguments, "--host") or host),
        port=own_port,
        api_key=given(arguments, "--api-key"),
        max_lora_rank=int(rank) if rank is not None and rank.isdigit() else None,
        warnings=tuple(warnings),
    )


def _script_at(words: Sequence[str]) -> int | None:
    """Where the script of `bash -c SCRIPT` stands."""
    for i, word in enumerate(words[:-2]):
        if word.rpartition("/")[2] in _SHELLS:
            for j in range(i + 1, len(words) - 1):
                if _SCRIPT_OPTION.fullmatch(words[j]):
                    return j + 1
                if not words[j].startswith("-"):
                    break
    return None


def _split(script: str) -> list[str]:
    try:
        return shlex.split(script)
    except ValueError:  # shell grammar that shlex does not know
        return script.split()


def _takes_flags(script: str, kind: str) -> bool:
    """Whether words at the end of a script become flags of the engine: it stands behind the last operator."""
    tokens = shlex.shlex(script, posix=True, punctuation_chars=True)
    tokens.whitespace_split = True
    try:
        found = list(tokens)
    except ValueError:
        return False
    operators = [i for i, token in enumerate(found) if token in _OPERATORS]
    last = found[operators[-1] + 1 :] if operators else found
    return not operators or any(
        word.rpartition("/")[2] == kind or (before == "-m" and word.startswith(kind)) or word.startswith("--")
        for before, word in zip(["", *last], last, strict=False)
    )


def _reachable(host: str) -> str:
    """Where a server that listens on all addresses is asked."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)

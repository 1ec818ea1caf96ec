"""Start commands as people write them, taken apart: wrappers, environment, program, arguments. Knows no engine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_proxy.common.settings import ConfigError

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one engine's server is started, and which of its flags are not the command's to decide."""

    #: The section of the settings, for messages; also the name of the program, which is asked to `serve`.
    section: str
    #: `python -m MODULE`, for messages the first.
    modules: tuple[str, ...]
    #: `python -m MODULE serve`.
    command_modules: tuple[str, ...]
    #: Flags that the host decides: the engine is served through it. Name -> takes a value.
    host_flags: Mapping[str, bool]
    #: Flags of older versions, none of which takes a value. Dropped with a warning.
    removed_flags: frozenset[str] = frozenset()


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
        return has(self.arguments, flag)

    def given(self, flag: str) -> str | None:
        return given(self.arguments, flag)


def read(text: str, dialect: Dialect) -> StartCommand:
    """Takes `python -m MODULE …`, `PROGRAM serve …`, both behind `conda run …` or `NAME=value`, apart.

    Raises ConfigError if it starts something else.
    """
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"{dialect.section}.start_cmd: {e}") from None
    program = _program_index(words, dialect)
    environment: dict[str, str] = {}
    for word in words[:program]:
        if _ASSIGNMENT.match(word):
            name, _, value = word.partition("=")
            environment[name] = value
    return StartCommand(environment, *_clean(words[_arguments_index(words, program, dialect) :], dialect))


def flag_name(word: str) -> str:
    """A word as a flag name, dashes for underscores, without `=value` and `.key`; "" if it is none."""
    if not word.startswith("-"):
        return ""
    name = word.partition("=")[0].partition(".")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def has(arguments: Sequence[str], flag: str) -> bool:
    """Whether words name a flag, in any spelling: `--max_loras`, `--max-loras=4`, `--x.y 1`, `--no-x`."""
    return any(flag_name(word) in (flag, "--no-" + flag.removeprefix("--")) for word in arguments)


def given(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag; None without one, `off` for its `--no-` form."""
    for i, word in enumerate(arguments):
        if flag_name(word) == flag:
            if "=" in word:
                return word.partition("=")[2]
            following = arguments[i + 1] if i + 1 < len(arguments) else ""
            return None if not following or following.startswith("--") else following
        if flag_name(word) == "--no-" + flag.removeprefix("--"):
            return "off"
    return None


def missing_flags(
    arguments: Sequence[str], wanted: Mapping[str, Sequence[str]], section: str
) -> tuple[list[str], list[str]]:
    """What a section's `lora` adds to a command that leaves it open, and a line for each flag that says otherwise.
    `wanted` are flags with the words that follow them."""
    added: list[str] = []
    warnings: list[str] = []
    for flag, values in wanted.items():
        if not has(arguments, flag):
            added += [flag, *values]
            continue
        said = given(arguments, flag)
        if said != (values[0] if values else None) and not (not values and said == "true"):
            value = " ".join(values) or None
            warnings.append(f"{section}.start_cmd: {flag} {said or ''} wins over {section}.lora ({value})")
    return added, warnings


def _program_index(words: Sequence[str], dialect: Dialect) -> int:
    """Where the command's own program is: behind wrappers like `conda run -n x`, `env`, `nohup`, `exec`."""
    for i, word in enumerate(words):
        if i and words[i - 1] in ("-n", "--name", "-p", "--prefix"):  # conda run -n vllm …
            continue
        program = word.rpartition("/")[2]
        if program == dialect.section or re.fullmatch(r"python[0-9.]*", program):
            return i
    raise _no_server(dialect)


def _arguments_index(words: Sequence[str], start: int, dialect: Dialect) -> int:
    rest = list(words[start + 1 :])
    if words[start].rpartition("/")[2] == dialect.section:
        if rest[:1] != ["serve"]:
            asked = f"{dialect.section} {rest[0] if rest else ''}"
            raise ConfigError(f"{dialect.section}.start_cmd: `{asked}` is not `{dialect.section} serve`")
        return start + 2
    if "-m" in rest:
        at = rest.index("-m")
        module = rest[at + 1] if at + 1 < len(rest) else ""
        if module in dialect.modules:
            return start + at + 3
        if module in dialect.command_modules and rest[at + 2 : at + 3] == ["serve"]:
            return start + at + 4
        raise ConfigError(f"{dialect.section}.start_cmd: `-m {module}` is not a server of {dialect.section}")
    raise _no_server(dialect)


def _no_server(dialect: Dialect) -> ConfigError:
    return ConfigError(
        f"{dialect.section}.start_cmd: neither `{dialect.section} serve …` nor `python -m {dialect.modules[0]} …`"
    )


def _clean(words: Sequence[str], dialect: Dialect) -> tuple[tuple[str, ...], tuple[str, ...]]:
    section = dialect.section
    kept: list[str] = []
    warnings: list[str] = []
    skip_value = False
    for word in words:
        if skip_value:
            skip_value = False
            continue
        flag = flag_name(word)
        if flag in dialect.removed_flags:
            warnings.append(f"{section}.start_cmd: {flag} no longer exists in the engine and was dropped")
        elif flag in dialect.host_flags:
            skip_value = dialect.host_flags[flag] and "=" not in word
            warnings.append(
                f"{section}.start_cmd: {flag} was dropped: the engine host decides it ({section}_host, {section}_port)"
            )
        else:
            kept.append(word)
    return tuple(kept), tuple(warnings)

"""Flags among the words of an engine's command, however they are spelt: `--max_loras`, `--max-loras=4`, `--x.y 1`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def flag_name(word: str) -> str:
    """A word as a flag name, dashes for underscores, without `=value` and `.key`; "" if it is none."""
    if not word.startswith("-"):
        return ""
    name = word.partition("=")[0].partition(".")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def has(arguments: Sequence[str], flag: str) -> bool:
    return any(flag_name(word) in (flag, "--no-" + flag.removeprefix("--")) for word in arguments)


def given(arguments: Sequence[str], flag: str) -> str | None:
    """A flag's value; None if it has none or is not there, `off` for its `--no-` form."""
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
    arguments: Sequence[str], wanted: Mapping[str, str | tuple[str, ...] | None], section: str
) -> tuple[list[str], list[str]]:
    """What of the wanted flags a command leaves open, and a line for each that it says otherwise. A flag's value is one
    word, several, or none."""
    added: list[str] = []
    warnings: list[str] = []
    for flag, value in wanted.items():
        if has(arguments, flag):
            said = given(arguments, flag)
            if isinstance(value, tuple):
                continue
            if said != value and not (value is None and said in (None, "true")):
                warnings.append(f"{section}.start_cmd: {flag} {said or ''} wins over {section}.lora ({value})")
        else:
            added += [flag, *((value,) if isinstance(value, str) else value or ())]
    return added, warnings

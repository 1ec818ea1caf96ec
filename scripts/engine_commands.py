"""The commands that start engines, as a shell would run them: with the flags and the environment that the settings
add, and without secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from scripts.supervisor_config import Program

from vllm_proxy.common.settings import EngineKind, Settings
from vllm_proxy.engine_host.engines import cli_command
from vllm_proxy.engine_host.engines.http_dialects import DIALECTS

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_MASK = "***"


def engine_commands(settings: Settings, programs: Sequence[Program]) -> Iterator[str]:
    """One line for each engine host. Raises ConfigError for a command that cannot be read."""
    for program in programs:
        if program.engine is not None and program.engine != "sim":
            yield _command(settings.for_host(program.host), program.engine)


def _command(settings: Settings, kind: EngineKind) -> str:
    section = settings.section(kind)
    assert section is not None
    host, port = settings.native_address(kind)
    if section.launch_mode == "attached":
        return f"# attached: {section.url or f'http://{host}:{port}'}"
    dialect = DIALECTS[kind]
    command = cli_command.read_command(section.command(), dialect, host, port, section, settings.tracing)
    environment = {**dialect.environment(section), **command.environment}
    words = _without_keys(command.words)
    note = "  # the same engine in its host, by its Python API" if section.launch_mode == "python_api" else ""
    return f"env {_assignments(environment)}{shlex.join(words)}{note}"


def _assignments(environment: Mapping[str, str]) -> str:
    shown = {name: _MASK if _SECRET.search(name) else value for name, value in sorted(environment.items())}
    return "".join(f"{name}={shlex.quote(value)} " for name, value in shown.items())


def _without_keys(words: Sequence[str]) -> list[str]:
    shown: list[str] = []
    for word in words:
        is_key = bool(shown) and shown[-1] == "--api-key"
        masked = re.sub(r"(--api-key[= ])(\S+)", rf"\g<1>{_MASK}", word)
        shown.append(_MASK if is_key else masked)
    return shown

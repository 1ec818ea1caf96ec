"""What each engine host needs to start: an environment, a start command that makes sense, a model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok, warn
from vllm_proxy.common.settings import EngineSection

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PYTHON = re.compile(r"python[\d.]*")
_WRAPPERS = frozenset({"env", "nohup", "exec", "nice", "conda", "mamba", "uv", "docker", "podman", "ssh", "sh", "bash"})
_MODEL_FLAGS = ("--model", "--model-path", "--model_path")


def environments(site: Site) -> Iterator[Finding]:
    for name, kind, section in _engines(site):
        needs = section.launch_mode == "python_api" or (
            section.launch_mode == "cli" and _program(_words(section)) in (kind, "python")
        )
        if not needs:
            yield ok(f"engine-{name} needs none of ours")
            continue
        environment = site.code_root / ".venv" / kind
        fix = f"scripts/install.sh {kind} (make start does it, too)"
        if not (environment / "bin" / "python").exists():
            yield fail(f"engine-{name}: the environment {environment} is not there", fix)
        elif not (found := list(environment.glob(f"lib/python*/site-packages/{kind}-*.dist-info"))):
            yield fail(f"engine-{name}: {kind} is not installed in {environment}", f"rm -rf {environment}; {fix}")
        else:
            version = found[0].name.removesuffix(".dist-info").partition("-")[2]
            yield ok(f"engine-{name}: {kind} {version} in {environment}")


def start_commands(site: Site) -> Iterator[Finding]:
    for name, kind, section in _engines(site):
        if section.launch_mode == "attached":
            continue
        fault = _command_fault(site, kind, section)
        if fault:
            yield fail(
                f"engine-{name}: {section.command_source}: {fault}",
                f"correct it in {site.loaded.path.name} or in the file that it names: `{_example(kind)}`; "
                f"`scripts/start_{kind}.py --print-cmd` shows what would be run",
            )
        else:
            yield ok(f"engine-{name}: {section.command_source}")


def models(site: Site) -> Iterator[Finding]:
    for name, _, section in _engines(site):
        if section.launch_mode == "attached" or (model := _model(_words(section))) is None:
            continue
        if (folder := Path(model).expanduser()).is_dir():
            if (folder / "config.json").exists():
                yield ok(f"engine-{name}: {model}")
            else:
                yield fail(f"engine-{name}: {model} has no config.json", "name the folder that the weights are in")
        elif _is_demo(site, model):
            yield warn(f"engine-{name}: the demo model {model} is not made yet", "make start makes it, in a minute")
        elif _is_path(model):
            yield fail(
                f"engine-{name}: there is no such model folder: {model}",
                f"correct --model in {section.command_source}; a relative path begins at {site.loaded.root}",
            )
        else:
            yield ok(f"engine-{name}: {model}, from the Hub")


def _engines(site: Site) -> Iterator[tuple[str, str, EngineSection]]:
    """Not the simulator."""
    for name, spec in site.settings.hosts().items():
        if (section := site.settings.for_host(name).section(spec.engine)) is not None:
            yield name, spec.engine, section


def _words(section: EngineSection) -> list[str]:
    try:
        words = shlex.split(section.command())
    except ValueError:
        return []
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    return words


def _program(words: Sequence[str]) -> str:
    """The name of what is started by its bare name; `python` for each of its names; empty for anything else."""
    first = words[0] if words else ""
    return "python" if _PYTHON.fullmatch(first) else first


def _command_fault(site: Site, kind: str, section: EngineSection) -> str:
    """What is wrong with a start command; empty if nothing is seen. The engine's own parser reads its flags later."""
    try:
        shlex.split(section.command())
    except ValueError as e:
        return str(e)
    words = _words(section)
    if not words:
        return "it names no program"
    name = words[0].rpartition("/")[2]
    path = f"{site.code_root / '.venv' / kind / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    own = _program(words) in (kind, "python")
    # Without its environment, which another check misses, its own program cannot be found either.
    has_environment = (site.code_root / ".venv" / kind).exists() or not own
    if section.launch_mode == "cli" and has_environment and shutil.which(words[0], path=path) is None:
        return f"there is no program {words[0]!r}"
    if name in _WRAPPERS:
        if not any(word.startswith(kind) or f"{kind}." in word or f"{kind} " in word for word in words[1:]):
            return f"it does not start {kind}"
        return ""
    if name == kind:
        return "" if words[1:2] == ["serve"] else f"`{kind} {' '.join(words[1:2])}` is not `{kind} serve`"
    if _PYTHON.fullmatch(name):
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        if section.launch_mode == "cli" or module.startswith(f"{kind}."):
            return ""
        return f"`python -m {module}` is not a server of {kind}" if module else "it starts no module (python -m ...)"
    return "" if section.launch_mode == "cli" else f"it starts {name!r}, not {kind}"


def _example(kind: str) -> str:
    return "vllm serve MODEL" if kind == "vllm" else "python -m sglang.launch_server --model-path MODEL"


def _model(words: Sequence[str]) -> str | None:
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _MODEL_FLAGS:
            return value if equals else next(iter(words[i + 1 : i + 2]), None)
        if word == "serve" and i + 1 < len(words) and not words[i + 1].startswith("-"):
            return words[i + 1]
    return None


def _is_path(model: str) -> bool:
    """Whether it cannot be the name of a model on the Hub, which has one slash at most and names no folder of ours."""
    first = model.partition("/")[0]
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1 or ("/" in model and Path(first).is_dir())


def _is_demo(site: Site, model: str) -> bool:
    """Whether it is what the shipped start command names, which a start makes if it is missing."""
    shipped = site.code_root / "config" / "vllm_start_cmd.txt"
    try:
        return model.startswith("models/smollm2-") and f"--model {model}" in shipped.read_text(encoding="utf-8")
    except OSError:
        return False

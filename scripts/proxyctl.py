"""Starts and stops the services of one configuration. What `make run`, scripts/start.sh and others call.

python -m scripts.proxyctl --config config/config.yaml start [--follow] [SERVICE...]
                                                       stop [SERVICE...] | restart [SERVICE...] | needs | check
                                                       command [SERVICE...]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from scripts.control import Services, wants_demo_model
from scripts.engine_commands import engine_commands
from scripts.install import engine_build
from scripts.make_demo_model import DEMO_MODEL
from scripts.readiness import StartFailed, Stopped
from scripts.start_command import StartCommand
from scripts.supervisor_client import SupervisorError
from scripts.supervisor_config import Program, engine_environments

from vllm_proxy.cli import last_start
from vllm_proxy.common.lifecycle import DEFAULT_CONFIG
from vllm_proxy.common.settings import ConfigError, LoadedSettings, enter_root, load_settings

#: Flags for a model that only `MODEL=` names: what fits is found out by vLLM.
MODEL_FLAGS = ("--max-model-len", "auto")
MODEL_FLAGS_ON_CPU = ("--kv-cache-memory-bytes", "2G", "--max-num-seqs", "32", "--enforce-eager")


def main() -> int:
    args = _parse()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        loaded, services = _services(args)
        if args.action == "check":
            print(*(f"warning: {warning}" for warning in loaded.warnings), f"{loaded.path}: good", sep="\n")
            return 0
        named = [*args.services, *(services.hosts_of(args.engine) if args.engine else ())]
        if args.action == "needs":
            print(" ".join(_needs(loaded, services.to_start(named))))
            return 0
        if args.action == "start":
            return services.start(named, follow=args.follow, wait=args.wait, timeout_s=args.timeout)
        if args.action == "restart":
            return services.restart(named, args.timeout)
        if args.action == "stop":
            return services.stop(named)
        print(*engine_commands(loaded.settings, services.named(named)), sep="\n")
        return 0
    except (ConfigError, SupervisorError, StartFailed, TimeoutError) as e:
        print(e, file=sys.stderr)
        return 1
    except Stopped:
        print("stopped meanwhile by somebody else", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="proxyctl", description="Starts and stops the services.")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="default: %(default)s")
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("start", "needs"):
        action = actions.add_parser(name)
        action.add_argument("--model", default="", help="a model for vLLM instead of the configured start command's")
        action.add_argument("--model-args", default="", help="more flags for --model")
        action.add_argument("--nginx", action="store_true", help="start nginx in front of the edge too")
        action.add_argument("--follow", action="store_true", help="stay, show the logs; Ctrl-C stops")
        action.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait for an answer")
        action.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait (default: for ever)")
        _add_services(action)
    restart = actions.add_parser("restart")
    restart.add_argument("--timeout", type=float, metavar="SECONDS", help="for each process (default: for ever)")
    _add_services(restart)
    for name in ("stop", "command"):
        _add_services(actions.add_parser(name))
    actions.add_parser("check", help="say whether the configuration is good")
    return parser.parse_args()


def _add_services(action: argparse.ArgumentParser) -> None:
    action.add_argument("services", nargs="*", metavar="SERVICE", help="default: all")
    action.add_argument("--engine", choices=["vllm", "sglang"], help="the engine hosts of this kind")


def _services(args: argparse.Namespace) -> tuple[LoadedSettings, Services]:
    """What runs can be stopped also while its configuration is broken. Raises ConfigError."""
    config_path = args.config.resolve()
    try:
        loaded, start_command = _load(args)
        enter_root(loaded)
        return loaded, Services(loaded, start_command)
    except ConfigError as fault:
        last = last_start.load(config_path) if args.action == "stop" else None
        if last is None:
            raise
        faults = "; ".join(str(fault).splitlines())
        print(f"note: {faults}; using the configuration of the last start", file=sys.stderr, flush=True)
        enter_root(last)
        return last, Services(last)


def _load(args: argparse.Namespace) -> tuple[LoadedSettings, StartCommand | None]:
    """The settings, with `--model` put in the place of the start command. Writes nothing."""
    model = getattr(args, "model", "")
    # Who names it wants it.
    wants_nginx = getattr(args, "nginx", False) or (
        args.action in ("start", "needs") and "nginx" in getattr(args, "services", ())
    )
    overrides = ["nginx.enabled=true"] if wants_nginx else []
    if not model:
        return load_settings(args.config, overrides), None
    if _is_path(model) and not Path(model).exists():
        raise ConfigError(f"MODEL={model}: there is no such folder")
    command = model_command(model, args.model_args)
    loaded = load_settings(args.config, [*overrides, f"vllm.start_cmd={json.dumps(command, ensure_ascii=False)}"])
    path = loaded.root / loaded.settings.run_dir / "vllm_start_cmd.txt"
    return loaded, StartCommand(path, f"# Generated for MODEL={model}\n{command}\n")


def _is_path(model: str) -> bool:
    """Whether it cannot be the name of a model on the Hub, which has one slash at most."""
    return "://" not in model and (model.startswith(("/", "./", "../", "~")) or model.count("/") > 1)


def model_command(model: str, more_flags: str) -> str:
    """The start command for a model of the Hub or a folder."""
    flags = MODEL_FLAGS if engine_build() == "gpu" else MODEL_FLAGS + MODEL_FLAGS_ON_CPU
    name: tuple[str, ...] = ()
    if Path(model).is_dir():
        model = str(Path(model).resolve())
        name = ("--served-model-name", Path(model).name)
    command = ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", model, *name, *flags)
    return f"{shlex.join(command)} {more_flags}".strip()


def _needs(loaded: LoadedSettings, wanted: Sequence[Program]) -> list[str]:
    """The parts that scripts/install.sh has to install to start these services."""
    settings = loaded.settings
    names = {program.name for program in wanted}
    parts = {"gateway"}
    for name, spec in settings.hosts().items():
        if f"engine-{name}" in names:
            parts |= set(filter(None, engine_environments(settings, name, spec)))
    if "vllm" in parts and wants_demo_model(settings) and not (loaded.root / DEMO_MODEL).exists():
        parts.add("demo")
    return sorted(parts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(main())

"""Starts, stops and shows the services of one configuration. What `make run`, scripts/start.sh and others call.

python -m scripts.proxyctl --config config/config.yaml start [--follow] [SERVICE...]
                                                       stop [SERVICE...] | status | logs SERVICE | needs
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

from scripts.control import Services, wants_demo_model
from scripts.install import engine_build
from scripts.make_demo_model import DEMO_MODEL
from scripts.readiness import StartFailed, Stopped
from scripts.show import follow_logs, show_status
from scripts.supervisor_client import SupervisorError
from scripts.supervisor_config import engine_environment

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
        loaded, overrides = _load(args)
        enter_root(loaded)
        services = Services(loaded, overrides)
        if args.action == "needs":
            print(" ".join(_needs(loaded)))
            return 0
        if args.action == "logs":
            return follow_logs(loaded, services.programs, args.service, args.lines)
        named = [*args.services, *(services.hosts_of(args.engine) if args.engine else ())]
        if args.action == "start":
            return services.start(named, follow=args.follow, wait=args.wait, timeout_s=args.timeout)
        if args.action == "stop":
            return services.stop(named)
        return show_status(loaded, services.named(named))
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
    parser = argparse.ArgumentParser(prog="proxyctl", description="Starts, stops and shows the services.")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="default: %(default)s")
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("start", "needs"):
        action = actions.add_parser(name)
        action.add_argument("--model", default="", help="a model for vLLM instead of the configured start command's")
        action.add_argument("--model-args", default="", help="more flags for --model")
        if name == "start":
            action.add_argument("--follow", action="store_true", help="stay, show the logs; Ctrl-C stops")
            action.add_argument("--no-wait", dest="wait", action="store_false", help="do not wait for an answer")
            action.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait (default: for ever)")
            _add_services(action)
    for name in ("stop", "status"):
        _add_services(actions.add_parser(name))
    logs = actions.add_parser("logs")
    logs.add_argument("service", nargs="?", default="all", metavar="SERVICE")
    logs.add_argument("--lines", type=int, default=100, help="lines to begin with (default: %(default)s)")
    return parser.parse_args()


def _add_services(action: argparse.ArgumentParser) -> None:
    action.add_argument("services", nargs="*", metavar="SERVICE", help="default: all")
    action.add_argument("--engine", choices=["vllm", "sglang"], help="the engine hosts of this kind")


def _load(args: argparse.Namespace) -> tuple[LoadedSettings, tuple[str, ...]]:
    """The settings, with `--model` put in the place of the start command."""
    loaded = load_settings(args.config)
    model = getattr(args, "model", "")
    if not model:
        return loaded, ()
    if loaded.settings.vllm.launch_mode == "attached":
        raise ConfigError("MODEL is set, but vllm.launch_mode is attached: the engine is somebody else's")
    command_file = loaded.root / loaded.settings.run_dir / "vllm_start_cmd.txt"
    if args.action == "start":
        command_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command_file.write_text(f"# Generated for MODEL={model}\n{model_command(model, args.model_args)}\n")
    elif not command_file.exists():
        command_file = loaded.settings.vllm.start_cmd_file
    overrides = (f"vllm.start_cmd_file={command_file}", "vllm.start_cmd=null")
    return load_settings(args.config, overrides), overrides


def model_command(model: str, more_flags: str) -> str:
    """The start command for a model of the Hub or a folder."""
    flags = MODEL_FLAGS if engine_build() == "gpu" else MODEL_FLAGS + MODEL_FLAGS_ON_CPU
    name: tuple[str, ...] = ()
    if Path(model).is_dir():
        model = str(Path(model).resolve())
        name = ("--served-model-name", Path(model).name)
    command = ("python", "-m", "vllm.entrypoints.openai.api_server", "--model", model, *name, *flags)
    return f"{shlex.join(command)} {more_flags}".strip()


def _needs(loaded: LoadedSettings) -> list[str]:
    """The parts that scripts/install.sh has to install for this configuration. Raises ConfigError."""
    settings = loaded.settings
    parts = {engine_environment(settings, spec) for spec in settings.hosts().values()} | {"gateway"}
    if "sglang" in parts:
        raise ConfigError("sglang: its environment (.venv/sglang) is not installed by this project yet")
    if "vllm" in parts and wants_demo_model(settings) and not (loaded.root / DEMO_MODEL).exists():
        parts.add("demo")
    return sorted(parts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(main())

"""The command: every check within its time, the findings as lines or as JSON, the exit code."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_proxy.cli.command import Commands
from vllm_proxy.cli.doctor.attached import attached_engines
from vllm_proxy.cli.doctor.check import Check, Finding, Site, Verdict, fail
from vllm_proxy.cli.doctor.configuration import configuration, internal_token, mappings
from vllm_proxy.cli.doctor.engines import environments, models, start_commands
from vllm_proxy.cli.doctor.folders import disk_space, writable
from vllm_proxy.cli.doctor.gpus import gpus
from vllm_proxy.cli.doctor.keys import expired_keys, keys_file, made_keys
from vllm_proxy.cli.doctor.pid_files import pid_files
from vllm_proxy.cli.doctor.ports import ports
from vllm_proxy.cli.doctor.services import ask_all, clocks, engines, reachable, versions
from vllm_proxy.cli.doctor.store import store
from vllm_proxy.cli.output import BOLD, DIM, GREEN, RED, YELLOW, Output
from vllm_proxy.common.settings import ConfigError, enter_root, read_settings

CHECK_TIMEOUT_S = 8.0
#: From an editable installation: the project, with its environments.
CODE_ROOT = Path(__file__).resolve().parents[4]
_MIB = 1024 * 1024
_COLOURS = {Verdict.OK: GREEN, Verdict.WARN: YELLOW, Verdict.FAIL: RED}

CHECKS = (
    Check("config", "whether the configuration can be used", configuration),
    Check("mappings", "whether every mapped model has an engine", mappings),
    Check("token", "whether services beyond this machine have a shared secret", internal_token),
    Check("keys", "the file of declared keys", keys_file),
    Check("expired keys", "declared keys that are refused by now", expired_keys),
    Check("made keys", "keys that the command line or the API made and that are refused by now", made_keys),
    Check("folders", "whether logs, state, pid files and sockets can be written", writable),
    Check("disk", "free space where they are", disk_space),
    Check("ports", "who listens on the configured ports", ports),
    Check("pids", "whether pid files name living processes", pid_files),
    Check("environments", "the engines' virtual environments", environments),
    Check("start commands", "how the engines are started", start_commands),
    Check("models", "the models that the start commands name", models),
    Check("gpu", "the GPUs and the driver", gpus),
    Check("store", "the Redis of auth, if there is one", store),
    Check("services", "whether each service answers", reachable),
    Check("attached", "the engines that somebody else runs", attached_engines),
    Check("engines", "what the router knows of the engine hosts", engines),
    Check("versions", "whether what runs is what is installed", versions),
    Check("clocks", "whether the services' clocks agree with this one", clocks),
)


def add_commands(commands: Commands) -> None:
    text = "looks for the usual mistakes, names the fix of each, changes nothing"
    doctor = commands.add_parser("doctor", help=text, description=text)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--min-free",
        type=int,
        default=1024,
        metavar="MIB",
        help="less free disk space than this is a fault, in MiB (default: 1024)",
    )
    doctor.add_argument(
        "--max-skew",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="clocks that differ by more are a fault (default: 2)",
    )
    doctor.set_defaults(standalone=run)


def run(args: argparse.Namespace, config: Path, output: Output) -> int:
    """Returns 1 if any check fails."""
    found = asyncio.run(examine(config, args.min_free * _MIB, args.max_skew))
    if output.as_json:
        output.json([_as_json(check, finding) for check, findings in found for finding in findings])
    else:
        _show(found, output)
    return int(any(finding.verdict is Verdict.FAIL for _, findings in found for finding in findings))


async def examine(
    config: Path, min_free_bytes: int, max_skew_s: float, code_root: Path = CODE_ROOT
) -> list[tuple[Check, list[Finding]]]:
    """Every check in its order. Of a file that cannot be read only that is told."""
    try:
        loaded, faults = read_settings(config)
    except ConfigError as e:
        fix = "correct it; the other checks need a configuration that can be read (`make check-config`)"
        return [(CHECKS[0], [fail(line, fix) for line in str(e).splitlines()])]
    enter_root(loaded)
    try:
        answers = await ask_all(loaded.settings)
    except OSError:  # the start commands cannot be read: a fault of the configuration
        answers = {}
    site = Site(loaded, tuple(faults), code_root, min_free_bytes, max_skew_s, answers)
    return list(zip(CHECKS, await asyncio.gather(*(_look(check, site) for check in CHECKS)), strict=True))


async def _look(check: Check, site: Site) -> list[Finding]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await _findings(check, site)
    except TimeoutError:
        return [
            fail(f"no answer within {CHECK_TIMEOUT_S:g} s", f"look by hand at {check.looks_at}: something hangs there")
        ]
    except Exception as e:
        return [fail(f"the check itself failed: {type(e).__name__}: {e}", "correct what the other checks say first")]


async def _findings(check: Check, site: Site) -> list[Finding]:
    if inspect.iscoroutinefunction(check.look):
        return list(await check.look(site))
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[Finding]] = loop.create_future()

    def look() -> None:
        try:
            found: Iterable[Finding] = list(check.look(site))  # type: ignore[arg-type]
        except BaseException as e:
            _settle(loop, done.set_exception, done, e)
        else:
            _settle(loop, done.set_result, done, found)

    # Not the loop's pool, which is waited for at the end: a file system may hang for ever.
    threading.Thread(target=look, daemon=True).start()
    return await done


def _settle(loop: asyncio.AbstractEventLoop, setter: Any, done: asyncio.Future[Any], value: Any) -> None:
    def settle() -> None:
        if not done.done():
            setter(value)

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)


def _as_json(check: Check, finding: Finding) -> dict[str, str]:
    return {
        "check": check.name,
        "looks_at": check.looks_at,
        "verdict": finding.verdict,
        "what": finding.what,
        "fix": finding.fix,
    }


def _show(found: list[tuple[Check, list[Finding]]], output: Output) -> None:
    width = max(len(check.name) for check in CHECKS)
    counts = dict.fromkeys(Verdict, 0)
    for check, findings in found:
        for finding in findings:
            counts[finding.verdict] += 1
            verdict = output.paint(finding.verdict.ljust(4), _COLOURS[finding.verdict])
            output.line(f"{verdict}  {output.paint(check.name.ljust(width), BOLD)}  {finding.what}")
            if finding.fix:
                output.line(f"{'':{width + 6}}  {output.paint('fix:', DIM)} {finding.fix}")
    output.line()
    output.line(f"failed: {counts[Verdict.FAIL]}, warnings: {counts[Verdict.WARN]}, fine: {counts[Verdict.OK]}")

"""What a user is shown: how to talk to what was started, what runs, and its logs."""

from __future__ import annotations

import json
import shlex
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from scripts.log_follow import follow
from scripts.readiness import is_ready
from scripts.supervisor_client import ProcessState, Supervisor
from scripts.supervisor_config import Program, edge_url, engine_section, nginx_url

from vllm_proxy.common.settings import ConfigError, LoadedSettings

DEFAULT_KEY = "sk-default-key-change-me"


def show_welcome(loaded: LoadedSettings, wanted: Sequence[Program], keys_are_new: bool, seconds: float) -> None:
    """How to talk to what was started. `keys_are_new`: this start made the keys file."""
    keys_file = loaded.settings.api_keys_file
    keys = _keys(loaded.root / keys_file)
    admin_key = next((key for key, user in keys if user == "admin"), "") if keys_are_new else ""
    if not any(program.name == "edge" for program in wanted):
        print(f"up after {seconds:.0f} s: {', '.join(program.name for program in wanted)}", flush=True)
        if admin_key:
            print(_admin_line(admin_key, keys_file), flush=True)
        return
    url = edge_url(loaded.settings)
    key = _first_key(keys)
    model = _first_model(url, key)
    # A key of the user's own is not printed: terminals are recorded.
    shown_key, where = (key, f"(replace it: {keys_file})") if key == DEFAULT_KEY else ("$KEY", f"(one of {keys_file})")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": model or "MODEL", "messages": question, "max_tokens": 64})
    print(
        f"\nvLLM Proxy is up after {seconds:.0f} s",
        f"  URL    {url}/v1",
        *([f"  nginx  {nginx_url(loaded.settings)}/v1"] if any(p.name == "nginx" for p in wanted) else []),
        f"  Key    {shown_key} {where}",
        *([_admin_line(admin_key, keys_file)] if admin_key else []),
        f"  Model  {model or 'none: see make status'}",
        "\nTry it:",
        f"  curl {url}/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {shown_key}" -H "Content-Type: application/json" \\',
        f"    -d {shlex.quote(body)}",
        "\nSee also: make status, make logs SERVICE=edge, make stop\n",
        sep="\n",
        flush=True,
    )


def _admin_line(key: str, keys_file: Path) -> str:
    return f"  Admin  {key} (shown this once; it is in {keys_file})"


def show_status(loaded: LoadedSettings, wanted: Sequence[Program]) -> int:
    """Prints a row per process. Returns 0 if all of them answer, else 3."""
    supervisor = Supervisor(loaded)
    processes = supervisor.processes() if supervisor.is_running() else []
    all_good = True
    print(f"{'SERVICE':<16} {'STATE':<10} {'PID':>8} {'UP':>9}  LOG")
    for program in wanted:
        mine: list[ProcessState | None] = [p for p in processes if p.service == program.name]
        answers = any(p is not None and p.is_up for p in mine) and is_ready(program)
        all_good = all_good and answers
        # A running supervisor may have been started with another number of workers.
        for process, log in zip(mine or [None] * program.processes, program.log_names, strict=False):
            print(_row(process, program, loaded.settings.logs.dir / log, answers))
    if not processes and (left := supervisor.leftovers()):
        print(f"\nThe supervisor is gone and left {len(left)} processes; `make stop` ends them.")
    print(f"\nedge: {edge_url(loaded.settings)}")
    return 0 if all_good else 3


def follow_logs(loaded: LoadedSettings, programs: Sequence[Program], name: str, lines: int) -> int:
    """Prints the last lines of a service's log and what follows, until Ctrl-C. Raises ConfigError for another name."""
    logs = log_files(loaded, programs, name)
    if absent := [str(path.relative_to(loaded.root)) for path in logs.values() if not path.exists()]:
        are = "is" if len(absent) == 1 else "are"
        print(f"{', '.join(absent)} {are} not there yet; waiting", file=sys.stderr, flush=True)
    follow(logs, until=lambda: False, last_lines=lines)
    return 0


def log_files(loaded: LoadedSettings, programs: Sequence[Program], name: str) -> dict[str, Path]:
    """Logs by the label of their lines: of a service, of an engine's own output (`vllm`), of `supervisord`, or `all`.

    A log's own name (`fastapi`) will do too. Raises ConfigError for a name that there is not.
    """
    folder = loaded.root / loaded.settings.logs.dir
    services = {
        program.name: {
            log.removesuffix(".log") if program.processes > 1 else program.name: folder / log
            for log in program.log_names
        }
        for program in programs
    }
    for program in programs:
        if program.error_log:
            services[program.name][f"{program.name}-error"] = folder / program.error_log
    kinds = [program.engine for program in programs]
    for program in programs:
        section = engine_section(loaded.settings, program)
        if program.engine and section is not None and section.launch_mode != "attached":
            label = program.engine if kinds.count(program.engine) == 1 else f"{program.host}-engine"
            services[label] = {label: loaded.root / section.log_file}
    if name == "all":
        return {label: path for logs in services.values() for label, path in logs.items()}
    services["supervisord"] = {"supervisord": folder / "supervisord.log"}
    if name in services:
        return services[name]
    by_file = {label: path for logs in services.values() for label, path in logs.items() if path.stem == name}
    if by_file or name == "fastapi":
        return by_file or services["edge"]
    raise ConfigError(f"SERVICE={name}: there is {', '.join(sorted(services))}, all")


def _row(process: ProcessState | None, program: Program, log: Path, answers: bool) -> str:
    if process is None or not process.is_up:
        state = "stopped" if process is None or process.state == "STOPPED" else process.state.lower()
        return f"{program.name:<16} {state:<10} {'-':>8} {'-':>9}  {log}"
    state = "serving" if answers else "not ready" if process.state != "STOPPING" else "stopping"
    up_s = max(0, int(time.time()) - process.started_at)
    up = f"{up_s // 3600}:{up_s // 60 % 60:02}:{up_s % 60:02}"
    return f"{process.name:<16} {state:<10} {process.pid:>8} {up:>9}  {log}"


def _keys(path: Path) -> list[tuple[str, str]]:
    """(key, user) of the enabled entries that are not declared by their hash alone."""
    try:
        rows = json.loads(path.read_text())["keys"]
        return [(str(r["key"]), str(r.get("user", ""))) for r in rows if r.get("enabled", True) and r.get("key")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _first_key(keys: Sequence[tuple[str, str]]) -> str:
    """The default key if it is still there, else the first; empty if there is none."""
    names = [key for key, _ in keys]
    return DEFAULT_KEY if DEFAULT_KEY in names else next(iter(names), "")


def _first_model(url: str, key: str) -> str:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""

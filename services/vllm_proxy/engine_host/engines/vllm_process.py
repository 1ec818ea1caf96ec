"""The processes of an in-process vLLM: their environment, their output, and that none outlives its host."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from vllm_proxy.common.settings import Vllm
from vllm_proxy.engine_host.engines.vllm_worker import OWNER_VARIABLE, PLUGIN_NAME

log = logging.getLogger(__name__)

#: Set unless the user did.
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_COLOR": "0",
    # Process titles would overwrite /proc/PID/environ, which leftovers are found by.
    "SPT_NOENV": "1",
}
#: How much of the end of a log is looked through for a cause.
_TAIL_BYTES = 256 * 1024


def set_environment(vllm: Vllm) -> None:
    """Sets this process's environment for vLLM and its children. Before vLLM is imported, which reads it once."""
    # The host's own counters must not be taken for the edge's, which share files.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.update(vllm.extra_env)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    plugins = [p for p in os.environ.get("VLLM_PLUGINS", "").split(",") if p]
    resolver = vllm.lora.runtime_resolver
    if vllm.lora.enabled:
        plugins += [p for p in resolver.plugins if p not in plugins]
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1" if resolver.allow_runtime_updates else "0"
        if "lora_filesystem_resolver" in plugins:
            resolver.cache_dir.mkdir(parents=True, exist_ok=True)
            os.environ["VLLM_LORA_RESOLVER_CACHE_DIR"] = str(resolver.cache_dir.resolve())
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins, PLUGIN_NAME]))
    os.environ[OWNER_VARIABLE] = own_mark()


def own_mark() -> str:
    """This process as OWNER_VARIABLE names it; a process id alone may be used again."""
    return f"{os.getpid()}:{_start_time(os.getpid())}"


def reap_leftovers() -> list[int]:
    """Kills engine processes whose host is dead; returns their ids. Blocks for up to five seconds."""
    return _kill(lambda mark: not _alive(mark))


def reap_own() -> list[int]:
    """Kills what is left of this process's engine."""
    own = own_mark()
    return _kill(lambda mark: mark == own)


def _kill(wanted: Callable[[str], bool]) -> list[int]:
    found = [pid for pid, mark in _marked() if wanted(mark)]
    for pid in found:
        _signal(pid)
    deadline = time.monotonic() + 5
    while any(_running(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _marked() -> list[tuple[int, str]]:
    """Every process that carries OWNER_VARIABLE, this one excepted."""
    prefix = OWNER_VARIABLE.encode() + b"="
    marked = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # another user's, or gone
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(prefix):
                marked.append((int(entry.name), variable.removeprefix(prefix).decode(errors="replace")))
    return marked


def _alive(mark: str) -> bool:
    pid, _, started = mark.partition(":")
    return pid.isdigit() and _start_time(int(pid)) == started


def _running(pid: int) -> bool:
    state = _stat(pid)
    return state is not None and state[0] != "Z"


def _start_time(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields else None


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _without_vllm_fields(record: logging.LogRecord) -> bool:
    """vLLM's record factory adds this field to every record of the process; ours are no business of it."""
    vars(record).pop("vllm_process_name", None)
    return True


class EngineOutput:
    """Sends what vLLM and its children print to a file, and keeps this process's JSON log where it was.

    Children inherit file descriptors 1 and 2, so these are what is turned round; log handlers that write to standard
    error get a private copy of the old one.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._stream: TextIO | None = None

    def redirect(self) -> None:
        if self._stream is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rotate()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        self._stream = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(self._stream)
                handler.addFilter(_without_vllm_fields)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
        logging.logProcesses = logging.logMultiprocessing = True  # vLLM's own format names the process

    def release(self) -> None:
        """Gives Python's standard error back to the host. The descriptors stay: native libraries print at exit."""
        if self._stream is not None:
            sys.stderr.flush()
            sys.stderr = self._stream

    def rotate(self) -> None:
        """Copies the file away and empties it if it is too large: several processes append to it. Blocks."""
        try:
            if self.path.stat().st_size < self._max_bytes:
                return
        except FileNotFoundError:
            return
        for number in range(self._backups - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        if self._backups:
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
        os.truncate(self.path, 0)

    def size_bytes(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def cause(self, since_bytes: int = 0) -> str:
        """The likeliest cause of a death: the last line that names an error, without its prefix. May be empty."""
        for line in reversed(self._lines(since_bytes)):
            text = line.rpartition("] ")[2].strip() if "ERROR" in line else line.strip()
            head = text.partition(":")[0].rpartition(".")[2]
            named = head.isidentifier() and (head.endswith(("Error", "Exception")) or head == "Killed")
            if named and not text.startswith("RuntimeError: Engine core initialization failed"):
                return text[:500]
        return ""

    def last_line(self, since_bytes: int = 0) -> str:
        lines = self._lines(since_bytes)
        return lines[-1].rpartition("] ")[2].strip()[:200] if lines else ""

    def _lines(self, since_bytes: int) -> list[str]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - _TAIL_BYTES, min(since_bytes, size)))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()]

"""The pid files: whether each names a process of this installation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vllm_proxy.cli.doctor.check import Finding, Site, ok, warn
from vllm_proxy.cli.doctor.processes import process

_FIX = "scripts/stop.sh ends what is left and a start writes them anew; nothing is ever stopped by a stale one"


def pid_files(site: Site) -> Iterator[Finding]:
    good = 0
    for path in sorted(_files(site)):
        try:
            pid = int(path.read_text().split()[0])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, IndexError):
            yield warn(f"{path} does not hold a process id", f"rm {path}")
            continue
        found = process(pid)
        if found is None:
            yield warn(f"{path} is stale: process {pid} has ended", _FIX)
        elif not found.is_ours(site.loaded.root, "vllm", "sglang"):
            yield warn(f"{path} is stale: process {pid} is {found} now", _FIX)
        else:
            good += 1
    yield ok(f"{good} pid files, each of a process that lives" if good else "nothing runs under a pid file")


def _files(site: Site) -> set[Path]:
    settings = site.settings
    found = set(settings.pid_dir.glob("*.pid"))
    for name, spec in settings.hosts().items():
        section = settings.for_host(name).section(spec.engine)
        if section is not None and section.launch_mode == "cli":
            found.add(section.pid_file)
    return found

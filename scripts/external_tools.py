"""Programs that this project runs but does not contain: nginx in front of it, Prometheus beside it.

The machine's own where there is one, else Debian's package with the libraries that it needs, unpacked under
.cache/tools/. Nothing is installed system-wide, and no root is needed.

    python3 -m scripts.external_tools nginx prometheus
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "tools"
#: The Debian package that holds a program, where it is not called like it.
PACKAGES = {"promtool": "prometheus"}
NAMES = ("nginx", "prometheus", "promtool", "logrotate", "openssl")
PROGRAM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
APT_TIMEOUT_S = 300


class ToolMissing(Exception):
    """It can be had neither here nor from Debian. The message says why."""


def find(name: str) -> Path | None:
    """The machine's own program, else the one that was fetched."""
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), *PROGRAM_FOLDERS))
    if found := shutil.which(name, path=search):
        return Path(found)
    fetched = CACHE / "bin" / name
    return fetched if fetched.exists() else None


def find_or_fetch(name: str) -> Path:
    """Raises ToolMissing."""
    return find(name) or fetch(name)


def fetch(name: str) -> Path:
    """Unpacks Debian's package of a program into the cache. Raises ToolMissing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolMissing(f"{name} is not installed, and this is no Debian whose package could be unpacked")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = CACHE / "bin" / name
        if not target.exists():
            _unpack(name, target)
        return target


def _unpack(name: str, target: Path) -> None:
    package = PACKAGES.get(name, name)
    folder = CACHE / package
    program = _program_in(folder, name)
    if program is None:
        _apt("update")
        _download_into(folder, [package])
        program = _program_in(folder, name)
    if program is None:
        raise ToolMissing(f"Debian's package {package} holds no program {name}")
    if _lacks_libraries(program):
        _download_into(folder, _library_packages(package))
    libraries = os.pathsep.join(str(p) for p in sorted(folder.glob("**/lib/*-linux-*")) if p.is_dir())
    if _lacks_libraries(program, libraries):
        raise ToolMissing(f"{name}: libraries that it needs are in no package that it names")
    target.parent.mkdir(exist_ok=True)
    scratch = target.with_name(f".{name}.new")
    search = f'LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}" ' if libraries else ""
    scratch.write_text(f'#!/bin/sh\n{search}exec "{program}" "$@"\n')
    scratch.chmod(0o755)
    scratch.replace(target)


def _program_in(folder: Path, name: str) -> Path | None:
    return next((path for path in sorted(folder.glob(f"usr/*bin/{name}")) if path.is_file()), None)


def _download_into(folder: Path, packages: Sequence[str]) -> None:
    downloads = CACHE / "downloads"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir()
    _apt("download", *packages, cwd=downloads)
    for archive in downloads.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(archive), str(folder)])
    shutil.rmtree(downloads)


def _library_packages(package: str) -> list[str]:
    """The libraries that a package depends on, but for the C library, which is there."""
    words = _apt_tool("apt-cache", "depends", "--important", package).split()
    names = {word for before, word in itertools.pairwise(words) if before.endswith("Depends:")}
    return sorted(n for n in names if n.startswith(("lib", "zlib")) and not n.startswith(("libjs-", "libc6")))


def _lacks_libraries(program: Path, search: str = "") -> bool:
    said = subprocess.run(
        ["ldd", str(program)], env={**os.environ, "LD_LIBRARY_PATH": search}, capture_output=True, text=True
    )
    return "not found" in said.stdout


def _apt(action: str, *arguments: str, cwd: Path | None = None) -> None:
    _apt_tool("apt-get", "-qq", action, *arguments, cwd=cwd)


def _apt_tool(command: str, *arguments: str, cwd: Path | None = None) -> str:
    """apt with lists and caches of our own, so that the machine's are neither needed nor changed."""
    state = CACHE / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    options = (
        f"Dir::State={state / 'state'}",
        "Dir::State::status=/var/lib/dpkg/status",
        f"Dir::Cache={state / 'cache'}",
        "APT::Sandbox::User=root",
        "APT::Get::List-Cleanup=0",
    )
    return _run([command, *(part for option in options for part in ("-o", option)), *arguments], cwd)


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ToolMissing(f"{command[0]} took longer than {APT_TIMEOUT_S} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ToolMissing(f"{command[0]} failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="external_tools", description="Fetches programs that are not installed.")
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    for name in parser.parse_args().names:
        try:
            print(f"{name}: {find_or_fetch(name)}")
        except ToolMissing as e:
            print(f"{name}: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

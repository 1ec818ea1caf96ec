"""The folders that are written to: whether they can be, and whether their disks have room."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from vllm_proxy.cli.doctor.check import Finding, Site, fail, ok, warn

_MIB = 1024 * 1024
#: Of a disk; less is worth a warning.
_LOW_SHARE = 0.03


def writable(site: Site) -> Iterator[Finding]:
    good = 0
    for setting, folder in _folders(site):
        if fault := _fault(folder):
            yield fail(
                f"{folder} ({setting}) cannot be written to: {fault}",
                f"make it a folder that the user of the services may write to (mkdir -p, chown, a mount that is not "
                f"read-only), or set {setting} to another",
            )
        else:
            good += 1
    if good:
        yield ok(f"{good} folders can be written to")
    run_dir = site.settings.run_dir
    if run_dir.is_dir() and os.geteuid() not in (0, run_dir.stat().st_uid):
        owner = _user(run_dir.stat().st_uid)
        yield warn(
            f"the services belong to {owner}: what {_user(os.geteuid())} sees of them is not all there is",
            f"sudo -u {owner} scripts/vllm-proxy doctor",
        )


def disk_space(site: Site) -> Iterator[Finding]:
    seen: set[int] = set()
    for setting, folder in _folders(site):
        there = _nearest(folder)
        try:
            device, disk = there.stat().st_dev, os.statvfs(there)
        except OSError:
            continue  # `writable` says so
        if device in seen:
            continue
        seen.add(device)
        free_bytes = disk.f_bavail * disk.f_frsize
        room = f"{free_bytes // _MIB:,} MiB free on the disk of {folder} ({setting})"
        fix = (
            "make room: `POST /admin/clean-logs?days=7` and logs.max_bytes for logs (docs/LOG_ROTATION.md), "
            f"auth.ledger_retention_days for the ledger, or move {setting} to another disk"
        )
        if free_bytes < site.min_free_bytes:
            yield fail(f"only {room}", fix)
        elif disk.f_files and not disk.f_favail:
            yield fail(f"no inode is free on the disk of {folder} ({setting})", fix)
        elif free_bytes < _LOW_SHARE * disk.f_blocks * disk.f_frsize:
            yield warn(f"only {room}", fix)
        else:
            yield ok(room)


def _folders(site: Site) -> Iterator[tuple[str, Path]]:
    settings = site.settings
    yield "logs.dir", settings.logs.dir
    if settings.auth.store.startswith("sqlite:"):
        yield "auth.store", Path(settings.auth.store.removeprefix("sqlite:")).parent
    yield "router.state_file", settings.router.state_file.parent
    yield "pid_dir", settings.pid_dir
    yield "run_dir", settings.run_dir


def _fault(folder: Path) -> str:
    """Why no file could be made there; empty if one could."""
    there = _nearest(folder)
    if not there.is_dir():
        return f"{there} is not a folder"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return "the file system is mounted read-only"
    try:
        # A file without a name, gone when it is closed: nothing changes.
        os.close(os.open(there, os.O_TMPFILE | os.O_WRONLY, 0o600))
    except OSError as e:
        if e.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):  # no such files on this system
            return "" if os.access(there, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
        return "" if e.errno == errno.ENOSPC else os.strerror(e.errno or 0)
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    path = folder.absolute()
    while not path.exists() and not path.is_symlink() and path != path.parent:
        path = path.parent
    return path

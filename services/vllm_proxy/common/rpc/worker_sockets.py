"""The sockets that edge workers answer on: any number of processes, each with a name of its own in `run_dir`.

A worker holds the lock beside its socket while it lives, so what a killed one left behind is told from what answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "edge-"


def worker_address(run_dir: Path, edge_id: str) -> str:
    """`edge_id` is one that `new_incarnation("edge")` gave."""
    return f"unix:{run_dir}/{edge_id}.sock"


def living_workers(run_dir: Path) -> dict[str, str]:
    """The addresses of the workers that live, by their edge ids."""
    return {path.stem: f"unix:{path}" for path, lives in _sockets(run_dir) if lives}


def remove_worker_socket(address: str) -> None:
    """What a worker leaves when it ends."""
    _remove(Path(address.removeprefix("unix:")))


def sweep_dead_workers(run_dir: Path) -> None:
    """Removes what killed workers left."""
    for path, lives in _sockets(run_dir):
        if not lives:
            _remove(path)


def _sockets(run_dir: Path) -> Iterator[tuple[Path, bool]]:
    # A socket is there only after its lock is held.
    for path in sorted(run_dir.glob(f"{_PREFIX}*.sock")):
        yield path, _is_locked(_lock_of(path))


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:  # somebody else's: left alone
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _remove(path: Path) -> None:
    for each in (path, _lock_of(path)):
        with contextlib.suppress(OSError):
            each.unlink()

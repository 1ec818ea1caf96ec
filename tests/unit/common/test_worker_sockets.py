from __future__ import annotations

import fcntl
from pathlib import Path

from vllm_proxy.common.rpc.worker_sockets import (
    living_workers,
    remove_worker_socket,
    sweep_dead_workers,
    worker_address,
)


def test_a_worker_that_lives_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    for name in ("edge-1-a", "edge-2-b", "edge-3-c", "auth"):
        (tmp_path / f"{name}.sock").touch()
        (tmp_path / f"{name}.sock.lock").touch()
    (tmp_path / "edge-3-c.sock.lock").unlink()
    with (tmp_path / "edge-2-b.sock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert living_workers(tmp_path) == {"edge-2-b": worker_address(tmp_path, "edge-2-b")}
        sweep_dead_workers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            *("edge-2-b.sock", "edge-2-b.sock.lock", "auth.sock", "auth.sock.lock")
        }
        remove_worker_socket(worker_address(tmp_path, "edge-2-b"))
    assert living_workers(tmp_path) == {}


def test_where_nothing_ever_ran_there_is_nobody(tmp_path: Path) -> None:
    assert living_workers(tmp_path / ".run") == {}
    sweep_dead_workers(tmp_path / ".run")

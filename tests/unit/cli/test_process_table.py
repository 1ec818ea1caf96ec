"""Against a made-up /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vllm_proxy.cli import process_table
from vllm_proxy.cli.process_table import Process

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
UPTIME_S = 1000.0


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "uptime").write_text(f"{UPTIME_S} 0\n")
    monkeypatch.setattr(process_table, "PROC", folder)
    return folder


def _add(proc: Path, pid: int, parent: int, *, age_s: float = 10, state: str = "S", command: str = "x") -> Process:
    start = int((UPTIME_S - age_s) * TICKS_PER_S)
    fields = [state, str(parent), *["0"] * 17, str(start), "0"]
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(f"{pid} (a (strange) name) {' '.join(fields)}")
    (proc / str(pid) / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    return Process(pid, start)


def _pid_file(tmp_path: Path, pid: int, age_s: float) -> Path:
    path = tmp_path / "service.pid"
    path.write_text(f"{pid}\n")
    written_at = time.time() - age_s
    os.utime(path, (written_at, written_at))
    return path


def test_descendants_of_every_depth(proc: Path):
    root, child, grandchild = _add(proc, 10, 1), _add(proc, 11, 10), _add(proc, 12, 11)
    _add(proc, 20, 1)
    assert process_table.with_descendants([root]) == {root, child, grandchild}


def test_a_pid_that_was_used_again_is_another_process(proc: Path):
    old = Process(10, 5)
    _add(proc, 10, 1)
    assert not process_table.is_alive(old)
    assert process_table.with_descendants([old]) == set()


def test_a_zombie_has_ended(proc: Path):
    _add(proc, 10, 1, state="Z")
    assert process_table.find(10) is None


def test_a_process_lives_as_long_as_its_last_thread(proc: Path):
    _add(proc, 10, 1, state="Z")
    for thread in (10, 11):
        (proc / "10" / "task" / str(thread)).mkdir(parents=True)
    assert process_table.find(10) is not None


def test_a_pid_file_names_its_process(proc: Path, tmp_path: Path):
    process = _add(proc, 10, 1, age_s=60, command="python -m vllm_proxy.auth")
    assert process_table.owner(_pid_file(tmp_path, 10, age_s=60)) == process


def test_a_stale_pid_file_names_nobody(proc: Path, tmp_path: Path):
    _add(proc, 10, 1, age_s=5, command="python -m vllm_proxy.auth")
    assert process_table.owner(_pid_file(tmp_path, 10, age_s=60)) is None


def test_a_stranger_that_started_just_then_is_left_alone(proc: Path, tmp_path: Path):
    _add(proc, 10, 1, age_s=60, command="vi notes")
    assert process_table.owner(_pid_file(tmp_path, 10, age_s=60)) is None


@pytest.mark.parametrize("text", ["", "abc", "99999"])
def test_a_pid_file_without_a_process(proc: Path, tmp_path: Path, text: str):
    path = tmp_path / "service.pid"
    path.write_text(text)
    assert process_table.owner(path) is None

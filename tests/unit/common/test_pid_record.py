from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.wait import wait_until

from vllm_proxy.common import pid_record
from vllm_proxy.common.pid_record import PidRecord


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A leader that ignores SIGTERM and a child of it, in a group of their own."""
    leader = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60 & wait"], start_new_session=True)
    yield leader
    leader.kill()
    leader.wait()


def record_of(process: subprocess.Popen[bytes]) -> PidRecord:
    record = pid_record.record_of(process.pid, "digest")
    assert record is not None
    return record


def test_written_and_read(tmp_path: Path, family: subprocess.Popen[bytes]) -> None:
    record = record_of(family)
    record.write(tmp_path / "below" / "x.pid")
    assert pid_record.read(tmp_path / "below" / "x.pid") == record
    assert record.is_alive


@pytest.mark.parametrize("text", ["", "1", "1 2", "a b c", "1 2 3 4"])
def test_another_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pid").write_text(text)
    assert pid_record.read(tmp_path / "x.pid") is None
    assert pid_record.read(tmp_path / "absent") is None


def test_a_later_process_of_the_same_id_is_another(family: subprocess.Popen[bytes]) -> None:
    other = dataclasses.replace(record_of(family), start_ticks=1)
    assert not other.is_alive and other.group() == []


def test_ending_takes_the_whole_group_the_hard_way_if_need_be(family: subprocess.Popen[bytes]) -> None:
    record = record_of(family)
    wait_until(lambda: len(record.group()) == 2, "the child")
    record.end(patience_s=0.1)
    assert record.group() == [] and family.wait(5) == -9


def test_what_a_dead_leader_left_is_found(family: subprocess.Popen[bytes]) -> None:
    record = record_of(family)
    wait_until(lambda: len(record.group()) == 2, "the child")
    family.kill()
    family.wait()
    assert not record.is_alive and len(record.group()) == 1
    record.end(patience_s=0.1)
    assert record.group() == []


def test_a_process_that_is_not_there() -> None:
    assert pid_record.record_of(2**22 + os.getpid(), "") is None

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_proxy.cli.log_follow import FollowedLog, FollowedLogs, end_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.log"


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_whole_lines_only(path: Path):
    _append(path, "one\ntw")
    log = FollowedLog(path)
    assert log.new_lines() == [b"one"]
    _append(path, "o\nthree\n")
    assert log.new_lines() == [b"two", b"three"]
    assert log.new_lines() == []
    log.close()


def test_a_file_that_comes_later(path: Path):
    log = FollowedLog(path)
    assert log.new_lines() == []
    _append(path, "first\n")
    assert log.new_lines() == [b"first"]
    log.close()


def test_rotation_loses_nothing(path: Path):
    _append(path, "old\n")
    log = FollowedLog(path)
    assert log.new_lines() == [b"old"]
    _append(path, "last of the old\n")
    path.rename(path.with_suffix(".log.1"))
    _append(path, "new\n")
    assert log.new_lines() + log.new_lines() == [b"last of the old", b"new"]
    log.close()


def test_a_file_that_was_cut_off(path: Path):
    _append(path, "a long line that is there\n")
    log = FollowedLog(path, from_bytes=path.stat().st_size)
    assert log.new_lines() == []
    path.write_text("new\n")
    assert log.new_lines() == [b"new"]
    log.close()


def test_several_logs_in_the_order_of_time(tmp_path: Path):
    paths = {name: tmp_path / f"{name}.log" for name in ("auth", "edge")}
    _append(paths["edge"], '{"time":"2026-11-26T10:00:00.000Z","event":"of before"}\n')
    logs = FollowedLogs(paths)
    assert logs.new_lines() == []
    _append(paths["auth"], '{"time":"2026-11-26T10:00:02.000Z","event":"second"}\n')
    _append(paths["edge"], '{"time":"2026-11-26T10:00:01.000Z","event":"first"}\n')
    assert [(line.label, line.fields and line.fields["event"]) for line in logs.new_lines()] == [
        ("edge", "first"),
        ("auth", "second"),
    ]
    logs.close()


@pytest.mark.parametrize(
    ("text", "end"), [("", 0), ("unfinished", 0), ("a\nb\n", 4), ("a\nunfinished", 2), ("a\n" + "x" * 9000, 2)]
)
def test_what_was_read_ends_with_a_whole_line(path: Path, text: str, end: int):
    path.write_text(text)
    assert end_of(path) == end

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.log_follow import FollowedLog, follow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "service.log"


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_whole_lines_only(path: Path):
    _append(path, "one\ntw")
    log = FollowedLog(path)
    assert log.new_lines() == ["one"]
    _append(path, "o\nthree\n")
    assert log.new_lines() == ["two", "three"]
    assert log.new_lines() == []
    log.close()


def test_a_file_that_comes_later(path: Path):
    log = FollowedLog(path)
    assert log.new_lines() == []
    _append(path, "first\n")
    assert log.new_lines() == ["first"]
    log.close()


def test_rotation_loses_nothing(path: Path):
    _append(path, "old\n")
    log = FollowedLog(path)
    assert log.new_lines() == ["old"]
    _append(path, "last of the old\n")
    path.rename(path.with_suffix(".log.1"))
    _append(path, "new\n")
    assert log.new_lines() + log.new_lines() == ["last of the old", "new"]
    log.close()


def test_a_file_that_was_cut_off(path: Path):
    _append(path, "a long line that is there\n")
    log = FollowedLog(path, from_bytes=path.stat().st_size)
    assert log.new_lines() == []
    path.write_text("new\n")
    assert log.new_lines() == ["new"]
    log.close()


@pytest.mark.parametrize(("lines", "shown"), [(0, ""), (1, "c\n"), (2, "b\nc\n"), (9, "a\nb\nc\n")])
def test_the_last_lines_come_first(path: Path, capsys: pytest.CaptureFixture[str], lines: int, shown: str):
    _append(path, "a\nb\nc\n")
    follow({"edge": path}, until=lambda: True, last_lines=lines)
    assert capsys.readouterr().out == shown


def test_several_logs_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("auth", "edge-0"):
        _append(tmp_path / name, f"from {name}\n")
    follow({name: tmp_path / name for name in ("auth", "edge-0")}, until=lambda: True, last_lines=1)
    assert capsys.readouterr().out == "auth   | from auth\nedge-0 | from edge-0\n"

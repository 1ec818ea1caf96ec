from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.unit.common.log_files import folder_of_logs

from vllm_proxy.api.common.v1 import maintenance_pb2 as pb
from vllm_proxy.common.log_folder import LogFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_logs(tmp_path / "logs")


def names(files: Iterable[pb.LogFile]) -> list[str]:
    return [file.name for file in files]


def test_a_service_sees_its_own_files_only(folder: Path) -> None:
    files = LogFolder(folder, ["auth"]).files()
    assert names(files) == ["auth.log", "auth.log.1", "auth.log.2.gz"]
    assert [file.in_use for file in files] == [True, False, False]
    assert {file.size_bytes for file in files} == {10}


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert LogFolder(tmp_path / "none", ["auth"]).files() == []


@pytest.mark.parametrize(
    ("days", "removed"),
    [(0, ["auth.log.1", "auth.log.2.gz"]), (7, ["auth.log.2.gz"]), (10, ["auth.log.2.gz"]), (11, [])],
)
def test_old_rotated_files_are_removed_and_the_one_in_use_never(folder: Path, days: int, removed: list[str]) -> None:
    before = {path.name for path in folder.iterdir()}
    assert names(LogFolder(folder, ["auth"]).clean(days, dry_run=False).removed) == removed
    assert {path.name for path in folder.iterdir()} == before - set(removed)


def test_a_dry_run_removes_nothing(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    assert names(LogFolder(folder, ["auth"]).clean(0, dry_run=True).removed) == ["auth.log.1", "auth.log.2.gz"]
    assert {path.name for path in folder.iterdir()} == before


def test_links_and_folders_are_neither_counted_nor_removed(folder: Path) -> None:
    (folder / "auth.log.3").symlink_to(folder / "notes.txt")
    (folder / "auth.log.4").mkdir()
    logs = LogFolder(folder, ["auth"])
    logs.clean(0, dry_run=False)
    assert names(logs.files()) == ["auth.log"]
    assert (folder / "auth.log.3").is_symlink() and (folder / "notes.txt").exists()


def test_only_what_a_rotation_makes_is_a_rotated_file(folder: Path) -> None:
    rotated = ["auth.log.10", "auth.log-20260101", "auth.log-20260101.gz", "auth.log-20260101-17.zst"]
    for name in [*rotated, "auth.log.1.mine", "auth.log.notes", "auth.log-backup"]:
        (folder / name).touch()
    assert set(names(LogFolder(folder, ["auth"]).clean(0, dry_run=False).removed)) == {
        *("auth.log.1", "auth.log.2.gz"),
        *rotated,
    }


def test_a_file_that_somebody_has_open_stays_and_is_named(folder: Path) -> None:
    logs = LogFolder(folder, ["auth"])
    with (folder / "auth.log.2.gz").open("rb"):
        answer = logs.clean(7, dry_run=False)
        assert (names(answer.removed), names(answer.kept), answer.freed_bytes) == ([], ["auth.log.2.gz"], 0)
        assert [file.name for file in logs.files() if file.in_use] == ["auth.log", "auth.log.2.gz"]
    assert names(logs.clean(7, dry_run=False).removed) == ["auth.log.2.gz"]


def test_an_engines_output_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("engine.out", "engine.out.1", "other.1"):
        (elsewhere / name).write_bytes(b"xyz")
    logs = LogFolder(folder, ["router"], [elsewhere / "engine.out"])
    assert names(logs.files()) == ["router.log.1", str(elsewhere / "engine.out"), str(elsewhere / "engine.out.1")]
    assert names(logs.clean(0, dry_run=False).removed) == ["router.log.1", str(elsewhere / "engine.out.1")]
    assert {path.name for path in elsewhere.iterdir()} == {"engine.out", "other.1"}


def test_a_file_that_is_rotated_meanwhile_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotate() -> set[tuple[int, int]]:
        os.replace(folder / "auth.log.1", folder / "auth.log.2.gz")  # noqa: PTH105 - as the supervisor does
        return set()

    monkeypatch.setattr("vllm_proxy.common.log_folder._open_files", rotate)
    assert names(LogFolder(folder, ["auth"]).clean(7, dry_run=False).removed) == []
    assert (folder / "auth.log.2.gz").exists()


def test_what_cannot_be_removed_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    answer = LogFolder(folder, ["auth"]).clean(7, dry_run=False)
    assert (names(answer.removed), list(answer.problems)) == ([], ["auth.log.2.gz: Permission denied"])

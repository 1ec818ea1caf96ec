"""Logs: when a line was written, what a person reads, rotated files, the story of one request."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_proxy.cli import main as cli
from vllm_proxy.cli.log_history import rotated
from vllm_proxy.cli.log_lines import LineReader, for_people, names

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "config.yaml").write_text("engine_hosts: {sim: {engine: sim}}\n")
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cli.main(["--config", "config.yaml", "logs", *arguments])


def a_line(second: int, event: str = "request", level: str = "INFO", **fields: Any) -> str:
    return json.dumps({"time": f"2026-11-26T10:00:{second:02}.000Z", "level": level, "event": event, **fields}) + "\n"


def write(name: str, *lines: str) -> Path:
    path = Path("logs", name)
    text = "".join(lines).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def events(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line).get("event", "text") for line in capsys.readouterr().out.splitlines()]


def test_all_services_in_the_order_of_time(run: Run, capsys: pytest.CaptureFixture[str]):
    write("auth.log", a_line(1, "one"), a_line(4, "four"))
    write("fastapi.log", a_line(2, "two"), a_line(3, "three"))
    assert run("--json") == 0
    assert events(capsys) == ["one", "two", "three", "four"]
    assert run("all", "--lines", "2", "--json") == 0
    assert events(capsys) == ["three", "four"]
    assert run("edge", "--json") == 0
    assert events(capsys) == ["two", "three"]


def test_rotated_files_come_first_the_oldest_foremost(run: Run, capsys: pytest.CaptureFixture[str]):
    now = time.time()
    for age, (name, line) in enumerate(
        [
            ("auth.log", a_line(4, "four")),
            ("auth.log.1", a_line(3, "three")),
            ("auth.log.2.gz", a_line(2, "two")),
            ("auth.log-20261126.gz", a_line(1, "one")),
        ]
    ):
        os.utime(write(name, line), (now - age, now - age))
    write("auth.log.old-notes", a_line(9, "not a log"))
    write("auth.logs", a_line(9, "not a log"))
    assert run("auth", "--json", "--lines", "3") == 0
    assert events(capsys) == ["two", "three", "four"]
    assert run("auth", "--json", "--since", "2026-11-26T10:00:02") == 0
    assert events(capsys) == ["two", "three", "four"]
    assert [path.name for path in rotated(Path("logs/auth.log"))][-1] == "auth.log"


def test_one_requests_story_has_what_other_services_call_it(run: Run, capsys: pytest.CaptureFixture[str]):
    write("auth.log", a_line(1, "admitted", request_id="r-1", lease_id="L9"), a_line(5, "lapsed", lease_id="L9"))
    write("engine-sim.log", a_line(3, request_id="r-1", engine_request_id="e7"), a_line(3, request_id="r-11"))
    write("fastapi.log.1", a_line(4, request_id="r-1", status=200), a_line(4, "other", request_id="r-2", model="r-1 x"))
    assert run("--request-id", "r-1", "--json") == 0
    assert events(capsys) == ["admitted", "request", "request", "lapsed"]
    assert run("--request-id", "r-1") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].split() == ["2026-11-26T10:00:04.000Z", "edge", "INFO", "request", "status=200"]


def test_a_request_that_no_log_names(run: Run, capsys: pytest.CaptureFixture[str]):
    write("auth.log", a_line(1))
    assert run("--request-id", "nobody") == 1
    assert "no log here names the request nobody" in capsys.readouterr().err


def test_only_what_is_bad(run: Run, capsys: pytest.CaptureFixture[str]):
    write("auth.log", a_line(1, "fine"), a_line(2, "odd", "WARNING"), a_line(3, "bad", "ERROR"))
    assert run("auth", "--level", "warning", "--json") == 0
    assert events(capsys) == ["odd", "bad"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "there is auth, edge, engine-sim, router, supervisord, all"),
        (["--lines", "abc"], "--lines (TAIL): abc: must be a number"),
    ],
)
def test_what_is_wrong_is_one_line(run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_logs_that_are_not_there(run: Run, capsys: pytest.CaptureFixture[str]):
    assert run("edge") == 0
    assert capsys.readouterr() == ("", "logs/fastapi.log is not there yet\n")


def test_text_has_the_time_that_it_says_or_that_of_the_line_before(monkeypatch: pytest.MonkeyPatch):
    reader = LineReader("vllm")
    year = time.localtime().tm_year
    lines = [
        reader.read(raw)
        for raw in (
            b"loading",
            b"\x1b[36m(EngineCore pid=7)\x1b[0m INFO 01-02 03:04:05 [core.py:58] ready",
            b"Traceback (most recent call last):",
            b"[2026-03-04 05:06:07] WARNING: slow",
            b"2026-03-04 05:06:08,250 INFO spawned: 'auth'",
            b"2026/03/04 05:06:09 [error] 7#7: refused",
        )
    ]
    local = [time.localtime(line.at)[:6] for line in lines[1:]]
    assert lines[0].at == 0
    assert local[0][1:] == (1, 2, 3, 4, 5)
    assert local[0][0] in (year, year - 1)
    assert local[1] == local[0]
    assert local[2:] == [(2026, 3, 4, 5, 6, 7), (2026, 3, 4, 5, 6, 8), (2026, 3, 4, 5, 6, 9)]
    assert lines[4].at % 1 == 0.25
    assert [line.level for line in lines] == ["", "INFO", "INFO", "WARNING", "INFO", "ERROR"]
    assert lines[1].text == "(EngineCore pid=7) INFO 01-02 03:04:05 [core.py:58] ready"


def test_what_a_client_sent_does_not_steer_the_terminal():
    line = LineReader("edge").read(a_line(1, model="\x1b]0;owned\x07", detail="two words", traceback="a\nb").encode())
    _, _, text = for_people(line)
    assert text == 'request model="\\u001b]0;owned\\u0007" detail="two words"\n    a\n    b'


def test_an_id_is_a_whole_word():
    line = LineReader("vllm").read(b"Added request chatcmpl-12ab to the batch")
    assert names(line, {"chatcmpl-12ab"})
    assert not names(line, {"12ab"})
    assert not names(line, {"chatcmpl-12"})


def test_the_last_start_is_used_while_the_file_is_broken(run: Run, capsys: pytest.CaptureFixture[str]):
    from vllm_proxy.cli import last_start
    from vllm_proxy.common.settings import load_settings

    last_start.save(load_settings(Path("config.yaml")))
    write("engine-sim.log", a_line(1, "kept"))
    Path("config.yaml").write_text("frobnicate: 1\n")
    assert run("engine-sim", "--json") == 0
    shown = capsys.readouterr()
    assert "frobnicate: unknown key; using the configuration of the last start" in shown.err
    assert json.loads(shown.out)["event"] == "kept"

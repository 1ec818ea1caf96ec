from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_proxy.common.logging import JsonFormatter, log_fields, setup_logging


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test run's own logging is put back afterwards."""
    for switch in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, switch, getattr(logging, switch))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_record_is_one_json_line_with_its_extra_fields(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("edge", "INFO")
    logging.getLogger("vllm_proxy.edge.x").info(
        "request", extra={"request_id": "r-1", "status": 200, "path": Path("/a")}
    )
    (line,) = lines(capsys)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "service": "edge",
        "logger": "vllm_proxy.edge.x",
        "event": "request",
        "request_id": "r-1",
        "status": 200,
        "path": "/a",
    }


def test_a_line_break_in_a_message_stays_inside_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("edge", "INFO")
    logging.getLogger("x").warning("two\nlines %s", "and\nmore", extra={"detail": "a\nb"})
    (line,) = lines(capsys)
    assert (line["event"], line["detail"]) == ("two\nlines and\nmore", "a\nb")


def test_an_exception_brings_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("auth", "INFO")
    try:
        raise ValueError("deep")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = lines(capsys)
    assert "ValueError: deep" in line["traceback"]
    assert "test_logging.py" in line["traceback"]


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("auth", "WARNING")
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_a_second_setup_does_not_write_twice(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("auth", "INFO")
    setup_logging("auth", "INFO")
    logging.getLogger("x").info("once")
    assert len(lines(capsys)) == 1


def test_the_time_is_utc_with_milliseconds() -> None:
    record = logging.makeLogRecord({"created": 1.5, "msecs": 500.0, "msg": "m", "levelname": "INFO", "name": "n"})
    assert json.loads(JsonFormatter("auth").format(record))["time"] == "1970-01-01T00:00:01.500Z"


def test_a_line_of_fields_is_the_same_whether_or_not_somebody_else_listens(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("edge", "INFO")
    log = logging.getLogger("vllm_proxy.edge.x")
    fields = {"request_id": "r-1", "status": 200, "host": None}
    log_fields(log, "request", fields)
    logging.getLogger().addHandler(logging.NullHandler())
    log_fields(log, "request", fields)
    alone, beside = lines(capsys)
    for line in (alone, beside):
        assert line.pop("time").endswith("Z")
    assert alone == beside
    assert alone["event"] == "request"
    logging.getLogger().setLevel("WARNING")
    log_fields(log, "request", fields)
    assert lines(capsys) == []

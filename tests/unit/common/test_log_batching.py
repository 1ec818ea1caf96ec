"""Lines leave together, in order, and never late where it matters."""

from __future__ import annotations

import asyncio
import io
import logging
import threading

import pytest

from vllm_proxy.common.logging import JsonFormatter, LineHandler, log_fields


class Stream(io.StringIO):
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)

    @property
    def events(self) -> list[str]:
        return [line.partition('"event":"')[2].partition('"')[0] for line in self.getvalue().splitlines()]


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def log(stream: Stream) -> logging.Logger:
    log = logging.Logger("a", logging.INFO)
    log.addHandler(LineHandler(stream, JsonFormatter("s")))
    return log


def test_outside_a_loop_a_line_is_written_at_once(stream: Stream, log: logging.Logger) -> None:
    log.info("one")
    assert stream.events == ["one"]


async def test_lines_of_one_turn_are_one_write(stream: Stream, log: logging.Logger) -> None:
    for number in range(100):
        log_fields(log, str(number), {"n": number})
    assert stream.writes == 0
    await asyncio.sleep(0)
    assert stream.writes == 1
    assert stream.events == [str(number) for number in range(100)]


async def test_a_warning_takes_what_waits_along_at_once(stream: Stream, log: logging.Logger) -> None:
    log.info("first")
    log.warning("second")
    assert stream.events == ["first", "second"]
    log.info("third")
    await asyncio.sleep(0)
    assert stream.events == ["first", "second", "third"]


async def test_another_thread_waits_for_nobodys_loop(stream: Stream, log: logging.Logger) -> None:
    thread = threading.Thread(target=log.info, args=("elsewhere",))
    thread.start()
    thread.join()
    assert stream.events == ["elsewhere"]


async def test_what_waits_at_the_end_is_flushed(stream: Stream, log: logging.Logger) -> None:
    log.info("last")
    log.handlers[0].flush()
    assert stream.events == ["last"]
    log.info("again")
    await asyncio.sleep(0)
    assert stream.events == ["last", "again"]

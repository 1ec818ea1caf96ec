"""JSON lines on standard error, one canonical line per request and service.

A supervisor owns files and rotation. Never log a prompt or a key; name keys by `key_id`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from contextlib import nullcontext
from typing import Any, TextIO

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, service, logger, event, then the record's `extra` fields.

    A record made by `log_fields` carries them in one piece.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service
        #: The last whole second and its text: under load many lines share one.
        self._second = (-1, "")
        #: By logger and event: what stands between the time and the fields of a line of `log_fields`.
        self._middles: dict[tuple[str, str], str] = {}

    def _time(self, created: float) -> str:
        second = int(created)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{int((created - second) * 1000):03d}Z"

    def line(self, created: float, logger: str, event: str, fields: dict[str, Any]) -> str:
        """The line of `log_fields`: at least one field, and none of the names above."""
        if (middle := self._middles.get((logger, event))) is None:
            head = {"level": "INFO", "service": self._service, "logger": logger, "event": event}
            middle = self._middles[logger, event] = f'","{orjson.dumps(head).decode()[2:-1]},'
        return f'{{"time":"{self._time(created)}{middle}{orjson.dumps(fields, default=str).decode()[1:]}'

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, _FieldsRecord):
            return self.line(record.created, record.name, record.msg, record.fields)
        line: dict[str, Any] = {
            "time": self._time(record.created),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update((k, v) for k, v in record.__dict__.items() if k not in _STANDARD)
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of one turn of the event loop with one system call; a warning, and whatever is logged outside
    a loop, at once."""

    def __init__(self, stream: TextIO, formatter: JsonFormatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._formatter = formatter
        self._lines: list[str] = []
        #: Where `flush` is due to be called.
        self._due_in: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        self._written(urgent=record.levelno >= logging.WARNING)

    def emit_fields(self, logger: str, event: str, fields: dict[str, Any]) -> None:
        """`emit` for a line of `log_fields`, without a record."""
        self._lines.append(self._formatter.line(time.time(), logger, event, fields))
        self._written(urgent=False)

    def _written(self, *, urgent: bool) -> None:
        # get_running_loop without the exception; asyncio documents it for code like this.
        loop = None if urgent else asyncio._get_running_loop()
        if loop is None:
            self.flush()
        elif self._due_in is not loop:
            self._due_in = loop
            loop.call_soon(self.flush)

    def flush(self) -> None:
        with self.lock or nullcontext():
            self._due_in = None
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
            super().flush()


#: What records at INFO have in common. Any handler's formatter may ask for any of it.
_COMMON = {**vars(logging.makeLogRecord({})), "levelno": logging.INFO, "levelname": "INFO"}


class _FieldsRecord(logging.LogRecord):
    """A record at INFO that has `fields`. Copying what is common costs a fraction of LogRecord's own start."""

    fields: dict[str, Any]

    def __init__(self, name: str, event: str, fields: dict[str, Any]) -> None:
        attributes = self.__dict__
        attributes.update(_COMMON)
        created = time.time()
        attributes.update(name=name, msg=event, created=created, msecs=created % 1 * 1000, fields=fields)


def log_fields(log: logging.Logger, event: str, fields: dict[str, Any]) -> None:
    """`log.info(event, extra=fields)` at a fraction of its cost, for the line that every request writes."""
    if not log.isEnabledFor(logging.INFO):
        return
    handlers = logging.root.handlers
    if len(handlers) == 1 and type(handler := handlers[0]) is LineHandler:
        handler.emit_fields(log.name, event, fields)
    else:
        # Somebody else listens too, as tests do.
        log.handle(_FieldsRecord(log.name, event, fields))


def setup_logging(service: str, level: str) -> None:
    """Sends all of this process's logging through JsonFormatter. `level` is a name of the logging module."""
    # No line shows these; a third of a line's cost is collecting them (the logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = LineHandler(sys.stderr, JsonFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("grpc").setLevel("ERROR")
    logging.getLogger("asyncio").setLevel("WARNING")
    logging.captureWarnings(True)

"""Lines of logs: when each was written, what it says, and how a person likes to read it.

Services and nginx write JSON; engines and the supervisor write text, each with times of its own, in local time.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
#: `INFO 11-26 19:24:19 [core.py:58]` (vLLM), `[2026-11-26 19:24:19]` (SGLang), `2026-11-26 19:24:19,512 INFO`
#: (supervisord), `2026/11/26 19:24:19` (nginx).
_TEXT_TIME = re.compile(r"(?:(\d{4})[-/])?(\d\d)[-/](\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[,.](\d{1,6}))?")
_TEXT_LEVEL = re.compile(r"\b(DEBUG|INFO|WARN(?:ING)?|ERROR|ERRO|CRIT(?:ICAL)?|error|warn|crit)\b")
_LEVEL_NAMES = {"WARN": "WARNING", "ERRO": "ERROR", "CRIT": "CRITICAL"}
_LOOKED_AT = 120
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
#: Said before the fields, or not worth a reader's time.
_HEAD = frozenset(("time", "level", "service", "logger", "event", "traceback"))
#: What a word must be for its value to stand without quotes.
_BARE = re.compile(r"[^\s\"'=,]+")


@dataclass(slots=True)
class Line:
    """`at` is in Unix seconds; 0 if the log has not said a time yet. `fields` is what a JSON line holds."""

    at: float
    label: str
    level: str
    text: str
    fields: dict[str, Any] | None


class LineReader:
    """Makes lines of one log. A line without a time or a level is as the one before: a traceback goes on."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._at = 0.0
        self._level = ""

    def read(self, raw: bytes) -> Line:
        fields = None
        if raw.startswith(b"{"):
            with contextlib.suppress(orjson.JSONDecodeError):
                fields = orjson.loads(raw)
        if isinstance(fields, dict):
            self._at = _json_time(fields.get("time")) or self._at
            self._level = str(fields.get("level") or "INFO")
            return Line(self._at, self._label, self._level, "", fields)
        text = _ESCAPES.sub("", raw.decode(errors="replace"))
        head = text[:_LOOKED_AT]
        if (found := _TEXT_TIME.search(head)) is not None and (at := _text_time(found)):
            self._at = at
            level = _TEXT_LEVEL.search(head)
            word = level[1].upper() if level else ""
            self._level = _LEVEL_NAMES.get(word, word)
        return Line(self._at, self._label, self._level, text, None)


def as_json(line: Line) -> dict[str, Any]:
    """`log` names the file; a line that is no JSON has its `text`."""
    if line.fields is not None:
        return {**line.fields, "log": line.label}
    return {"time": _rfc3339(line.at), "level": line.level or None, "log": line.label, "text": line.text}


def for_people(line: Line, without: frozenset[str] = frozenset()) -> tuple[str, str, str]:
    """The time, the level, and what is said: an event and its fields, none that is empty. `without`: names of fields
    that the reader knows."""
    when = _rfc3339(line.at) or "-"
    if line.fields is None:
        return when, line.level, _printable(line.text)
    said = [str(line.fields.get("event", ""))]
    for name, value in line.fields.items():
        if name not in _HEAD and name not in without and value not in (None, "", [], {}):
            said.append(f"{name}={_value(value)}")
    text = _printable(" ".join(said))
    for row in str(line.fields.get("traceback") or "").splitlines():
        text += f"\n    {_printable(row)}"
    return when, line.level, text


def names(line: Line, ids: set[str]) -> bool:
    """Whether one of the ids is a value of the line, or a word of it if it is text."""
    if line.fields is not None:
        return any(isinstance(value, str) and value in ids for value in line.fields.values())
    return any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.])", line.text) for name in ids)


def at_least(line: Line, level: str) -> bool:
    """Lines whose level nobody knows pass."""
    return line.level not in LEVELS or LEVELS.index(line.level) >= LEVELS.index(level)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value.isprintable() else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, default=str)


def _printable(text: str) -> str:
    # What came from a client must not steer the terminal.
    return "".join(c if c.isprintable() or c == "\t" else "�" for c in text)


def _json_time(text: Any) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return 0.0


def _text_time(found: re.Match[str]) -> float:
    year, month, day, hour, minute, second, fraction = found.groups()
    now = time.localtime()
    parts = [int(part) for part in (month, day, hour, minute, second)]
    try:
        # Without a year it is the last such day: in January December was last year.
        this_year = int(year or now.tm_year)
        moment = datetime(this_year, *parts)  # type: ignore[arg-type]
        if year is None and moment.timestamp() > time.time() + 86_400:
            moment = moment.replace(year=this_year - 1)
    except ValueError:
        return 0.0
    return moment.timestamp() + float(f"0.{fraction or 0}")


def _rfc3339(at: float) -> str | None:
    if not at:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

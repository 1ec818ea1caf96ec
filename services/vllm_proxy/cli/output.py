"""What a command prints: tables and sentences for people, JSON for programs. Colours on a terminal only."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
_GAP = "  "


class Figure(str):
    """A number with its unit or its digits: stands to the right in a table, as numbers do."""

    __slots__ = ()


class Output:
    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self.is_terminal and not os.environ.get("NO_COLOR")

    def json(self, value: Any) -> None:
        print(json.dumps(value, indent=2, ensure_ascii=False))

    def line(self, text: str = "") -> None:
        print(text)

    def note(self, text: str) -> None:
        """For a person, beside what a program reads."""
        print(text, file=sys.stderr)

    def error(self, message: str) -> None:
        text = " ".join(message.split())
        if self.as_json:
            print(json.dumps({"error": text}, ensure_ascii=False), file=sys.stderr)
        else:
            print(f"vllm-proxy: {text}", file=sys.stderr)

    def paint(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._coloured and text else text

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]], colours: dict[str, str] | None = None) -> int:
        """Numbers to the right, text to the left; on a terminal no line is wider than it. A column of empty strings is
        left out. `colours`: of cells that are this text. Returns the number of rows."""
        rows = list(rows)
        if not rows:
            return 0
        # A column that nobody has anything to say in is left out.
        kept = [i for i in range(len(header)) if any(row[i] != "" for row in rows)]
        header, rows = [header[i] for i in kept], [[row[i] for i in kept] for row in rows]
        cells = [[_shown(value) for value in row] for row in rows]
        numeric = [
            bool(rows)
            and all(isinstance(row[i], int | Figure | None) for row in rows)
            and any(row[i] is not None for row in rows)
            for i in range(len(header))
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
        if self.is_terminal:
            squeeze(widths, numeric, shutil.get_terminal_size().columns)
        for number, line in enumerate([list(header), *cells]):
            parts = []
            for i, cell in enumerate(line):
                cut = cell if len(cell) <= widths[i] else cell[: widths[i] - 1] + "…"
                padded = cut.rjust(widths[i]) if numeric[i] else cut.ljust(widths[i])
                colour = BOLD if number == 0 else (colours or {}).get(cell, "")
                parts.append(self.paint(padded, colour) if colour else padded)
            print(_GAP.join(parts).rstrip())
        return len(rows)

    def fields(self, rows: Iterable[tuple[str, Any]]) -> None:
        """A name and a value on each line; those without a value are left out."""
        shown = [(name, _shown(value)) for name, value in rows if value not in (None, "", [])]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            print(f"{self.paint(name.ljust(width), DIM)}{_GAP}{value}")


def squeeze(widths: list[int], numeric: list[bool], room: int) -> None:
    """Makes the widest columns of text narrower until a line fits."""
    least = 8
    while sum(widths) + len(_GAP) * (len(widths) - 1) > room:
        texts = [i for i, is_number in enumerate(numeric) if not is_number and widths[i] > least]
        if not texts:
            return
        widths[max(texts, key=lambda i: widths[i])] -= 1


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:g}"
        case list():
            return ", ".join(map(str, value))
    # What came from a client must not steer the terminal.
    return "".join(c if c.isprintable() else "�" for c in str(value))

"""What each column can, as a run of the tests saw it, put into docs/ENGINES.md between two marks for each engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

BEGIN = "<!-- {kind}: written by pytest tests/engine --engine-table docs/ENGINES.md -->"
END = "<!-- end of {kind} -->"


class Table:
    """Rows of outcomes by column. A cell is `yes` if all its tests passed; what cannot be is a footnote."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._cells: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, row: str, column: str, outcome: str, reason: str) -> None:
        self._cells[row][column].append((outcome, reason))

    def write(self, path: Path) -> None:
        """Replaces the tables of the engines that were run in a file that has their marks; other files are written
        anew."""
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for kind in dict.fromkeys(column.partition("-")[0] for column in self._columns):
            begin, end = BEGIN.format(kind=kind), END.format(kind=kind)
            table = f"{begin}\n{self.markdown(kind)}{end}"
            before, begun, rest = text.partition(begin)
            _, ended, after = rest.partition(end)
            text = before + table + after if begun and ended else text + table + "\n"
        path.write_text(text, encoding="utf-8")

    def markdown(self, kind: str) -> str:
        columns = [column for column in self._columns if column.partition("-")[0] == kind]
        notes: list[str] = []
        lines = [
            "| | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 1) + "|",
            *(
                f"| {row} | " + " | ".join(_cell(cells[column], notes) for column in columns) + " |"
                for row, cells in self._cells.items()
            ),
        ]
        footnotes = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
        return "\n".join([*lines, *([""] if notes else []), *footnotes, ""])


def _cell(outcomes: Sequence[tuple[str, str]], notes: list[str]) -> str:
    if not outcomes:
        return "not run"
    if any(outcome == "failed" for outcome, _ in outcomes):
        return "**fails**"
    reasons = list(dict.fromkeys(reason for outcome, reason in outcomes if outcome == "skipped"))
    if not reasons:
        return "yes"
    for reason in reasons:
        if reason not in notes:
            notes.append(reason)
    numbers = ", ".join(str(notes.index(reason) + 1) for reason in reasons)
    return f"{'in part' if any(outcome == 'passed' for outcome, _ in outcomes) else 'no'} ({numbers})"

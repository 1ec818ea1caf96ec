"""What each column can, as a run of the tests saw it, written into docs/ENGINES.md between its two marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

BEGIN = "<!-- engine table: written by pytest tests/engine --engine-table docs/ENGINES.md -->"
END = "<!-- end of the engine table -->"


class Table:
    """Rows of outcomes by column. A cell is `yes` if all its tests passed; what cannot be is a footnote."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._cells: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, row: str, column: str, outcome: str, reason: str) -> None:
        self._cells[row][column].append((outcome, reason))

    def write(self, path: Path) -> None:
        """Replaces the table in a file that has both marks; otherwise writes the file anew."""
        table = f"{BEGIN}\n{self.markdown()}{END}"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        before, begun, rest = text.partition(BEGIN)
        _, ended, after = rest.partition(END)
        path.write_text(before + table + after if begun and ended else table + "\n", encoding="utf-8")

    def markdown(self) -> str:
        notes: list[str] = []
        lines = [
            "| | " + " | ".join(self._columns) + " |",
            "|---" * (len(self._columns) + 1) + "|",
            *(
                f"| {row} | " + " | ".join(_cell(cells[column], notes) for column in self._columns) + " |"
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

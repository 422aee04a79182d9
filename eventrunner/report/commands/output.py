"""What a command answers: tables and lines for people, or one JSON document for programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["Output", "ago", "on_one_line", "table"]

_LEAST = 16  # columns that text is wrapped into; where fewer are left, it goes below its row
_INDENT = "    "
_BOLD, _RED = "1", "31"


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command answers to: standard output, in one of two forms.

    Attributes:
        as_json: Whether the answer is :meth:`data`; if not, it is the tables and lines.
        width: Columns that a line may have; None where nobody counts them.
        colours: Whether lines may have colours.
    """

    as_json: bool
    width: int | None
    colours: bool

    @classmethod
    def to_stdout(cls, as_json: bool) -> Output:
        """Make it for the terminal, pipe or file that standard output is."""
        terminal = sys.stdout is not None and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal or os.environ.get("COLUMNS") else None
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return cls(as_json, width, terminal and not plain)

    def data(self, value: Any) -> None:
        """Answer a program; what isn't a number in JSON is a string there."""
        if self.as_json:
            print(json.dumps(_plain(value), indent=2, allow_nan=False, default=str), flush=True)

    def line(self, text: str = "", bad: bool = False) -> None:
        """Answer a reader with a line, in red where it is *bad*; it is there at once."""
        if not self.as_json:
            print(self._painted(on_one_line(text), _RED if bad else ""), flush=True)

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = (), bad: Collection[int] = ()
    ) -> None:
        """Answer a reader with a table; the rows whose numbers are in *bad* are red."""
        if self.as_json or not rows:
            return
        for row, text in table(head, rows, right, self.width):
            print(self._painted(text, _BOLD if row < 0 else _RED if row in bad else ""))

    def fields(self, fields: Mapping[str, str]) -> None:
        """Answer a reader with what is known of one thing; what is empty is left out."""
        self.table(("", ""), [(f"  {name}", text) for name, text in fields.items() if text])

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if code and self.colours else text


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str], width: int | None
) -> Iterator[tuple[int, str]]:
    """Yield the lines of a table, each with the number of its row; the head has -1.

    Columns in which nothing is are left out. Only the last one is wrapped: names and numbers stay whole.

    Args:
        head: The columns' names; without any of them there is no such line.
        rows: Their cells.
        right: Columns that are set to the right.
        width: Of a line; None for as long as it takes.
    """
    cells = [[on_one_line(cell) for cell in row] for row in rows]
    used = [column for column in range(len(head)) if any(row[column] for row in cells)]
    widths = {column: max(len(row[column]) for row in [head, *cells]) for column in used}
    begin = sum(widths[column] + 2 for column in used[:-1])
    for number, row in enumerate([list(head), *cells] if any(head) else cells, -1 if any(head) else 0):
        set_cells = [row[i].rjust(widths[i]) if head[i] in right else row[i].ljust(widths[i]) for i in used[:-1]]
        first, *below = _wrapped(row[used[-1]], begin, width) if used else [""]
        if used and head[used[-1]] in right:
            first = first.rjust(widths[used[-1]])
        yield number, "  ".join([*set_cells, first]).rstrip()
        yield from ((number, line) for line in below)


def _wrapped(text: str, begin: int, width: int | None) -> list[str]:
    """Return the first line of the last column, and the lines below it, which are indented."""
    if width is None or begin + len(text) <= width:
        return [text]
    fits = width - begin >= _LEAST
    indent = " " * begin if fits else _INDENT
    lines = textwrap.wrap(text, max(width - len(indent), _LEAST), break_long_words=False, break_on_hyphens=False)
    first, below = (lines[0], lines[1:]) if fits else ("", lines)
    return [first, *(indent + line for line in below)]


def on_one_line(text: str) -> str:
    """Return the text with escapes for what would move a cursor or end a line: names may be anybody's."""
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in text
    )


def ago(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago something was, ``5 min ago``, or of what is older than a month its date."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for most, unit, name in ((60, 0, "just now"), (3600, 60, "min ago"), (86400, 3600, "h ago")):
        if seconds < most:
            return f"{seconds // unit:.0f} {name}" if unit else name
    days = int(seconds // 86400)
    return f"{moment:%Y-%m-%d}" if days > 30 else f"{days} day{'s' * (days > 1)} ago"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

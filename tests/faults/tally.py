"""Rows of the table that a run of these tests ends with: what was tried, what went wrong, and with which seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

LONG = (pytest.mark.long, pytest.mark.timeout(7200))
"""The marks of a test, or of one of its parameters, that takes minutes."""

_SHOWN = 5


@dataclass
class Row:
    """One row of the table.

    Attributes:
        what: What is counted in ``tried``.
        wrong: What is counted in ``found``.
        seed: From which all that is drawn follows.
        test: The test that fills the row in; it is how the row is run again.
        tried: How many.
        found: What went wrong, each with all that is needed to see it again.
    """

    what: str
    wrong: str
    seed: int
    test: str
    tried: int = 0
    found: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Fail if anything was found, or nothing was tried."""
        shown = "\n".join(self.found[:_SHOWN])
        assert not self.found, f"{len(self.found)} {self.wrong} in {self.tried} {self.what}, seed {self.seed}:\n{shown}"
        assert self.tried, f"no {self.what} were tried"


MakeRow = Callable[[str, str], Row]


def table(rows: list[Row]) -> list[str]:
    """The rows as lines of text, in columns."""
    cells = [("tried", "", "wrong", "", "seed", "run again: python -m pytest … -m ''")]
    cells += [(f"{row.tried:,}", row.what, f"{len(row.found):,}", row.wrong, str(row.seed), row.test) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    right = (0, 2, 4)
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]

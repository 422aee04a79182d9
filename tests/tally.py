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
    """The rows as lines of text, in columns; those of one test that count the same are one line."""
    sums: dict[tuple[str, str, str, int], tuple[int, int]] = {}
    for row in rows:
        key = (row.test.partition("[")[0], row.what, row.wrong, row.seed)
        tried, found = sums.get(key, (0, 0))
        sums[key] = tried + row.tried, found + len(row.found)
    cells = [("tried", "", "wrong", "", "seed", "test")]
    for (test, what, wrong, seed), (tried, found) in sums.items():
        cells.append((f"{tried:,}", what, f"{found:,}", wrong, str(seed), test))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(_aligned, line, widths, (1, 0, 1, 0, 1, 0))).rstrip() for line in cells]


def _aligned(cell: str, width: int, right: int) -> str:
    return cell.rjust(width) if right else cell.ljust(width)

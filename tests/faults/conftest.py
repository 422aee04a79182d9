"""A table at the end: what was tried against the promises in the README, what went wrong, and with which seed."""

from __future__ import annotations

import pytest
from tally import MakeRow, Row, table

_rows = pytest.StashKey[list[Row]]()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """From which all that a test draws follows: ``--seed``."""
    return int(request.config.getoption("--seed"))


@pytest.fixture
def row(request: pytest.FixtureRequest, seed: int) -> MakeRow:
    """``row(what, wrong)``: a new row of the table."""
    rows = request.config.stash.setdefault(_rows, [])

    def make(what: str, wrong: str) -> Row:
        rows.append(Row(what, wrong, seed, request.node.nodeid))
        return rows[-1]

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    rows = config.stash.get(_rows, [])
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)

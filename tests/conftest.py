"""What every test has: an empty working directory, an untouched default bus, and a tiny run at hand."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tally import MakeRow, Row, table
from tiny import options

from eventrunner.bus.bus import Bus, default_bus
from eventrunner.runner import Runner

MakeRunner = Callable[..., Runner]

settings.register_profile("any speed", deadline=None)  # a machine that is busy fails nothing
settings.load_profile("any speed")

_rows = pytest.StashKey[list[Row]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the tests in ``faults/`` draw from."""
    parser.addoption("--seed", type=int, default=0, help="what the tests in faults/ draw from (default: 0)")


@pytest.hookimpl(tryfirst=True)  # before those that are marked are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs whole scripts, runs several ranks, or has a disk or a process fail, as slow, too."""
    for item in items:
        if item.path.parent.name in ("faults", "ranks") or item.path.stem in ("test_examples", "test_readme"):
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of the tests in ``faults/``, if any were run."""
    rows = config.stash.get(_rows, [])
    if rows:
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)


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


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, and sums could differ between machines."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a folder of its own makes ``runs/`` where it is: not in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _default_bus_stays_empty() -> Iterator[None]:
    """What a test connects to the default bus would be called in all later ones."""
    yield
    if len(default_bus.describe()):
        gc.collect()  # a run that is gone takes its receivers along, but not before it is collected
    left = str(default_bus.describe())
    for site in default_bus:
        site._clear_state()
    assert left == "", "the test left receivers on the default bus"


@pytest.fixture
def bus() -> Bus:
    """A bus of the test's own."""
    return Bus()


@pytest.fixture
def make_runner(tmp_path: Path, bus: Bus) -> MakeRunner:
    """``make_runner(**changes)``: a tiny quiet run in ``tmp_path / "run"``; see :func:`tiny.options`."""

    def make(**changes: Any) -> Runner:
        return Runner(**{"work_dir": tmp_path / "run", "bus": bus, **options(**changes)})

    return make

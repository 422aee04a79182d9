"""Power cuts after every operation of a save: in each state that the disk may be left in, what was told of is there."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk import Disk, Killed
from memory import in_memory
from operations import CHANGING, Fault, Op
from powercut import Machine, State, materialise, snapshot
from scenario import SCENARIOS, Scenario, Tell, Work, check, recover, save
from tally import LONG, MakeRow, Row
from trial import RUN, operations, prepare

from eventrunner.checkpoint import Store

LEFT_OUT = ("past the cache",)  # its states are those of "replace", and large


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Where thousands of folders are to be made."""
    with in_memory(tmp_path) as folder:
        yield folder


class Cuts:
    """Power cuts of one scenario, each state of which is looked at once.

    Args:
        name: The scenario's.
        folder: Where the states are made.
        row: Where to count them.
        seed: What they are drawn from.
        most: How many at most, per operation.
    """

    def __init__(self, name: str, folder: Path, row: Row, seed: int, most: int) -> None:
        self.name, self.folder, self.row, self.seed, self.most = name, folder, row, seed, most
        self.keep = SCENARIOS[name].keep
        self._seen: set[tuple[object, ...]] = set()

    def sweep(self, base: State, ops: list[Op], told: list[str], first: int = 0) -> None:
        """Cut the power after each operation from the one with index *first* on."""
        machine, told = Machine(base), list(told)
        for index, op in enumerate(ops):
            if op.kind == "told":
                told.append(op.other)
            else:
                machine.apply(op)
            if index >= first and op.kind in (*CHANGING, "told"):
                self._look(machine, op, told)

    def _look(self, machine: Machine, op: Op, told: list[str]) -> None:
        rng = random.Random(f"{self.seed} {self.name} {op.number}")
        for text, state in machine.states(rng, self.most):
            key = (hash(frozenset(state.items())), *told)
            if key not in self._seen:
                self._seen.add(key)
                self.row.tried += 1
                for wrong in self._wrong(state, told):
                    self.row.found.append(f"{self.name!r}, power cut after {op}, {text}: {wrong}")

    def _wrong(self, state: State, told: list[str]) -> list[str]:
        root = self.folder / "after"
        materialise(state, root)
        try:
            recover(root / RUN)
            return check(root / RUN, told, self.keep)
        finally:
            shutil.rmtree(root)


def clear(folder: Path, tell: Tell) -> None:
    """What the next process does first."""
    recover(folder)


def go_on(folder: Path, tell: Tell) -> None:
    """What it does then: it saves what it has repeated."""
    recover(folder)
    save(Store(folder), "a", 50, tell)


@pytest.mark.parametrize("most", [20, pytest.param(2000, marks=LONG)])
def test_what_was_told_of_survives_a_power_cut(memory: Path, row: MakeRow, seed: int, most: int) -> None:
    """After any operation, whatever of that what wasn't synced has reached the disk."""
    states = row("states after a power cut", "violations")
    for name, scenario in SCENARIOS.items():
        if name in LEFT_OUT:
            continue
        root = memory / "before"
        told = prepare(scenario, root)
        base = snapshot(root)
        with Disk(root) as disk:
            scenario.work(root / RUN, disk.tell)
        Cuts(name, memory, states, seed, most).sweep(base, disk.ops, told)
        shutil.rmtree(root)
    states.check()


@pytest.mark.parametrize(("most", "every"), [(8, False), pytest.param(6, True, marks=LONG)])
def test_what_was_told_of_survives_a_kill_and_then_a_power_cut(
    memory: Path, row: MakeRow, seed: int, most: int, every: bool
) -> None:
    """What the killed process left unsynced is still unsynced when the next one clears away, and saves."""
    states = row("states after a kill, a restart and a power cut", "violations")
    for name, scenario in SCENARIOS.items():
        if name not in LEFT_OUT:
            ops = operations(scenario, memory / "before")
            cuts = Cuts(name, memory, states, seed, most)
            for before, op in itertools.pairwise(ops):
                # It matters most where something has just been renamed.
                if every or before.kind == "rename":
                    killed_and_cut(scenario, cuts, op.number, go_on if every else clear)
    states.check()


def killed_and_cut(scenario: Scenario, cuts: Cuts, at: int, after_it: Work) -> None:
    """Kill it before operation *at*, go on, and cut the power after each operation from then on."""
    root = cuts.folder / "before"
    told = prepare(scenario, root)
    base = snapshot(root)
    with Disk(root, Fault("die", at)) as disk, contextlib.suppress(Killed):
        scenario.work(root / RUN, disk.tell)
    with Disk(root) as after:
        after_it(root / RUN, after.tell)
    shutil.rmtree(root)
    cuts.sweep(base, disk.ops + after.ops, told, first=len(disk.ops))

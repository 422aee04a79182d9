"""A scenario on a disk that fails, and all that must be true afterwards."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disk import Disk
from operations import Fault, Op
from powercut import Machine, materialise, snapshot
from scenario import SCENARIOS, Scenario, check, leftovers, promised, recover, save, values

from eventrunner.checkpoint import Store
from eventrunner.errors import CheckpointError

__all__ = ["COMMITTED", "RUN", "Trial", "operations", "prepare"]

RUN = Path("runs/one")
"""Where a scenario's checkpoints lie on its disk; neither of the folders is there before."""
PLACED, COMMITTED, NOT_SAVED = "is in its place", "is committed", "was not saved"
ASIDE = "couldn't be put back"
ABOVE = (".", "runs")
"""The folders in which the scenario's is."""


def prepare(scenario: Scenario, root: Path) -> list[str]:
    """An empty disk on which the scenario is prepared; what it told."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    told: list[str] = []
    scenario.prepare(root / RUN, told.append)
    return told


def operations(scenario: Scenario, root: Path) -> list[Op]:
    """What the scenario does while nothing fails."""
    prepare(scenario, root)
    with Disk(root) as disk:
        scenario.work(root / RUN, disk.tell)
    return [op for op in disk.ops if op.number]


class Trial:
    """One scenario on a disk that fails once, or from then on.

    Attributes:
        fired: Whether it did.
        wrong: What has gone wrong with the checkpoints.
    """

    def __init__(self, scenario: Scenario, fault: Fault, root: Path) -> None:
        self.scenario, self.fault, self.root, self.folder = scenario, fault, root, root / RUN
        self.told = prepare(scenario, root)
        self.error: BaseException | None = None
        self.wrong: list[str] = []
        base, held = snapshot(root), len(os.listdir("/proc/self/fd"))
        with Disk(root, fault) as disk:
            try:
                scenario.work(self.folder, disk.tell)
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is looked at
                self.error = error
        self.fired = disk.fired
        self.told += disk.told()
        self._find("a descriptor is open" for _ in range(len(os.listdir("/proc/self/fd")) - held))
        self._look(base, disk.ops)
        self.error = None  # its frames hold all that was written, until the garbage is collected

    def _look(self, base: Any, ops: list[Op]) -> None:
        self._check_error()
        # If the disk goes on failing, what was moved away can't be put back at once.
        if not self.fault.lasting and self.scenario is not SCENARIOS["clean"]:
            self._find(check(self.folder, self.told, self.scenario.keep), "at once: ")
        self._cut(base, ops)
        recover(self.folder)
        self._find(check(self.folder, self.told, self.scenario.keep), "after clean(): ")
        save(Store(self.folder), "next", 99, self.told.append)
        self._find(check(self.folder, self.told, self.scenario.keep), "after the next save: ")
        self._find(f"{name} is left" for name in leftovers(self.folder))

    def _find(self, wrong: Any, when: str = "") -> None:
        self.wrong += [f"{when}{each}, after {self.error!r}" for each in wrong]

    def _check_error(self) -> None:
        """An error is one of the disk's, and says what has become of the checkpoint; that is true."""
        doing, name, value = [*self.told[-1].split(), "0"][:3] if self.told else ("", "", "0")
        if self.error is None:
            return
        notes = " ".join(_notes(self.error))
        if not isinstance(self.error, (OSError, CheckpointError)):
            self._find(["it is no OSError"])
        if self.scenario.keep or doing not in ("saving", "deleting"):
            return  # the error of a worker may be of an earlier one
        if f"The checkpoint {name!r} in {self.folder} " not in notes:
            self._find([f"the error doesn't say what has become of {name!r}: {notes}"])
        there = values(self.folder).get(name, 0)
        if (PLACED in notes or COMMITTED in notes) and there != int(value):
            self._find([f"{name} isn't there, though the error says {notes!r}"])
        allowed = {0} if ASIDE in notes else promised(self.told[:-1]).get(name, {0})
        if NOT_SAVED in notes and there not in allowed and "yet" not in self.fault.kind:
            self._find([f"{name} is there, though the error says {notes!r}"])
        if COMMITTED in notes:
            self.told.append(f"saved {name} {value}")

    def _cut(self, base: Any, ops: list[Op]) -> None:
        """Whatever the error: what was told of survives a power cut."""
        if any(op.kind == "fsync" and not op.done and op.path in ABOVE for op in ops):
            return  # what a failed sync has dropped, no later save can ask for again
        machine, after = Machine(base), self.root.with_name("after")
        for op in ops:
            if op.kind != "told":
                machine.apply(op)
        for text, state in machine.states(random.Random(0), 3):
            materialise(state, after)
            recover(after / RUN)
            self._find(check(after / RUN, self.told, self.scenario.keep), f"after a power cut {text}: ")
            shutil.rmtree(after)


def _notes(error: BaseException | None) -> Iterator[str]:
    """Those of the error, and of what it followed from: a disk that fails to write may fail to close, too."""
    while error is not None:
        yield from getattr(error, "__notes__", ())
        error = error.__context__

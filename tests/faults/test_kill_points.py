"""SIGKILL before each operation of a save, and in the middle of each write: what was told of is there afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk import Disk, Killed
from memory import in_memory
from operations import Fault
from scenario import SCENARIOS, Tell, check, leftovers, recover, save
from tally import LONG, MakeRow, Row
from trial import RUN, operations, prepare

from eventrunner.checkpoint import Store

Work = Callable[[Path, Tell], None]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where the disk is to be; nothing is there."""
    with in_memory(tmp_path) as folder:
        yield folder / "disk"


def killed(root: Path, fault: Fault, work: Work, told: list[str]) -> bool:
    """Let a child of this process work until the fault ends it; whether it did. What the child tells is added."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _work_in_child(root, fault, work, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        told += file.read().splitlines()
    status = os.waitpid(child, 0)[1]
    dead = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert dead or status == 0, f"the child ended with status {status}: {fault}"
    return dead


def _work_in_child(root: Path, fault: Fault, work: Work, writer: int) -> None:
    status = 1
    try:
        with Disk(root, fault):
            work(root / RUN, lambda line: (os.write(writer, f"{line}\n".encode()), None)[1])
        status = 0
    finally:
        os._exit(status)


def go_on(folder: Path, told: list[str], keep: int) -> list[str]:
    """What is wrong once the next process has cleared away, and once it has saved."""
    recover(folder)
    wrong = check(folder, told, keep)
    save(Store(folder), "next", 99, told.append)
    wrong += [f"after the next save: {each}" for each in check(folder, told, keep)]
    return wrong + [f"{name} is left" for name in leftovers(folder)]


@pytest.mark.parametrize("step", [14, pytest.param(1, marks=LONG)])
@pytest.mark.parametrize("kind", ["kill", "kill halfway"])
def test_what_was_told_of_survives_a_kill(root: Path, row: MakeRow, seed: int, kind: str, step: int) -> None:
    """And no fewer are left than are to be kept, and nobody else's files are touched; the next process goes on."""
    points = row("kill points" if kind == "kill" else "kill points within a write", "violations")
    for name, scenario in SCENARIOS.items():
        at, dead = 1 + random.Random(f"{seed} {name}").randrange(step), True
        while dead:
            told, fault = prepare(scenario, root), Fault(kind, at)
            dead = killed(root, fault, scenario.work, told)
            points.tried += dead
            points.found += [f"{name!r}, {fault}: {wrong}" for wrong in go_on(root / RUN, told, scenario.keep)]
            at += step
    points.check()


@pytest.mark.parametrize("share", [0.01, pytest.param(0.25, marks=LONG)])
def test_what_was_told_of_survives_a_kill_while_recovering_from_one(
    root: Path, row: MakeRow, seed: int, share: float
) -> None:
    """Before each operation of the clearing away, after each point at which there may be something to clear away."""
    points = row("kill points while recovering from a kill", "violations")
    for name in ("replace", "replaced twin", "delete", "clean", "keep 1"):
        rng = random.Random(f"{seed} {name}")
        count = len(operations(SCENARIOS[name], root))
        chosen = rng.sample(range(1, count + 1), max(1, round(share * count)))
        for at in chosen:
            _kill_again(name, root, at, points)
    points.check()


def _kill_again(name: str, root: Path, first: int, points: Row) -> None:
    """Kill the scenario in one operation, and the recovery from that in each of its own."""
    second, dead = 1, True
    while dead:
        told = prepare(SCENARIOS[name], root)
        with Disk(root, Fault("die", first)) as disk, contextlib.suppress(Killed):
            SCENARIOS[name].work(root / RUN, disk.tell)
        told += disk.told()
        dead = killed(root, Fault("kill", second), _recover, told)
        points.tried += dead
        wrong = go_on(root / RUN, told, SCENARIOS[name].keep)
        points.found += [f"{name!r}, killed in {first} and, in the recovery, in {second}: {each}" for each in wrong]
        second += 1


def _recover(folder: Path, tell: Tell) -> None:
    recover(folder)

"""Killed without warning, or asked to end, amid overlapped saves, and resumed: nothing that was told is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from moments import await_moment, hidden, rows_of
from tally import LONG, MakeRow, Row
from tiny import forked
from training import (
    STEPS,
    Kind,
    Whole,
    Wholes,
    any_kind,
    checkpoints,
    digest,
    forget,
    last_step,
    newest_step,
    notes,
    outcome,
    plant,
    planted,
    train_and_exit,
)

from eventrunner.checkpoint import Store, find_newest, load_checkpoint
from eventrunner.errors import CheckpointError
from eventrunner.lanes.lanes import Task
from eventrunner.lanes.signals import EXIT_CODE

_AT_MOST = 60  # seconds that a life may take, however busy the machine is
_OFTEN = 200  # kills, among which there are some of each sort


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    """What the runs that nobody killed have left."""
    return Wholes(tmp_path_factory.mktemp("wholes"))


@dataclass
class Run:
    """A training that is hit again and again, what has been done to it, and what is wrong with it."""

    folder: Path
    kind: Kind
    whole: Whole
    foreign: dict[str, tuple[Any, ...]]
    story: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def found(self, what: str) -> None:
        """Something is wrong."""
        self.wrong.append(f"{self.folder.parent.name}: {what} ({self.kind}; {'; '.join(self.story)})")


def begin(folder: Path, kind: Kind, wholes: Wholes) -> Run:
    """A run that hasn't begun, among somebody else's things."""
    return Run(folder / "run", kind, wholes[kind], plant(folder / "run"))


def live(run: Run, chance: random.Random, number: signal.Signals) -> int:
    """Have it train on, send the signal at a random moment, and return how it has ended."""
    process = forked(train_and_exit, run.folder, run.kind)
    run.story.append(await_moment(chance, run.folder, process))
    if process.is_alive():
        os.kill(process.pid, number)
    return end(run, process)


def end(run: Run, process: Any) -> int:
    """Wait for its end; the exit code."""
    process.join(_AT_MOST)
    if process.exitcode is None:
        run.found("it hangs")
        process.kill()
        process.join()
    return int(process.exitcode)


def check_saves(run: Run, whole: bool) -> None:
    """Of what was told of, nothing is lost; what is visible is what was saved, and *whole*: what is always saved."""
    told, asked = notes(run.folder, "told"), notes(run.folder, "asked")
    newest, there = newest_step(run.folder, run.found), checkpoints(run.folder)
    if newest < max((int(step) for step, _ in told), default=-1):
        run.found(f"the newest is of step {newest}, and told was {told[-1]}")
    for name, state in there.items():
        step = name.rpartition("_")[2]
        if [step, state] not in asked or (whole and run.whole.states[int(step)] != state):
            run.found(f"{name} is not what was saved")
    check_kept(run, {name for _, name in told}, set(there))
    if planted(run.folder) != run.foreign:
        run.found("somebody else's things were touched")


def check_kept(run: Run, told: set[str], there: set[str]) -> None:
    """As many as are to be kept are there, and a best one."""
    regular = {name for name in there if name.startswith("iter_")}
    if len(regular) < min(run.kind.keep, sum(name.startswith("iter_") for name in told)):
        run.found(f"of {run.kind.keep} to be kept, there are {sorted(regular)}")
    best = [name for name in (*there, *hidden(run.folder, "old")) if "best_" in name]
    if not best and any(name.startswith("best_") for name in told):
        run.found("there is no best")


def finish(run: Run, parts: tuple[str, ...]) -> None:
    """Have it train to its end, and compare what it leaves with what the run that nobody disturbed has left."""
    if (code := end(run, forked(train_and_exit, run.folder, run.kind))) != 0:
        run.found(f"resumed, it ended with {code}")
        return
    left = outcome(run.folder)
    for part in parts:
        ours, theirs = getattr(left, part), getattr(run.whole, part)
        if ours != theirs:
            run.found(f"at the end, its {part} differ: {str(ours)[:300]} and not {str(theirs)[:300]}")
    if leftovers := [what for kind in ("tmp", "trash", "old") for what in hidden(run.folder, kind)]:
        run.found(f"at the end, there still are {leftovers}")


def settle(run: Run, row: Row) -> None:
    """Put what was found into the table."""
    row.found += run.wrong
    if not run.wrong:
        forget(run.folder)


def sort_of(run: Run, rows: int) -> str:
    """What a training was at when it was killed, as far as can be seen; *rows* were there before it began."""
    for what in ("old", "trash", "tmp"):
        if hidden(run.folder, what):
            return what
    if rows_of(run.folder) <= rows:
        return "beginning or resuming"
    return "ending" if rows_of(run.folder) >= STEPS + STEPS // run.kind.val_interval else "training"


@pytest.mark.parametrize("count", [16, pytest.param(1000, marks=LONG)])
def test_a_training_that_is_killed_at_any_moment_is_the_one_that_was_not(
    tmp_path: Path, row: MakeRow, seed: int, wholes: Wholes, count: int
) -> None:
    """No save that was told of is lost, and in the end all is as if it had never been killed.

    Weights, what is in every checkpoint, log.jsonl without its clock, TensorBoard, and which checkpoints are kept; and
    nothing but that has been touched.
    """
    kills, sorts = row("kills of a training", "violations"), Counter[str]()
    number = 0
    while kills.tried < count:
        number += 1
        chance = random.Random(f"{seed} killed {number}")
        run = begin(tmp_path / f"{number}", any_kind(chance), wholes)
        for _ in range(chance.randrange(3, 8)):
            rows = rows_of(run.folder)
            if live(run, chance, signal.SIGKILL) != -signal.SIGKILL:
                break  # it came to its end
            kills.tried += 1
            sorts[sort_of(run, rows)] += 1
            check_saves(run, whole=True)
        finish(run, ("weights", "lines", "values", "checkpoints"))
        settle(run, kills)
    print(f"killed while there was, or at: {dict(sorts)}")
    kills.check()
    if count >= _OFTEN:
        assert set(sorts) - {"old"} == {"trash", "tmp", "beginning or resuming", "training", "ending"}


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=LONG)])
def test_a_training_that_is_asked_to_end_at_any_moment_is_resumed_as_the_one_that_was_not(
    tmp_path: Path, row: MakeRow, seed: int, wholes: Wholes, count: int
) -> None:
    """It exits with 75, with all it has done saved, or it was at its end anyway."""
    asked = row("trainings asked to end", "violations")
    number = 0
    while asked.tried < count:
        number += 1
        chance = random.Random(f"{seed} asked {number}")
        run = begin(tmp_path / f"{number}", any_kind(chance), wholes)
        for _ in range(chance.randrange(1, 4)):
            code = live(run, chance, signal.SIGTERM)
            asked.tried += 1
            check_exit(run, code)
            check_saves(run, whole=False)
            if code == 0:
                break
        finish(run, ("weights", "lines", "values"))
        settle(run, asked)
    asked.check()


def check_exit(run: Run, code: int) -> None:
    """It has ended as it says it does; before the run has begun and after it was left, the signal is not the run's."""
    began, left = len(notes(run.folder, "began")), len(notes(run.folder, "left"))
    if code not in (0, EXIT_CODE) and not (code == -signal.SIGTERM and began == left):
        run.found(f"asked to end, it ended with {code}")
    done, saved = last_step(run.folder), newest_step(run.folder, run.found)
    if code == EXIT_CODE and saved < done:
        run.found(f"asked to end, it saved what was there at step {saved}, and had come to {done}")


def read_on(folder: Path) -> None:
    """Load the newest again and again until the run has been left, with a line for each in the notes."""
    with open(folder.with_name("reads"), "a") as file:
        while not notes(folder, "left"):
            told = notes(folder, "told")
            file.write(read(folder, max((int(step) for step, _ in told), default=-1)) + "\n")
            file.flush()
    os._exit(0)


def identity(path: Path) -> int:
    """Which folder it is; 0 if it is gone."""
    return path.stat().st_ino if path.exists() else 0


def read(folder: Path, told: int) -> str:
    """What a reader sees that was *told* of that step before."""
    path = find_newest(folder).path
    if path is None:
        return "none" if told >= 0 else "early"
    before = identity(path)
    try:
        checkpoint = load_checkpoint(path)
    except (CheckpointError, OSError) as error:
        # Gone, if a newer one was there and this one was let go, or replaced, while it was being read.
        return f"broken {path.name}: {error!r}" if before and identity(path) == before else "gone"
    step = checkpoint["meta"]["iter"]
    return f"read {step} {digest(checkpoint)}" if step >= told else f"older than {told}: {path.name}"


@pytest.mark.parametrize("count", [2, pytest.param(30, marks=LONG)])
def test_who_reads_beside_a_training_always_finds_the_newest_whole(
    tmp_path: Path, row: MakeRow, seed: int, wholes: Wholes, count: int
) -> None:
    """Once the first was told of there always is one, even where only one is kept, and it is what was saved."""
    reads = row("reads beside a training", "broken, older or missing")
    for number in range(count):
        chance = random.Random(f"{seed} read {number}")
        run = begin(tmp_path / f"{number}", any_kind(chance), wholes)
        reader = forked(read_on, run.folder)
        finish(run, ("weights", "lines"))
        if (code := end(run, reader)) != 0:
            run.found(f"a reader ended with {code}")
        seen = [line.split() for line in run.folder.with_name("reads").read_text().splitlines()]
        reads.tried += len(seen)
        for first, *rest in seen:
            if first not in ("read", "early", "gone") or (
                first == "read" and run.whole.states[int(rest[0])] != rest[1]
            ):
                run.found(f"a reader saw: {first} {' '.join(rest)}")
        settle(run, reads)
    reads.check()


@pytest.mark.parametrize("killed", [3, 12, 14])
def test_what_a_killed_run_had_no_time_to_delete_goes_when_it_is_resumed(
    make_runner: Callable[..., Any], tmp_path: Path, killed: int
) -> None:
    """However much had been waiting for a slow upload, and even if nothing is left to be trained or saved."""
    keep = {"max_keep_ckpts": 1, "by_epoch": False, "interval": 1}
    options = {"count": 14, "epochs": 1, "default_hooks": {"logger": None, "checkpoint": keep}}
    runner = make_runner(**options)
    gate = threading.Event()
    runner.on("after_commit_checkpoint", offload=True, lane="upload")(lambda: gate.wait(60))

    @runner.on("after_commit_checkpoint", when=lambda step: step == killed)
    def copy_the_folder() -> None:
        shutil.copytree(tmp_path / "run", tmp_path / "killed", ignore=shutil.ignore_patterns(".*"))
        gate.set()

    runner.train()
    assert len(Store(tmp_path / "killed").names()) >= killed
    make_runner(**options, work_dir="killed", resume=True).train()
    assert Store(tmp_path / "killed").names() == ["iter_14"]


def test_the_log_is_on_the_disk_before_a_save_that_nothing_goes_on_beside(
    make_runner: Callable[..., Any], tmp_path: Path
) -> None:
    """Else a run that was killed in between would go on with a gap in its log."""
    saving = {"by_epoch": False, "interval": 1, "mode": "sync"}
    runner = make_runner(count=2, epochs=1, default_hooks={"logger": {"interval": 1}, "checkpoint": saving})
    gate = threading.Event()
    told: list[int] = []

    @runner.on("before_train_iter", once=True)
    def hold_the_log_up(runner: Any) -> None:
        runner.session.lanes.submit(Task(gate.wait, "log"), (60,))
        threading.Timer(0.2, gate.set).start()

    @runner.on("after_commit_checkpoint")
    def committed(step: int) -> None:
        told.append(step)
        assert rows_of(tmp_path / "run") >= step

    runner.train()
    assert told == [1, 2]

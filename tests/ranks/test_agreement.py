"""What one rank asks of the run, all do after the same iteration."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from eventrunner import Runner, load_checkpoint
from eventrunner.checkpoint import find_newest
from eventrunner.errors import Preempted, RankFailedError
from eventrunner.ranks.world import join

from test_one_run import make  # isort: skip
from world import on_ranks  # isort: skip

ROUNDS = 12
"""Stops that are asked for, by all ranks together."""


def stopping(folder: Path, seed: int) -> list[tuple[int, int, str, str]]:
    """Train some times, in each of which one rank alone stops the run; say after which step each ended, and why."""
    ranks, common = join(), random.Random(seed)
    own, found = random.Random(seed * 100 + ranks.rank), []
    runner = make(folder, train_cfg={"max_epochs": 1000}, val_dataloader=None, val_evaluator=None, val_step=None)
    plan: dict[str, Any] = {}

    @runner.on("after_train_iter")
    def maybe(runner: Runner) -> None:
        time.sleep(own.random() * 0.002)
        if runner.iter == plan["at"] and runner.rank == plan["rank"]:
            if plan["by"] == "loop":
                runner.train_loop.stop_training = True
            else:
                runner.stop(plan["by"])

    for number in range(ROUNDS // ranks.world):
        plan = {
            "at": runner.iter + common.randrange(8), "rank": common.randrange(ranks.world),
            "by": common.choice(["loop", f"round {number}"]),
        }  # fmt: skip
        runner.train()
        found.append((plan["at"], runner.iter, runner.stop_reason, plan["by"]))
    return found


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_stop_on_one_rank_stops_all_after_the_same_iteration(tmp_path: Path, world: int) -> None:
    """At any time, however far apart they are; the reason is one, and a training goes on after it."""
    found = on_ranks(world, stopping, tmp_path / "run", random.randrange(1000))
    assert all(each == found[0] for each in found), found
    for asked, ended, reason, by in found[0]:
        assert asked + 1 <= ended
        assert reason == ("stopped" if by == "loop" else by)


def early(folder: Path) -> tuple[int, str]:
    rank = join().rank
    hook = {"type": "EarlyStoppingHook", "monitor": "error", "rule": "less", "patience": 2}
    runner = make(folder, train_cfg={"max_epochs": 50}, custom_hooks=[hook])

    @runner.on("after_val_epoch", priority="HIGHEST")
    def differ(metrics: dict[str, float]) -> None:
        metrics["error"] += rank * runner.epoch  # it gets better on rank 0 alone

    runner.train()
    return runner.iter, runner.stop_reason


def test_an_early_stop_on_a_metric_that_differs_stops_all(tmp_path: Path) -> None:
    """As the hook of one rank asks for it."""
    first, second = on_ranks(2, early, tmp_path / "run")
    assert first == second
    assert first == (12, "early_stop")  # with the second validation that wasn't better, as in one process


def stopped_at(folder: Path, site: str) -> tuple[int, str]:
    runner = make(folder, train_cfg={"max_epochs": 50})

    @runner.on(site)
    def stop(runner: Runner) -> None:
        if runner.rank == 1 and runner.progress.step in (0, 8):
            runner.stop("enough")

    runner.train()
    return runner.iter, runner.stop_reason


@pytest.mark.parametrize(("site", "step"), [("before_train", 0), ("after_train_epoch", 8), ("after_val", 8)])
def test_a_stop_where_all_ranks_meet_is_done_there(tmp_path: Path, site: str, step: int) -> None:
    """As with one process: no iteration follows."""
    assert on_ranks(2, stopped_at, tmp_path / "run", site) == [(step, "enough")] * 2


def signalled(folder: Path, rank: int, site: str) -> Any:
    runner = make(folder, train_cfg={"max_epochs": 100}, offload={"grace": 20})

    @runner.on(site)
    def ask(runner: Runner) -> None:
        if runner.rank == rank and runner.iter >= 5 and runner.stop_reason == "" and "sent" not in vars(runner):
            vars(runner)["sent"] = True
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        runner.train()
    except Preempted as end:
        newest = find_newest(folder).path
        assert newest is not None
        return end.code, end.signal, runner.progress.step, runner.stop_reason, load_checkpoint(newest)["meta"]["iter"]
    return "not preempted"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("site", ["after_train_iter", pytest.param("after_val_iter", marks=pytest.mark.long)])
def test_a_signal_to_one_rank_ends_all_with_one_save(tmp_path: Path, rank: int, site: str) -> None:
    """At one step, also where it comes within a validation; each rank leaves with 75."""
    first, second = on_ranks(2, signalled, tmp_path / "run", rank, site)
    code, name, step, reason, saved = first
    assert (code, name, reason) == (75, "SIGTERM", "preempted")
    assert step == saved >= 5
    assert first == second


def all_signalled(folder: Path) -> Any:
    """Signals to each rank, more than a second apart, while it saves."""
    runner = make(folder, train_cfg={"max_epochs": 100})
    sent: list[int] = []

    @runner.on("after_train_iter")
    def ask(runner: Runner) -> None:
        if runner.iter == 5 and runner.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    @runner.on("after_train")
    def again(runner: Runner) -> None:
        if runner.rank == 1 and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        runner.train()
    except Preempted as end:
        return end.code, runner.progress.step, runner.stop_reason
    return "not preempted"


def test_a_signal_that_comes_to_a_rank_when_all_have_begun_to_leave_is_the_same_request(tmp_path: Path) -> None:
    """It is that rank's first."""
    first, second = on_ranks(2, all_signalled, tmp_path / "run")
    assert first == second
    assert first[0] == 75
    assert first[2] == "preempted"


def log_fails(folder: Path) -> Any:
    runner = make(folder, train_cfg={"max_epochs": 100})

    @runner.on("after_train_iter")
    def fail(runner: Runner) -> None:
        if runner.iter == 6 and runner.rank == 1:
            runner.end_for(OSError("the log is full"))

    try:
        runner.train()
    except (OSError, RankFailedError) as error:
        return f"{type(error).__name__}: {error}", runner.progress.step
    return "trained", runner.progress.step


def test_a_log_that_fails_on_one_rank_ends_all(tmp_path: Path) -> None:
    """They stop together, save, and then fail of it."""
    (first, at), (second, also) = on_ranks(2, log_fails, tmp_path / "run")
    assert at == also < 20
    assert second == "OSError: the log is full"
    assert first.startswith("RankFailedError: rank 1, ")
    assert first.endswith("OSError: the log is full")

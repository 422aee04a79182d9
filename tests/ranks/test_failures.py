"""The first failure of any rank ends all of them within seconds, and each says which it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from eventrunner import Runner
from eventrunner.errors import RankFailedError

from test_one_run import make  # isort: skip
from world import Died, on_ranks  # isort: skip

LIMIT = 10.0
"""Seconds after which a rank that hangs is killed, and the test fails."""


def failing(folder: Path, rank: int, where: str, others: str) -> Any:
    """Train; one rank fails in its sixth iteration, or the validation behind it, while another waits for it."""
    own = int(os.environ["RANK"])
    sys.stderr.flush()
    os.dup2(os.open(folder.parent / f"stderr-{own}", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)

    def fail(runner: Runner) -> None:
        if runner.iter >= 5 and runner.rank == rank:
            if where == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("of no use")

    def train_step(model: Any, batch: Any) -> dict[str, torch.Tensor]:
        if where == "train_step":
            fail(runner)
        return {"loss": (model(batch[0]) - batch[1]).square().mean()}

    runner = make(folder, train_step=train_step, train_cfg={"max_epochs": 50})
    if where != "train_step":
        offload = where == "lane"
        site = {"lane": "after_train_iter", "killed": "after_train_iter"}.get(where, where)
        if offload:
            runner.on(site, offload=True)(lambda runner: fail(runner))
        else:
            runner.on(site)(fail)

    @runner.on("before_val_iter" if "val" in where else "before_train_iter")
    def wait(runner: Runner) -> None:
        if runner.iter >= 6 and runner.rank != rank:
            if others == "all_reduce":
                dist.all_reduce(torch.zeros(1))
            elif others == "asleep":
                time.sleep(60)

    @runner.on("on_exception")
    def linger(exception: BaseException) -> None:
        if isinstance(exception, ValueError) and others != "training":
            time.sleep(1.5)  # its connections stay open meanwhile

    try:
        runner.train()
    except RankFailedError as error:
        return f"RankFailedError: {error}", "".join(getattr(error, "__notes__", []))
    return "trained"


def ended(tmp_path: Path, world: int, rank: int, where: str, others: str) -> list[str]:
    """What each rank has said when it ended."""
    found = on_ranks(world, failing, tmp_path / "run", rank, where, others, limit=LIMIT, may_die=True)
    said = []
    for own, each in enumerate(found):
        if isinstance(each, Died):
            assert each.code == (-signal.SIGKILL if where == "killed" and own == rank else 1), found
            said.append((tmp_path / f"stderr-{own}").read_text())
        else:
            said.append(each if isinstance(each, str) else "\n".join(each))
    return said


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
@pytest.mark.parametrize(
    ("where", "others"),
    [
        ("lane", "training"), ("after_train_iter", "training"), ("train_step", "all_reduce"),
        ("after_val_iter", "all_reduce"), ("train_step", "asleep"),
    ],
)  # fmt: skip
def test_an_exception_of_one_rank_ends_all(tmp_path: Path, rank: int, where: str, others: str) -> None:
    """Whatever the other is in; it names the rank, the place and the exception, and has its traceback."""
    said = ended(tmp_path, 2, rank, where, others)
    assert said[rank] == "ValueError: of no use"
    other = said[1 - rank]
    assert f"RankFailedError: rank {rank}, " in other, other
    assert "test_failures.py:" in other
    assert "iteration " in other
    assert ": ValueError: of no use" in other
    assert 'raise ValueError("of no use")' in other
    if where.startswith("after"):
        assert f"rank {rank}, {where}, test_failures.py:" in other


@pytest.mark.parametrize("others", ["all_reduce", pytest.param("asleep", marks=pytest.mark.long)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_killed_ends_all(tmp_path: Path, rank: int, others: str) -> None:
    """Nobody says a word; its connections close."""
    said = ended(tmp_path, 3, rank, "killed", others)
    for own in {0, 1, 2} - {rank}:
        assert f"RankFailedError: rank {rank}, which " in said[own], said
        assert "is gone" in said[own]


def after_training(folder: Path, rank: int) -> Any:
    runner = make(folder, train_cfg={"max_iters": 3})

    @runner.on("after_run")
    def fail(runner: Runner) -> None:
        if runner.rank == rank:
            raise ValueError("at the end")

    runner.train()
    return "trained"


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_failure_at_the_very_end_is_one_of_all(tmp_path: Path, rank: int) -> None:
    """As they leave together."""
    found = on_ranks(2, after_training, tmp_path / "run", rank, limit=LIMIT)
    assert found[rank] == "ValueError: at the end"
    assert found[1 - rank].startswith(f"RankFailedError: rank {rank}, after_run, test_failures.py:")


def both(folder: Path) -> Any:
    runner = make(folder)

    @runner.on("after_train_iter")
    def fail(runner: Runner) -> None:
        raise ValueError(f"on rank {runner.rank}")

    runner.train()


def test_of_several_failures_all_name_the_first(tmp_path: Path) -> None:
    """The own one of a rank that came later is the cause."""
    found = on_ranks(2, both, tmp_path / "run", limit=LIMIT)
    first = next(rank for rank in (0, 1) if found[rank] == f"ValueError: on rank {rank}")
    assert found[1 - first].startswith(f"RankFailedError: rank {first}, after_train_iter, ")


def test_the_log_has_the_failure_of_another_rank(tmp_path: Path) -> None:
    """Of the first rank, whose log it is, with the traceback."""
    ended(tmp_path, 2, 1, "train_step", "asleep")
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "ValueError: of no use" in text
    assert "train_step" in text

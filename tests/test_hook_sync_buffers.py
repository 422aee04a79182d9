"""SyncBuffersHook on two real processes that talk by gloo and train BatchNorm on different data."""

from __future__ import annotations

import datetime
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from eventrunner.bus.bus import Bus
from eventrunner.hooks import SyncBuffersHook
from eventrunner.ranks.deal import per_rank
from eventrunner.runner import Runner

Record = dict[str, list[dict[str, Tensor]]]
FLOATS = ("1.running_mean", "1.running_var")


class Nothing:
    """A metric of which nothing is asked."""

    def update(self, value: Tensor) -> None:
        pass

    def compute(self) -> float:
        return 0.0

    def reset(self) -> None:
        pass

    def sync(self) -> None:
        pass


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of them."""
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def make(folder: Path, rank: int, train_cfg: dict[str, int]) -> Runner:
    """Rank 0 has two batches and rank 1 three, of other values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    data = list(torch.randn(2 + rank, 4, 2, generator=torch.Generator().manual_seed(rank)) + rank)
    return Runner(
        model=model,
        work_dir=folder,
        train_dataloader=per_rank(data),
        val_dataloader=per_rank(data[:1]),
        parallel=None,
        train_cfg=train_cfg,
        train_step=lambda model, batch: {"loss": model(batch).square().mean()},
        val_step=lambda model, batch: model(batch),
        val_evaluator={"nothing": Nothing()},
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        custom_hooks=[SyncBuffersHook()],
        default_hooks={"logger": None, "checkpoint": None},
        bus=Bus(),
        device="cpu",
        log_level="ERROR",
    )


def watched(runner: Runner) -> Record:
    """Train, and note the buffers before and after the hook's turn at both of its sites."""
    seen: Record = {"epoch, before": [], "epoch, after": [], "val, before": [], "val, after": []}

    def note(site: str, key: str, priority: str) -> None:
        runner.on(site, priority=priority)(lambda runner: seen[key].append(buffers(runner.model)))

    note("after_train_epoch", "epoch, before", "HIGH")
    note("after_train_epoch", "epoch, after", "LOWEST")
    note("before_val_epoch", "val, before", "HIGH")
    note("before_val_epoch", "val, after", "LOWEST")
    runner.train()
    return seen


def spoiled(runner: Runner) -> Record:
    """The same, where something writes to the buffers between the epoch's end and its validation."""
    runner.on("after_train_epoch", priority="LOWEST")(lambda runner: runner.model[1].running_mean.fill_(runner.rank))
    return watched(runner)


def work(rank: int, folder: Path) -> None:
    """Be a rank: three trainings, and a file with what was seen in them."""
    store, timeout = (folder / "store").as_uri(), datetime.timedelta(seconds=60)
    torch_dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    try:
        records = {
            "epochs": watched(make(folder / f"a{rank}", rank, {"max_epochs": 2})),
            "iters": watched(make(folder / f"b{rank}", rank, {"max_iters": 4, "val_interval": 2})),
            "spoiled": spoiled(make(folder / f"c{rank}", rank, {"max_epochs": 1})),
        }
        torch.save(records, folder / f"{rank}.pt")
    finally:
        torch_dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Record]]:
    """What both ranks saw."""
    folder = tmp_path_factory.mktemp("ranks")
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, folder), daemon=True)
    other.start()
    work(0, folder)
    other.join(100)
    assert other.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def pairs(ranks: list[dict[str, Record]], run: str, key: str) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What rank 0 and rank 1 saw, one after the other."""
    return list(zip(ranks[0][run][key], ranks[1][run][key], strict=True))


@pytest.mark.parametrize(("run", "place"), [("epochs", "epoch"), ("iters", "val")])
@pytest.mark.slow
def test_float_buffers_become_the_mean_of_both_ranks(ranks: list[dict[str, Record]], run: str, place: str) -> None:
    """After each epoch, and by iterations before each validation; equal on both, bit for bit."""
    before, after = pairs(ranks, run, f"{place}, before"), pairs(ranks, run, f"{place}, after")
    assert len(before) == len(after) == 2
    for (old0, old1), (new0, new1) in zip(before, after, strict=True):
        for name in FLOATS:
            assert not torch.equal(old0[name], old1[name])
            assert torch.equal(new0[name], new1[name])
            torch.testing.assert_close(new0[name], (old0[name] + old1[name]) / 2)


def test_integer_buffers_are_left_alone(ranks: list[dict[str, Record]]) -> None:
    """Each rank goes on counting its own batches."""
    counts = [[int(seen["1.num_batches_tracked"]) for seen in rank["epochs"]["epoch, after"]] for rank in ranks]
    assert counts == [[2, 4], [3, 6]]


def test_right_after_an_epoch_nothing_is_sent_twice(ranks: list[dict[str, Record]]) -> None:
    """What was written in between stays each rank's own."""
    (zero, one), *_ = pairs(ranks, "spoiled", "val, after")
    assert zero["1.running_mean"].tolist() == [0.0] * 3
    assert one["1.running_mean"].tolist() == [1.0] * 3


def test_one_process_has_nobody_to_agree_with(tmp_path: Path) -> None:
    """The buffers stay what they were."""
    seen: Any = watched(make(tmp_path / "run", 0, {"max_epochs": 1}))
    for place in ("epoch", "val"):
        (before,), (after,) = seen[f"{place}, before"], seen[f"{place}, after"]
        assert all(torch.equal(before[name], after[name]) for name in before)

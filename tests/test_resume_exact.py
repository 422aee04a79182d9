"""Stopped at any iteration and resumed, and stopped and resumed again, a run is the run that was left alone.

With what draws or remembers most: dropout, BatchNorm, bfloat16, accumulated and clipped gradients, schedules, averages,
shuffled data, and numbers from all three global generators; on a plain and a stateful loader, with workers and without.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tiny import TIMES, same
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import find_newest, load_checkpoint
from eventrunner.hooks import EMAHook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.state import rng_state, set_rng_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata calls it
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than this machine has cores
]

BATCHES, PASSES = 3, 2
STEPS = BATCHES * PASSES


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Six samples, with noise from every global generator where that can be put back."""

    def __init__(self, noisy: bool) -> None:
        self.noisy = noisy
        self.inputs = torch.randn(2 * BATCHES, 4, generator=torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        value = self.inputs[index]
        if self.noisy:
            value = value + torch.rand(4) + random.random() + float(numpy.random.rand())
        return value, self.inputs[index].sum(0, keepdim=True)


def plain(workers: int) -> DataLoader[Any]:
    """Its workers' noise is drawn again with its batches."""
    return DataLoader(Samples(noisy=True), 2, shuffle=True, num_workers=workers)


def stateful(workers: int) -> StatefulDataLoader[Any]:
    """Its workers' noise would not be: its state doesn't hold their generators."""
    return StatefulDataLoader(Samples(noisy=not workers), 2, shuffle=True, num_workers=workers)


def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """A loss with noise from python's and numpy's generators; torch's is drawn from by the dropout."""
    noise = 1 + random.random() / 10 + float(numpy.random.rand()) / 10
    return {"loss": (model(batch[0]).float() - batch[1]).square().mean() * noise}


def make(folder: Path, loader: Callable[[int], Any], workers: int, by_epoch: bool, **more: Any) -> Runner:
    """A run with everything that has a state; it logs every iteration and saves where it ends."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        dataloader = loader(workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return Runner(
        model=model,
        work_dir=folder,
        train_dataloader=dataloader,
        train_cfg={"max_epochs": PASSES} if by_epoch else {"max_iters": STEPS},
        train_step=step,
        optim_wrapper=OptimWrapper(optimizer, accumulative_counts=2, clip_grad={"max_norm": 0.5}, dtype="bfloat16"),
        param_scheduler=[
            {"scheduler": CosineAnnealingLR(optimizer, STEPS), "by_epoch": False},
            {"scheduler": StepLR(optimizer, 1, 0.5), "by_epoch": True},
        ],
        default_hooks={"logger": {"interval": 1}, "checkpoint": {"interval": -1}},
        custom_hooks=[EMAHook(momentum=0.1, update_buffers=True)],
        bus=Bus(),
        device="cpu",
        log_level="ERROR",
        progress=False,
        randomness={"seed": 1},
        **more,
    )


def run(folder: Path, variant: tuple[Any, ...], stop: int = STEPS, **more: Any) -> None:
    """Train up to iteration *stop*, where the run is stopped and saved; nothing is left of it here."""
    runner = make(folder, *variant, **more)
    runner.on("after_train_iter", when=lambda runner: runner.iter + 1 == stop)(lambda runner: runner.stop())
    runner.train()
    assert runner.iter == stop
    if left := getattr(runner.train_dataloader, "_iterator", None):
        left._shutdown_workers() if runner.train_dataloader.num_workers else None  # the collector takes seconds for it


def lines(folder: Path) -> list[str]:
    """``log.jsonl`` to the byte, but for what the clock says."""
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert text == "".join(json.dumps(row) + "\n" for row in rows)
    return [json.dumps({key: value for key, value in row.items() if key not in TIMES}) for row in rows]


def final(folder: Path) -> dict[str, Any]:
    """The newest checkpoint, without what the clock or the way there says."""
    newest = find_newest(folder).path
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    assert checkpoint["meta"]["iter"] == STEPS
    scalars = checkpoint["message_hub"]["log_scalars"]
    kept = ("state_dict", "optimizer", "param_schedulers", "rng", "gradients", "grad_norms", "loop")
    return {
        **{key: checkpoint[key] for key in kept},
        "ema": checkpoint["hooks"]["EMAHook"],
        "scalars": {key: value for key, value in scalars.items() if not key.endswith("time")},
        "newest": newest.name,
    }


@pytest.fixture(autouse=True)
def _generators_are_left_alone() -> Iterator[None]:
    """These tests draw from all of them."""
    state = rng_state()
    yield
    set_rng_state(state)


@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epoch", "by iteration"])
@pytest.mark.parametrize(
    ("loader", "workers"),
    [(plain, 0), (plain, 2), (stateful, 0), pytest.param(stateful, 2, marks=pytest.mark.long)],
    ids=["plain-0", "plain-2", "stateful-0", "stateful-2"],
)
@pytest.mark.slow
def test_from_every_iteration_and_from_there_again_nothing_differs(
    tmp_path: Path, loader: Callable[[int], Any], workers: int, by_epoch: bool
) -> None:
    """Weights, moments, averages, generators, position, and every logged loss, to the bit.

    The second stop comes one to three iterations after the first: in the same pass, at its last batch, or beyond.
    """
    variant = (loader, workers, by_epoch)
    run(tmp_path / "whole", variant)
    expected, logged = final(tmp_path / "whole"), lines(tmp_path / "whole")
    assert len(logged) >= STEPS
    for first in range(1, STEPS):
        folder = tmp_path / str(first)
        second = min(first + 1 + first % 3, STEPS)
        run(folder, variant, first)
        random.seed(99)
        numpy.random.seed(99)
        run(folder, variant, second, resume=True)
        if second < STEPS:
            run(folder, variant, resume=True)
        ours = final(folder)
        assert {key for key in expected if not same(ours[key], expected[key])} == set(), (first, second)
        assert lines(folder) == logged, (first, second)

"""DistSamplerSeedHook with torch's DistributedSampler: on two real ranks, and with the shapes that loaders have."""

from __future__ import annotations

import datetime
import gc
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from eventrunner.bus.bus import Bus
from eventrunner.runner import Runner

DATA = TensorDataset(torch.arange(12.0))


class Noted(DistributedSampler[Any]):
    """torch's sampler, keeping the epochs that it was told."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(DATA, *args, **options)
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)
        super().set_epoch(epoch)


def make(folder: Path, loader: Any, **options: Any) -> tuple[Runner, list[list[int]]]:
    """A run, and the list that gets each batch's samples as they come."""
    model, samples = nn.Linear(1, 1), []

    def train_step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        samples.append([int(value) for value in batch[0].reshape(-1)])
        return {"loss": model(batch[0].reshape(-1, 1)).mean()}

    runner = Runner(
        model=model,
        work_dir=folder,
        train_dataloader=loader,
        train_step=train_step,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        bus=Bus(),
        device="cpu",
        log_level="ERROR",
        **{"train_cfg": {"max_epochs": 3}, "default_hooks": {"logger": None, "checkpoint": None}, **options},
    )
    return runner, samples


def passes(samples: list[list[int]], batches: int) -> list[list[int]]:
    """The samples of each pass, in order."""
    starts = range(0, len(samples), batches)
    return [[sample for batch in samples[start : start + batches] for sample in batch] for start in starts]


def work(rank: int, folder: Path) -> None:
    """Be a rank: three epochs, and a file with the epochs told and the samples seen."""
    store, timeout = (folder / "store").as_uri(), datetime.timedelta(seconds=60)
    torch_dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    try:
        sampler = Noted(shuffle=True)
        runner, samples = make(folder / f"run{rank}", DataLoader(DATA, batch_size=2, sampler=sampler))
        runner.train()
        (folder / f"{rank}.json").write_text(json.dumps([sampler.told, passes(samples, 3)]))
        del runner  # the wrapper would keep the group's threads beyond its end, and to the interpreter's
        gc.collect()
    finally:
        torch_dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[int], list[list[int]]]]:
    """Of each rank the epochs told, and the samples of each epoch."""
    folder = tmp_path_factory.mktemp("ranks")
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, folder), daemon=True)
    other.start()
    work(0, folder)
    other.join(100)
    assert other.exitcode == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


class TestTwoRanks:
    @pytest.mark.slow
    def test_each_epoch_has_an_order_of_its_own(self, ranks: list[Any]) -> None:
        """Without the hook, all of them would be the first one's."""
        for _, (first, second, third) in ranks:
            assert first != second != third != first

    def test_the_ranks_share_the_samples_out(self, ranks: list[Any]) -> None:
        """In each epoch no sample is seen by both, and none is left out."""
        for ours, theirs in zip(ranks[0][1], ranks[1][1], strict=True):
            assert sorted(ours + theirs) == list(range(12))

    def test_the_sampler_is_told_every_epoch(self, ranks: list[Any]) -> None:
        """Counted from 0."""
        assert [told for told, _ in ranks] == [[0, 1, 2], [0, 1, 2]]


def half(**options: Any) -> Noted:
    """The first rank's sampler of two, without a second process."""
    return Noted(num_replicas=2, rank=0, **options)


def test_a_batch_samplers_own_sampler_is_reached(tmp_path: Path) -> None:
    """DataLoader(batch_sampler=…) has another sampler at its surface."""
    sampler = half()
    loader = DataLoader(DATA, batch_sampler=BatchSampler(sampler, batch_size=2, drop_last=False))
    runner, samples = make(tmp_path / "run", loader)
    runner.train()
    assert sampler.told == [0, 1, 2]
    first, second, third = passes(samples, 3)
    assert first != second != third != first


def test_a_loader_that_doesnt_batch_is_told_too(tmp_path: Path) -> None:
    """DataLoader(batch_size=None) has no batch sampler."""
    sampler = half()
    runner, _ = make(tmp_path / "run", DataLoader(DATA, batch_size=None, sampler=sampler))
    runner.train()
    assert sampler.told == [0, 1, 2]


@pytest.mark.parametrize("loader", [DataLoader(DATA, batch_size=4), [[torch.ones(2)]]])
def test_a_loader_without_such_a_sampler_is_left_alone(tmp_path: Path, loader: Any) -> None:
    """A plain sampler has no epoch, and a list no sampler."""
    runner, _ = make(tmp_path / "run", loader)
    runner.train()
    assert runner.epoch == 3


def test_by_iterations_the_sampler_moves_on_pass_by_pass(tmp_path: Path) -> None:
    """Though to receivers the whole training is one epoch."""
    sampler = half()
    runner, samples = make(
        tmp_path / "run", DataLoader(DATA, batch_size=2, sampler=sampler), train_cfg={"max_iters": 8}
    )
    runner.train()
    assert sampler.told == [0, 1, 2]
    first, second, third = passes(samples, 3)
    assert first != second
    assert second[:4] != third != first[:4]


@pytest.mark.parametrize("cfg", [{"max_iters": 8}, {"max_epochs": 3}])
def test_a_resumed_training_goes_on_in_the_order_of_its_pass(tmp_path: Path, cfg: dict[str, int]) -> None:
    """Five iterations and the rest give the samples of the uninterrupted run."""
    whole, expected = make(tmp_path / "whole", DataLoader(DATA, batch_size=2, sampler=half()), train_cfg=cfg)
    whole.train()
    options: dict[str, Any] = {"train_cfg": cfg, "default_hooks": {"logger": None}}
    first, samples = make(tmp_path / "run", DataLoader(DATA, batch_size=2, sampler=half()), **options)
    first.on("after_train_iter", every=5, once=True)(lambda runner: runner.stop())
    first.train()
    second, rest = make(tmp_path / "run", DataLoader(DATA, batch_size=2, sampler=half()), resume=True, **options)
    second.train()
    assert samples + rest == expected

"""A loop written by hand, on several ranks: the same lines as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from eventrunner import Checkpointer, join, load_checkpoint

from world import on_ranks  # isort: skip


def data() -> TensorDataset:
    inputs = torch.arange(150, dtype=torch.float64).reshape(50, 3).sin()
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def looped(folder: Path, stop: int | None = None, resume: bool = False) -> dict[str, Any]:
    """Train two passes, or as far as *stop*, and return the weights and what was seen."""
    ranks = join()
    torch.manual_seed(ranks.rank)
    model: nn.Module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    if ranks.several:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader, seen = DataLoader(data(), 16, shuffle=True), list[float]()
    with Checkpointer(folder, model=model, optimizer=optimizer, resume=resume, keep=2) as ckpt:
        while ckpt.epoch < 2 and ckpt.step != stop:
            for inputs, targets in ckpt.batches(loader):
                loss = (model(inputs) - targets).square().mean() * ckpt.weight
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen += inputs.sum(1).tolist()
                ckpt.save()
                if ckpt.step == stop:
                    break
    return {"weights": [each.tolist() for each in model.parameters()], "seen": seen, "step": ckpt.step}


def test_two_ranks_share_the_batches_and_one_writes(tmp_path: Path) -> None:
    """Under the names that the model has in one process."""
    first, second = on_ranks(2, looped, tmp_path / "run")
    assert first["weights"] == second["weights"], (first, second)
    assert (first["step"], len(first["seen"]) + len(second["seen"])) == (8, 100)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["step_7", "step_8"]
    checkpoint = load_checkpoint(tmp_path / "run" / "step_8")
    assert not [name for name in checkpoint["state_dict"] if name.startswith("module.")]


@pytest.mark.parametrize("stop", [pytest.param(2, marks=pytest.mark.long), 5])
def test_a_loop_of_two_ranks_goes_on_as_if_uninterrupted(tmp_path: Path, stop: int) -> None:
    """With dropout, whose draws are each rank's own."""
    whole = on_ranks(2, looped, tmp_path / "whole")
    on_ranks(2, looped, tmp_path / "cut", stop)
    resumed = on_ranks(2, looped, tmp_path / "cut", None, True)
    assert resumed[0]["weights"] == whole[0]["weights"], resumed


def test_a_folder_with_checkpoints_is_refused_on_every_rank(tmp_path: Path) -> None:
    """Rank 0 looks, and tells."""
    on_ranks(2, looped, tmp_path / "run", 1)
    found = on_ranks(2, looped, tmp_path / "run")
    assert (
        found
        == [f"RunExistsError: {tmp_path / 'run'} has checkpoints; pass resume=True, or choose another folder."] * 2
    )


def test_what_a_group_was_made_for_before_is_left_alone(tmp_path: Path) -> None:
    """The script's own group is the one that is used."""
    assert on_ranks(2, own_group, tmp_path / "run") == [True, True]


def own_group(folder: Path) -> bool:
    dist.init_process_group("gloo")
    group = dist.group.WORLD
    looped(folder, 1)
    return dist.group.WORLD is group

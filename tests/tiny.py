"""A tiny run: a regression with two inputs, of a few batches of two samples."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eventrunner.hook import Hook
from eventrunner.runner import Runner

Batch = tuple[Tensor, Tensor]

TIMES = ("train/time", "train/data_time", "val/time", "val/data_time", "eta")
QUIET = {"logger": None, "checkpoint": None}
"""Default hooks without those that write."""


def batches(count: int, seed: int = 7) -> list[Batch]:
    """As many batches, always the same."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 2, 2, generator=generator)
    return [(x, x.sum(1, keepdim=True) + 1) for x in inputs]


def linear(seed: int = 3) -> nn.Linear:
    """A model whose initial weights are always the same, and that moves no global generator."""
    model: nn.Linear = nn.utils.skip_init(nn.Linear, 2, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def train_step(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The mean squared error."""
    return {"loss": (model(batch[0]) - batch[1]).square().mean()}


def val_step(model: nn.Module, batch: Batch) -> Batch:
    """What the metric takes."""
    return model(batch[0]), batch[1]


class MeanSquaredError:
    """A metric, as small as it can be."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        self.errors.append((output - target).square().mean())

    def compute(self) -> Tensor:
        return torch.stack(self.errors).mean()

    def reset(self) -> None:
        self.errors.clear()


def options(*, count: int = 2, epochs: int = 2, val: bool = False, **changes: Any) -> dict[str, Any]:
    """The arguments of a Runner on the CPU that prints nothing; *changes* replace or add some."""
    model = changes.pop("model", None) or linear()
    chosen: dict[str, Any] = {
        "model": model,
        "train_dataloader": batches(count),
        "train_cfg": {"max_epochs": epochs},
        "train_step": train_step,
        "device": "cpu",
        "log_level": "ERROR",
        "progress": False,
        "randomness": {"seed": 1},
    }
    if "optim_wrapper" not in changes and "optimizer" not in changes:
        chosen["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    if val:
        evaluation = {"val_dataloader": batches(1, seed=8), "val_evaluator": {"mse": MeanSquaredError()}}
        chosen.update(evaluation, val_step=val_step)
    return {**chosen, **changes}


class Tracer(Hook):
    """Notes every site that the run passes, as ``site epoch,iter``."""

    def __init__(self, *leave_out: str) -> None:
        self.leave_out = leave_out
        self.seen: list[str] = []


def _tracing(site: str) -> Any:
    def note(self: Tracer, runner: Runner, **payload: Any) -> None:
        if site not in self.leave_out:
            self.seen.append(f"{site} {runner.epoch},{runner.iter}")

    return note


for _site in Hook.stages:
    setattr(Tracer, _site, _tracing(_site))


def forked(work: Callable[..., None], *arguments: Any) -> Any:
    """A process of its own that does *work*, and for which nothing must be imported again; it has been started."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: Any, theirs: Any) -> bool:
    """Whether two nested states are equal, tensors to the bit."""
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def rows(folder: Path) -> list[dict[str, Any]]:
    """``log.jsonl`` without what the clock says."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device, where reading it would be a wait; most machines have none."""

    is_cpu = False  # type: ignore[assignment]


def on_device(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of one number that says so."""
    return torch.tensor(value, dtype=dtype).as_subclass(OnDevice)

"""What all contenders train: a tiny model, so that the loop and not the arithmetic is what is measured.

The clock is in the model: each forward appends the time to a list. So what comes before the first iteration and after
the last doesn't count, all that happens in between does, and no contender needs a callback to be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

__all__ = ["RATE", "SIZE", "STEP_SIZE", "Batch", "Batches", "Marked", "Task", "Train", "make_task"]

SIZE = 8
RATE = 0.01
STEP_SIZE = 10_000  # of the scheduler: it is stepped at each iteration, and changes nothing for so many

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Batches as a dataloader hands them out, for trainers that take a list for something else."""

    batch_size = SIZE
    sampler = None

    def __init__(self, batches: list[Batch]) -> None:
        self.dataset = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)


class Marked(nn.Linear):
    """A linear layer that notes when it was called."""

    def __init__(self, marks: list[float]) -> None:
        super().__init__(SIZE, SIZE)
        self.marks = marks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.marks.append(time.perf_counter())
        return super().forward(x)


@dataclass(frozen=True)
class Task:
    """What one repeat has to do: train on each batch once, in order."""

    batches: list[Batch]
    log_every: int  # iterations; one line with loss, rate and time
    save_every: int  # iterations; model, optimizer and scheduler, of which the newest is kept; 0: never
    marks: list[float]  # seconds, one for each iteration

    def make(self) -> tuple[Marked, torch.optim.SGD, torch.optim.lr_scheduler.StepLR]:
        """Model, optimizer and scheduler."""
        torch.manual_seed(0)
        model = Marked(self.marks)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, STEP_SIZE)


Train = Callable[[Task, Path], None]


def make_task(iters: int, log_every: int, save_every: int) -> Task:
    """Return a task of *iters* batches, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(iters, 2, SIZE, SIZE, generator=generator)
    return Task([(pair[0].clone(), pair[1].clone()) for pair in pairs], log_every, save_every, [])

"""This package's Runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from eventrunner import Bus, Runner
from eventrunner.hooks import DEFAULT_HOOKS
from peers.task import Batch, Marked, Task, Train

PACKAGE = "eventrunner"
DIFFERS = (
    "A save also holds counters, histories, random generators and the position in the data. It is written beside the "
    "training, synced, hashed and committed whole; the older one is deleted only then.",
    "Rows of the log are written beside the training, and are on the disk before a save is committed.",
    "Histories of losses, rates and times are kept whole, and the remaining time is reckoned.",
    "Without hooks it steps no scheduler, logs nothing and saves nothing.",
)


def train_step(model: Marked, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": mse_loss(model(batch[0]), batch[1])}


def run(task: Task, folder: Path, default_hooks: dict[str, Any]) -> None:
    model, optimizer, scheduler = task.make()
    runner = Runner(
        model=model,
        work_dir=folder / "run",
        train_step=train_step,
        optimizer=optimizer,
        param_scheduler=dict(scheduler=scheduler, by_epoch=False),
        train_dataloader=task.batches,
        train_cfg=dict(max_iters=len(task.batches)),
        default_hooks=default_hooks,
        bus=Bus(),
        device="cpu",
        progress=False,
    )
    runner.train()


def with_hooks(task: Task, folder: Path) -> None:
    checkpoint = dict(interval=task.save_every or -1, max_keep_ckpts=1, save_last=False)
    run(task, folder, {"logger": dict(interval=task.log_every), "checkpoint": checkpoint})


def without_hooks(task: Task, folder: Path) -> None:
    run(task, folder, dict.fromkeys(DEFAULT_HOOKS))


VARIANTS: dict[str, Train] = {"Runner, six default hooks": with_hooks, "Runner, no hooks": without_hooks}

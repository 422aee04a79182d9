"""MMEngine: Runner with its six default hooks."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn.functional import mse_loss

from peers.task import STEP_SIZE, Batches, Marked, Task, Train

PACKAGE = "mmengine-lite"
DIFFERS = (
    "Its own StepLR stands for torch's, which it doesn't take.",
    "A line goes to the terminal and three files; the loss is the mean of the last ten.",
    "It reads loss, rate and times at each iteration, which waits for a device where there is one, and keeps them all.",
)


class Model(BaseModel):
    def __init__(self, model: Marked) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str = "loss") -> dict[str, torch.Tensor]:
        return {"loss": mse_loss(self.model(x), y)}


def train(task: Task, folder: Path) -> None:
    model, optimizer, _ = task.make()
    saver = dict(type="CheckpointHook", interval=task.save_every, by_epoch=False, max_keep_ckpts=1)
    runner = Runner(
        model=Model(model),
        work_dir=str(folder),
        train_dataloader=Batches(task.batches),
        train_cfg=dict(by_epoch=False, max_iters=len(task.batches)),
        optim_wrapper=OptimWrapper(optimizer),
        param_scheduler=dict(type="StepLR", step_size=STEP_SIZE, gamma=0.1, by_epoch=False),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=task.log_every), checkpoint=saver if task.save_every else None
        ),
        experiment_name=folder.name,  # runs are found by name in the process, so no two may share one
    )
    runner.train()


VARIANTS: dict[str, Train] = {"MMEngine, six default hooks": train}

"""torchtnt: a TrainUnit, and train()."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch.nn.functional import mse_loss
from torchtnt.framework.callbacks import DistributedCheckpointSaver
from torchtnt.framework.train import train as train_unit
from torchtnt.framework.unit import TrainUnit
from torchtnt.utils.loggers import JSONLogger

from peers.task import Batch, Task, Train

PACKAGE = "torchtnt"
DIFFERS = (
    "It is given a TrainUnit, whose step is written by hand and lighter than AutoUnit's.",
    "It logs each 50th iteration's loss and rate and the interval's mean time to a JSON file, which it rewrites whole: "
    "nothing is smoothed. It also times each iteration and its wait for data, and keeps those times.",
    "A save goes through torch.distributed.checkpoint, which writes a file for each part and syncs them.",
)


class Unit(TrainUnit[Batch]):
    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__()
        self.model, self.optimizer, self.scheduler = task.make()  # what is saved
        self.log = JSONLogger(str(folder / "log.json"), steps_before_flushing=1)
        self.log_every, self.mark = task.log_every, time.perf_counter()

    def train_step(self, state: Any, data: Batch) -> None:
        loss = mse_loss(self.model(data[0]), data[1])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        step = self.train_progress.num_steps_completed + 1
        if step % self.log_every == 0:
            now = time.perf_counter()
            rate = self.optimizer.param_groups[0]["lr"]
            self.log.log_dict({"loss": loss, "lr": rate, "iter_time": (now - self.mark) / self.log_every}, step)
            self.mark = now
        self.scheduler.step()


def train(task: Task, folder: Path) -> None:
    callbacks = []
    if task.save_every:
        saver = DistributedCheckpointSaver(
            str(folder / "checkpoints"), save_every_n_train_steps=task.save_every, keep_last_n_checkpoints=1
        )
        callbacks.append(saver)
    unit = Unit(task, folder)
    train_unit(unit, task.batches, max_epochs=1, callbacks=callbacks)
    unit.log.close()


VARIANTS: dict[str, Train] = {"torchtnt": train}

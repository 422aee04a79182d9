"""Lightning: Trainer, with its CSV logger and ModelCheckpoint, and as bare-bones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import mse_loss

from peers.task import Batch, Batches, Task, Train

PACKAGE = "lightning"
DIFFERS = (
    "It logs each 50th iteration's loss and rate, and no times, to a CSV file, which it writes each 100 iterations.",
    "Bare-bones, it neither logs nor saves, but steps the scheduler.",
)


class Module(LightningModule):
    def __init__(self, task: Task, logs: bool) -> None:
        super().__init__()
        self.model, self.optimizer, self.scheduler = task.make()
        self.logs = logs

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = mse_loss(self.model(batch[0]), batch[1])
        if self.logs:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}


def train(task: Task, folder: Path) -> None:
    callbacks = [LearningRateMonitor("step")]
    if task.save_every:
        saver = ModelCheckpoint(folder / "checkpoints", every_n_train_steps=task.save_every, save_top_k=1)
        callbacks.append(saver)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(folder),
        log_every_n_steps=task.log_every,
        callbacks=callbacks,
        enable_checkpointing=bool(task.save_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(task, logs=True), Batches(task.batches))


def barebones(task: Task, folder: Path) -> None:
    trainer = Trainer(accelerator="cpu", max_epochs=1, barebones=True, default_root_dir=folder)
    trainer.fit(Module(task, logs=False), Batches(task.batches))


VARIANTS: dict[str, Train] = {"Lightning": train, "Lightning, barebones": barebones}

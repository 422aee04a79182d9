"""Composer: Trainer."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from peers.task import Batch, Batches, Marked, Task, Train

PACKAGE = "mosaicml"
DIFFERS = (
    "It asks for torch < 2.7.1 and is run with a later one. torchvision and its makers' own client, which it imports "
    "and doesn't use here, are replaced by empty modules.",
    "It reads the loss at each iteration, and logs the last one and the rate, and no times.",
    "A save also holds random generators, callbacks and the position in the data.",
)


class Empty(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012  # what makes it a package

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class EmptyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules, in this process alone, for what is imported and not needed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        unused = name.partition(".")[0] in ("torchvision", "mcli")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if unused else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing in it."""


sys.meta_path.insert(0, EmptyFinder())

from composer import ComposerModel, Trainer  # noqa: E402  # not before the finder is there
from composer.callbacks import LRMonitor  # noqa: E402


class Model(ComposerModel):
    def __init__(self, model: Marked) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return self.model(batch[0])

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return mse_loss(outputs, batch[1])


def train(task: Task, folder: Path) -> None:
    model, optimizer, scheduler = task.make()
    with open(folder / "log.txt", "w", encoding="utf-8") as file:
        trainer = Trainer(
            model=Model(model),
            train_dataloader=Batches(task.batches),
            max_duration=f"{len(task.batches)}ba",
            optimizers=optimizer,
            schedulers=scheduler,
            step_schedulers_every_batch=True,
            callbacks=[LRMonitor()],
            progress_bar=False,
            log_to_console=True,
            console_stream=file,
            console_log_interval=f"{task.log_every}ba",
            save_folder=str(folder / "checkpoints") if task.save_every else None,
            save_interval=f"{task.save_every or 1}ba",
            save_num_checkpoints_to_keep=1,
            device="cpu",
        )
        trainer.fit()
        trainer.close()


VARIANTS: dict[str, Train] = {"Composer": train}

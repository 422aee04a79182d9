"""Hugging Face Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from transformers import Trainer, TrainerCallback, TrainingArguments

from peers.task import Marked, Task, Train

PACKAGE = "transformers"
DIFFERS = (
    "Gradient clipping and the replacement of losses that are NaN are switched off, which the bare loop doesn't have; "
    "the gradients' norm is computed at each iteration all the same.",
    "It logs the interval's mean loss, the rate and the norm, and no times, and keeps all lines in memory.",
    "A save is a folder with weights, optimizer, scheduler, random generators, arguments, and all lines so far.",
)


class Model(nn.Module):
    def __init__(self, model: Marked) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": mse_loss(self.model(x), labels)}


class ListTrainer(Trainer):
    """Takes its batches from a list."""

    def __init__(self, batches: list[dict[str, torch.Tensor]], **options: Any) -> None:
        super().__init__(**options)
        self.batches = batches

    def get_train_dataloader(self) -> Any:
        return self.batches


class Log(TrainerCallback):
    """Writes a line each time that the Trainer logs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def train(task: Task, folder: Path) -> None:
    model, optimizer, scheduler = task.make()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(task.batches),
        logging_steps=task.log_every,
        logging_nan_inf_filter=False,
        max_grad_norm=0,
        save_strategy="steps" if task.save_every else "no",
        save_steps=task.save_every or 500,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = ListTrainer(
        [{"x": x, "labels": y} for x, y in task.batches],
        model=Model(model),
        args=arguments,
        optimizers=(optimizer, scheduler),
        callbacks=[Log(folder / "log.jsonl")],
    )
    trainer.train()


VARIANTS: dict[str, Train] = {"Hugging Face Trainer": train}

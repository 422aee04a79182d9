"""Keras on torch: fit()."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

import keras

from peers.task import RATE, SIZE, STEP_SIZE, Batch, Task, Train

PACKAGE = "keras"
DIFFERS = (
    "Layer, loss, optimizer and schedule are its own: it steps no torch optimizer or scheduler.",
    "It reads the loss at each iteration, and logs its mean over the epoch so far, the rate and the interval's time.",
    "A save is the whole model with its optimizer, in one file.",
)


class Marked(keras.layers.Dense):
    """A dense layer that notes when it was called."""

    def __init__(self, marks: list[float]) -> None:
        super().__init__(SIZE)
        self.mark = marks.append  # a list itself would be wrapped and copied

    def call(self, inputs: torch.Tensor, training: bool | None = None) -> Any:
        self.mark(time.perf_counter())
        return super().call(inputs, training)

    def get_config(self) -> dict[str, Any]:
        return {}


class BatchList(torch.utils.data.Dataset[Batch]):
    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


class Log(keras.callbacks.Callback):
    """Writes a line each so many batches; there is a CSV logger for epochs only."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path, self.every, self.mark = path, every, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % self.every == 0:
            now = time.perf_counter()
            rate = float(self.model.optimizer.learning_rate)
            row = {"step": batch + 1, **logs, "lr": rate, "time": (now - self.mark) / self.every}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.mark = now


def train(task: Task, folder: Path) -> None:
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    with keras.device("cpu"):
        model = keras.Sequential([Marked(task.marks)])
        model.build((SIZE, SIZE))
        schedule = keras.optimizers.schedules.ExponentialDecay(RATE, STEP_SIZE, 0.1, staircase=True)
        model.compile(keras.optimizers.SGD(schedule), loss="mse", jit_compile=False)
        log = Log(folder / "log.jsonl", task.log_every)
        callbacks: list[Any] = [log, keras.callbacks.LambdaCallback(on_train_begin=lambda logs: task.marks.clear())]
        if task.save_every:
            callbacks.append(keras.callbacks.ModelCheckpoint(folder / "last.keras", save_freq=task.save_every))
        data: Any = torch.utils.data.DataLoader(BatchList(task.batches), batch_size=None)
        model.fit(data, epochs=1, verbose=0, callbacks=callbacks)


VARIANTS: dict[str, Train] = {"Keras on torch": train}

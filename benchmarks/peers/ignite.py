"""PyTorch-Ignite: an Engine with handlers."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, LRScheduler, Timer
from ignite.metrics import RunningAverage
from torch.nn.functional import mse_loss

from peers.task import Batch, Task, Train

PACKAGE = "pytorch-ignite"
DIFFERS = (
    "Its step returns the loss as a tensor, which is lighter than the `loss.item()` of its ready-made trainer, and its "
    "handlers keep losses and times as the bare loop does, which is lighter than its RunningAverage and Timer.",
    "The one of ready-made parts is what its documentation shows: create_supervised_trainer, LRScheduler, "
    "RunningAverage, two Timers and Checkpoint; the loss is an exponential average, and times are means over the whole "
    "training.",
    "The lean one keeps none: a line has the last loss and the interval's mean time, and the wait for data isn't "
    "measured.",
)
WINDOW = 10


def make_trainer(task: Task, folder: Path) -> tuple[Engine, torch.optim.Optimizer]:
    """All but the lines of the log, of the plainest parts."""
    model, optimizer, scheduler = task.make()

    def step(engine: Engine, batch: Batch) -> torch.Tensor:
        optimizer.zero_grad()
        loss = mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.detach()

    trainer = Engine(step)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
    have_saved(trainer, task, folder, {"model": model, "optimizer": optimizer, "scheduler": scheduler})
    return trainer, optimizer


def have_saved(trainer: Engine, task: Task, folder: Path, parts: dict[str, Any]) -> None:
    if task.save_every:
        saver = Checkpoint(parts, DiskSaver(folder / "checkpoints"), n_saved=1)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=task.save_every), saver)


def write(file: IO[str], row: dict[str, float]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()
    print(row, flush=True)


def train(task: Task, folder: Path) -> None:
    trainer, optimizer = make_trainer(task, folder)
    losses: deque[torch.Tensor] = deque(maxlen=WINDOW)
    waits: deque[float] = deque(maxlen=WINDOW)
    times: deque[float] = deque(maxlen=WINDOW)
    mark = time.perf_counter()

    @trainer.on(Events.ITERATION_STARTED)
    def keep_wait() -> None:
        waits.append(time.perf_counter() - mark)

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine: Engine) -> None:
        nonlocal mark
        losses.append(engine.state.output)
        now = time.perf_counter()
        times.append(now - mark)
        mark = now

    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:

        @trainer.on(Events.ITERATION_COMPLETED(every=task.log_every))
        def log(engine: Engine) -> None:
            row = {
                "step": engine.state.iteration,
                "lr": optimizer.param_groups[0]["lr"],
                "data_time": sum(waits) / len(waits),
                "loss": torch.stack(tuple(losses)).mean().item(),
                "time": sum(times) / len(times),
            }
            write(file, row)

        trainer.run(task.batches, max_epochs=1)


def of_parts(task: Task, folder: Path) -> None:
    model, optimizer, scheduler = task.make()
    trainer = create_supervised_trainer(model, optimizer, mse_loss)
    rates, each, wait = LRScheduler(scheduler), Timer(average=True), Timer(average=True)
    trainer.add_event_handler(Events.ITERATION_STARTED, rates)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    each.attach(trainer, step=Events.ITERATION_COMPLETED)
    fetched = Events.GET_BATCH_COMPLETED
    wait.attach(trainer, resume=Events.GET_BATCH_STARTED, pause=fetched, step=fetched)
    have_saved(trainer, task, folder, {"model": model, "optimizer": optimizer, "scheduler": rates, "trainer": trainer})
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:

        @trainer.on(Events.ITERATION_COMPLETED(every=task.log_every))
        def log(engine: Engine) -> None:
            rate, loss = optimizer.param_groups[0]["lr"], engine.state.metrics["loss"]
            row = {"step": engine.state.iteration, "lr": rate, "loss": loss}
            write(file, {**row, "time": each.value(), "data_time": wait.value()})

        trainer.run(task.batches, max_epochs=1)


def lean(task: Task, folder: Path) -> None:
    trainer, optimizer = make_trainer(task, folder)
    mark = time.perf_counter()
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:

        @trainer.on(Events.ITERATION_COMPLETED(every=task.log_every))
        def log(engine: Engine) -> None:
            nonlocal mark
            now = time.perf_counter()
            each = (now - mark) / task.log_every
            mark = now
            loss, rate = engine.state.output.item(), optimizer.param_groups[0]["lr"]
            row = {"step": engine.state.iteration, "loss": loss, "lr": rate, "time": each}
            write(file, row)

        trainer.run(task.batches, max_epochs=1)


VARIANTS: dict[str, Train] = {"Ignite": train, "Ignite, of ready-made parts": of_parts, "Ignite, lean": lean}

"""The baseline: a loop by hand that does what Runner's six default hooks do, in the plainest way."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from pathlib import Path

import torch
from torch.nn.functional import mse_loss

from peers.task import Task, Train

PACKAGE = "torch"
DIFFERS = (
    "It saves with `torch.save` and `os.replace`, and syncs nothing: after a power cut its checkpoint may be empty.",
    "It has none of the default hooks' counters, no remaining time, and can't be resumed.",
)
WINDOW = 10  # iterations that loss and times are the mean of


def train(task: Task, folder: Path) -> None:
    model, optimizer, scheduler = task.make()
    losses: deque[torch.Tensor] = deque(maxlen=WINDOW)  # read only for a line, so that no iteration waits for a device
    waits: deque[float] = deque(maxlen=WINDOW)
    times: deque[float] = deque(maxlen=WINDOW)
    mark = time.perf_counter()
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:
        for step, (x, y) in enumerate(task.batches, 1):
            waits.append(time.perf_counter() - mark)
            loss = mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            now = time.perf_counter()
            times.append(now - mark)
            mark = now
            if step % task.log_every == 0:
                row = {
                    "step": step,
                    "epoch": 1,
                    "train/lr": optimizer.param_groups[0]["lr"],
                    "train/data_time": sum(waits) / len(waits),
                    "train/loss": torch.stack(tuple(losses)).mean().item(),
                    "train/time": sum(times) / len(times),
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
                print("   ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
            scheduler.step()
            if task.save_every and step % task.save_every == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                }
                torch.save(state, folder / "last.tmp")
                os.replace(folder / "last.tmp", folder / "last.pt")


VARIANTS: dict[str, Train] = {"bare loop": train}

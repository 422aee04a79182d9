"""One interpreter's share of ``startup.py``: from ``Runner(…)`` to the first step, once all is imported.

It prints milliseconds by part as a line of JSON; what the run itself prints goes to the standard error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from eventrunner import Bus, Runner

Moments = dict[str, float]
Batch = tuple[torch.Tensor, torch.Tensor]

MADE, RUN, TRAIN, STEP, STEPPED = "made", "before_run", "before_train", "train_step", "after_train_iter"
PARTS = {
    "Runner(…)": ("began", MADE),
    "train() to before_run": (MADE, RUN),
    "before_run to before_train": (RUN, TRAIN),
    "before_train to the first step": (TRAIN, STEP),
}
COLLECTING = "of these, collecting garbage"
AFTER = "the first step to after_train_iter, beyond a step by hand"


def step_by_hand(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Seconds of the model's second step: the first has torch make itself ready, with or without a Runner."""
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        mse_loss(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        took = time.perf_counter() - began
    return took


def run(folder: Path, moments: Moments) -> float:
    """Train one iteration, with the six default hooks, and note when what was reached; returns the step by hand."""
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = (torch.randn(8, 8), torch.randn(8, 8))
    by_hand = step_by_hand(model, optimizer, batch)
    bus = Bus()

    def note(name: str) -> None:
        moments.setdefault(name, time.perf_counter())

    def train_step(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        note(STEP)
        return {"loss": mse_loss(model(batch[0]), batch[1])}

    for site in (RUN, TRAIN, STEPPED):
        bus.find(site, site).connect(lambda runner, name=site: note(name), priority="HIGHEST")
    note("began")
    runner = Runner(
        model=model,
        work_dir=folder / "run",
        train_step=train_step,
        optimizer=optimizer,
        train_dataloader=[batch],
        train_cfg=dict(max_iters=1),
        bus=bus,
        device="cpu",
    )
    note(MADE)
    runner.train()
    return by_hand


def within(moments: list[float], first: float, last: float) -> float:
    """How long what began and ended at these moments, by turns, took between two others."""
    pairs = zip(moments[::2], moments[1::2], strict=False)
    return sum(ended - began for began, ended in pairs if first <= began <= last)


def main() -> None:
    torch.set_num_threads(1)
    moments: Moments = {}
    collections: list[float] = []  # when each began and ended, by turns

    def note(phase: str, info: dict[str, Any]) -> None:
        collections.append(time.perf_counter())

    gc.callbacks.append(note)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        by_hand = run(Path(folder), moments)
    told = {name: (moments[end] - moments[begin]) * 1e3 for name, (begin, end) in PARTS.items()}
    told[COLLECTING] = within(collections, moments["began"], moments[STEP]) * 1e3
    told[AFTER] = (moments[STEPPED] - moments[STEP] - by_hand) * 1e3
    print(json.dumps(told))


if __name__ == "__main__":
    main()

"""Whether a long training costs at its end what it costs at its beginning: time per iteration, and memory.

$ python benchmarks/endurance.py [--iters N] [--json FILE]

The six default hooks around a step that computes nothing, with a line each 1,000 iterations and ten saves: what is
measured is the Runner. The step takes `optim_wrapper`, so that no optimizer runs either. The clock is in the step, and
memory is read in it at the end of each tenth, before what is due there; the time that this takes, for a collection of
garbage above all, doesn't count. A million iterations take ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import conditions, resident, save, table

from eventrunner import Bus, OptimWrapper, Runner

TENTHS = 10
LOG_EVERY = 1000
COLUMNS = (
    "tenth",
    "µs, median iteration",
    "µs, mean iteration",
    "ms, slowest",
    "MB resident",
    "thousand blocks of Python's allocator",
    "thousand objects that are tracked",
)
Batch = torch.Tensor


@dataclass(frozen=True)
class Memory:
    """What is held at a moment."""

    resident: float
    blocks: int
    objects: int

    @classmethod
    def now(cls) -> Memory:
        gc.collect()
        return cls(resident(), sys.getallocatedblocks(), len(gc.get_objects()))


class Batches:
    """The same batch so many times."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.batch = torch.zeros(1, 1)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch, self.count)


@dataclass
class Step:
    """A train step that does nothing but note when it is called, and at the end of each tenth what memory there is."""

    iters: int
    began: array[float] = field(init=False)
    memory: list[Memory] = field(default_factory=list)
    paused: dict[int, float] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.began = array("d", bytes(8 * self.iters))  # made at once, so that it doesn't grow within the training

    def __call__(self, model: torch.nn.Module, batch: Batch, optim_wrapper: OptimWrapper) -> dict[str, float]:
        now = time.perf_counter()
        index = self.count
        self.began[index] = now
        self.count = index + 1
        if self.count * TENTHS % self.iters == 0:
            self.memory.append(Memory.now())
            self.paused[index] = time.perf_counter() - now
        return {"loss": 0.5}

    def took(self, tenth: int) -> list[float]:
        """Microseconds of a tenth's iterations, each from its step to the next one's, without the look at memory."""
        size = self.iters // TENTHS
        first, last = tenth * size, min((tenth + 1) * size, self.iters - 1)
        began = self.began
        return [(began[i + 1] - began[i] - self.paused.get(i, 0.0)) * 1e6 for i in range(first, last)]


def train(iters: int, folder: Path) -> Step:
    """Return the whole training."""
    model, step = torch.nn.Linear(1, 1), Step(iters)
    runner = Runner(
        model=model,
        work_dir=folder / "run",
        train_step=step,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_dataloader=Batches(iters),
        train_cfg=dict(max_iters=iters),
        default_hooks={
            "logger": dict(interval=LOG_EVERY),
            "checkpoint": dict(interval=iters // TENTHS, max_keep_ckpts=1),
        },
        bus=Bus(),
        device="cpu",
        progress=False,
    )
    runner.train()
    return step


def row(step: Step, tenth: int) -> list[float]:
    took, memory = step.took(tenth), step.memory[tenth]
    times = [statistics.median(took), statistics.fmean(took), max(took) / 1e3]
    return [tenth + 1, *times, memory.resident, memory.blocks / 1e3, memory.objects / 1e3]


def report(step: Step) -> dict[str, Any]:
    """Return what the training has shown."""
    rows = [row(step, tenth) for tenth in range(TENTHS)]
    return {
        "conditions": conditions(
            f"{step.iters:,} iterations on one thread",
            f"a line each {LOG_EVERY:,}",
            f"a save each {step.iters // TENTHS:,}",
        ),
        "columns": COLUMNS,
        "rows": rows,
        "verdict": verdicts(rows[0], rows[-1], step.iters),
    }


def verdicts(first: list[float], last: list[float], iters: int) -> list[str]:
    """Return the last tenth beside the first."""
    since = iters - iters // TENTHS
    return [
        f"the last tenth to the first: the median iteration {last[1] / first[1]:.3f}, the mean one "
        f"{last[2] / first[2]:.3f}",
        f"from the end of the first tenth to that of the last, {since:,} iterations: {last[4] - first[4]:+.2f} MB "
        f"resident, {(last[5] - first[5]) * 1e3:+,.0f} blocks, {(last[6] - first[6]) * 1e3:+,.0f} objects",
    ]


def shown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = "\n".join(f"- {line}" for line in report["verdict"])
    return f"{report['conditions']}.\n\n{table(report['columns'], report['rows'])}\n\n{lines}"


def count(text: str) -> int:
    number = int(text)
    if number < TENTHS or number % TENTHS:
        raise argparse.ArgumentTypeError(f"{number} isn't a multiple of {TENTHS}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--iters", type=count, default=1_000_000, help=f"a multiple of {TENTHS}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nothing,
        contextlib.redirect_stdout(nothing),
    ):
        found = report(train(args.iters, Path(folder)))
    if args.json:
        save(args.json, found)
    print(shown(found))


if __name__ == "__main__":
    main()

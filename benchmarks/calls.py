"""How many calls of this package's functions a training's recurring work takes, and through how many of its files.

$ python benchmarks/calls.py [--json FILE]

Nothing is timed: calls are counted, with `sys.setprofile`, and are the same on every machine. Six default hooks, a tiny
model, training by iterations, so that each row of the log has its line; of each kind of work it is not the first that
counts. An entry of a generator is a call, and so is a comprehension, where the interpreter makes it one. Generated
functions count as calls, and as no file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from report import conditions, save, table
from torch.nn.functional import mse_loss

import eventrunner
from eventrunner import Bus, Runner

PACKAGE = str(Path(eventrunner.__file__).parent) + os.sep
COLUMNS = ("work", "calls, training thread", "files", "calls, other threads", "files", "files, both")
ITERS, QUIET, ROW, SAVE = 180, range(82, 98), 120, 150  # of which are counted: 16 iterations, one row, one save

Batch = tuple[torch.Tensor, torch.Tensor]
Code = tuple[bool, str]  # whether on the training thread, and the file


class Calls:
    """Counts the calls of the package's functions, by thread and by file."""

    def __init__(self) -> None:
        self.counts: Counter[Code] = Counter()
        self.thread = threading.get_ident()

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Be called by the interpreter."""
        file = frame.f_code.co_filename
        if event == "call" and file.startswith((PACKAGE, "<receivers of")):
            self.counts[threading.get_ident() == self.thread, file] += 1

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block, also what threads do that begin in it."""
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def taken(self) -> Counter[Code]:
        """Return what was counted since the last time."""
        counts, self.counts = self.counts, Counter()
        return counts


def make_runner(folder: Path, train_step: Callable[..., Any]) -> Runner:
    """Return the runner that is counted."""
    model = torch.nn.Linear(8, 8)
    batch = (torch.randn(8, 8), torch.randn(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Runner(
        model=model,
        work_dir=folder,
        train_step=train_step,
        optimizer=optimizer,
        param_scheduler=dict(scheduler=torch.optim.lr_scheduler.StepLR(optimizer, ITERS), by_epoch=False),
        train_dataloader=[batch] * ITERS,
        train_cfg=dict(max_iters=ITERS),
        default_hooks={"logger": dict(interval=ROW // 3), "checkpoint": dict(interval=SAVE // 2, max_keep_ckpts=1)},
        bus=Bus(),
        device="cpu",
        progress=False,
    )


def count_training(folder: Path) -> dict[str, Counter[Code]]:
    """Train, and return what was counted by kind of work; the quiet iterations as their sum."""
    calls, kinds, committed = Calls(), dict[str, Counter[Code]](), list[int]()

    def train_step(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        step[0] += 1
        number = step[0]  # of this iteration, from 1; what was counted came between two steps
        if number in (QUIET.start - 2, ROW, SAVE):
            time.sleep(0.2)  # what was begun is done
        if number in (QUIET.start, ROW, SAVE):
            calls.taken()
        elif number == QUIET.stop:
            kinds["quiet"] = calls.taken()
        elif number == ROW + 1:
            time.sleep(0.2)
            kinds["row"] = calls.taken()
        elif number > SAVE and not committed:
            time.sleep(0.02)
        elif committed and "save" not in kinds:
            time.sleep(0.2)  # the older one is deleted
            kinds["save"], quiet[0] = calls.taken(), number - SAVE
        return {"loss": mse_loss(model(batch[0]), batch[1])}

    step, quiet = [0], [0]
    runner = make_runner(folder, train_step)

    @runner.on("after_commit_checkpoint")
    def note(runner: Runner, path: Path, step: int) -> None:
        if step == SAVE:
            committed.append(step)

    with calls.counting():
        runner.train()
    for kind, iterations in (("row", 1), ("save", quiet[0])):
        for key, count in kinds["quiet"].items():
            kinds[kind][key] -= round(count / len(QUIET) * iterations)
        kinds[kind] = +kinds[kind]
    return kinds


def count_construction(folder: Path) -> Counter[Code]:
    """Count what the second of two runners takes to be made."""
    make_runner(folder / "first", lambda model, batch: None)
    calls = Calls()
    with calls.counting():
        make_runner(folder / "second", lambda model, batch: None)
    return calls.taken()


def row_of(work: str, counts: Counter[Code], of: int = 1) -> list[Any]:
    """Return a row of the table."""
    calls = [sum(count for (ours, _), count in counts.items() if ours is here) for here in (True, False)]
    files = [{file for here, file in counts if here is ours and file.startswith(PACKAGE)} for ours in (True, False)]
    return [work, round(calls[0] / of), len(files[0]), round(calls[1] / of), len(files[1]), len(files[0] | files[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--files", action="store_true", help="also by file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as out, contextlib.redirect_stdout(out):
        construction = count_construction(Path(name))
        kinds = count_training(Path(name) / "run")
    found = {
        "a quiet iteration": (kinds["quiet"], len(QUIET)),
        "a row and a line of the log, above it": (kinds["row"], 1),
        "a save, to its commit and the older one's end, above it": (kinds["save"], 1),
        "Runner(…)": (construction, 1),
    }
    rows = [row_of(work, counts, of) for work, (counts, of) in found.items()]
    if args.json:
        save(args.json, {"conditions": conditions(), "columns": COLUMNS, "rows": rows})
    print(f"{conditions()}.\n\n{table(COLUMNS, rows)}")
    for work, (counts, of) in found.items() if args.files else ():
        print(f"\n{work}:")
        for (ours, file), count in counts.most_common():
            print(f"  {count / of:6.1f} {'training' if ours else 'other'} {file.removeprefix(PACKAGE)}")


if __name__ == "__main__":
    main()

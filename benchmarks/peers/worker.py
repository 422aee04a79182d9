"""One contender's process: ``python -m peers.worker NAME``, told through its standard input what to do.

It answers each line of JSON with one. What it first says is what the contender's module tells of itself. What a
framework prints, to whatever stream, goes to the standard error.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from report import version_of

from peers.task import make_task

WARMUP = 250  # iterations; half of the interval between saves, so that one doesn't end with the measurement


def streams() -> tuple[TextIO, TextIO]:
    """Where to read orders and write answers: what the process was given, out of the frameworks' reach."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return orders, answers


def describe(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the contender's module, and what it says of itself."""
    module = importlib.import_module(f"peers.{name}")
    version = version_of(module.PACKAGE)
    return module, {"version": version, "differs": module.DIFFERS, "variants": list(module.VARIANTS)}


def measure(module: Any, variant: str, iters: int, log_every: int, save_every: int) -> dict[str, float]:
    """Microseconds of an iteration: the mean, in which all is included, and the median, which is a quiet one's."""
    task = make_task(WARMUP + iters + 1, log_every, save_every)
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        module.VARIANTS[variant](task, Path(folder))
    if len(task.marks) != len(task.batches):
        raise RuntimeError(f"{variant} trained on {len(task.marks):,} batches of {len(task.batches):,}.")
    marks = task.marks[WARMUP:]
    quiet = statistics.median(after - before for before, after in itertools.pairwise(marks))
    return {"mean": (marks[-1] - marks[0]) / iters * 1e6, "quiet": quiet * 1e6}


def answer(answers: TextIO, work: Callable[[], dict[str, Any]]) -> bool:
    """Write what *work* returns, or why it failed; whether it didn't."""
    try:
        said = work()
    except Exception as error:  # noqa: BLE001  # whatever it is, the others go on, and the report tells it
        traceback.print_exc()
        said = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(said) + "\n")
    answers.flush()
    return "error" not in said


def main(name: str) -> None:
    orders, answers = streams()
    torch.set_num_threads(1)
    found: list[Any] = []

    def introduce() -> dict[str, Any]:
        module, said = describe(name)
        found.append(module)
        return said

    if answer(answers, introduce):
        for line in orders:
            answer(answers, partial(measure, found[0], **json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1])

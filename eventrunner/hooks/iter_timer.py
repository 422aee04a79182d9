"""IterTimerHook: how long data and iterations take, and how long is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.errors import OptionError
from eventrunner.history import SETTLE_EVERY
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.state import Progress

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["TIMES", "IterTimerHook"]

TIMES = ("time", "data_time")
"""What it records of each mode."""


@HOOKS.register_module()
class IterTimerHook(Hook):
    """Record ``<mode>/data_time`` and ``<mode>/time`` in seconds per iteration, and ``eta`` in seconds while training.

    ``time`` is the whole iteration, the wait for its batch included. On a GPU, whose work runs on after its launch,
    single values say little and their mean says what it should, because a later iteration waits for it.
    """

    priority = "NORMAL"
    mutates = ()

    def __init__(self) -> None:
        self._mark = 0.0  # when the wait for this iteration's batch began
        self._began = 0.0
        self._first_iter = 0
        self._waited: dict[str, Callable[[float], None]] = {}  # to the hub's own histories, by mode
        self._took: dict[str, Callable[[float], None]] = {}
        self._progress = Progress()
        self._planned: int | None = None  # iterations, asked for once an epoch: a loader may reckon its length anew

    def check_run(self, runner: Runner) -> None:
        """Refuse metrics that are called like the times; called when the hook is registered."""
        for mode, evaluator in (("val", runner.val_evaluator), ("test", runner.test_evaluator)):
            for name in TIMES:
                if evaluator is not None and name in (evaluator.names() or ()):
                    raise OptionError(
                        f"{mode}_evaluator has a metric {name!r}, but the run itself logs '{mode}/{name}', and would "
                        "mix the two; give it another name."
                    )

    def before_run(self, runner: Runner) -> None:
        """Forget the histories of another run."""
        self._waited, self._took = {}, {}

    def before_train(self, runner: Runner) -> None:
        """Begin the clock that the remaining time is reckoned from."""
        self._began, self._first_iter = time.perf_counter(), runner.iter
        self._progress = runner.progress
        runner.message_hub.provide_info("eta", self._left)

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        self._mark, self._planned = time.perf_counter(), runner.max_iters

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        waited = self._waited.get(mode)
        if waited is None:
            waited = self._waited[mode] = runner.message_hub.history(f"{mode}/data_time").append
        waited(time.perf_counter() - self._mark)

    def _after_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        took = self._took.get(mode)
        if took is None:
            took = self._took[mode] = runner.message_hub.history(f"{mode}/time").append
        now = time.perf_counter()
        took(now - self._mark)
        self._mark = now
        if not batch_idx % SETTLE_EVERY:
            for key in (f"{mode}/data_time", f"{mode}/time"):
                if key in runner.message_hub.log_scalars:
                    runner.message_hub.history(key).settle()

    def _left(self) -> float | None:
        """The seconds that the rest of the training will take at the pace so far; None where nobody can tell."""
        done = self._progress.step - self._first_iter
        if not done or self._planned is None:
            return None
        return (self._mark - self._began) / done * (self._planned - self._progress.step)

    def after_val(self, runner: Runner) -> None:
        """A validation is no part of the next iteration."""
        self._mark = time.perf_counter()

    def after_commit_checkpoint(self, runner: Runner, path: Path, step: int) -> None:
        """Nor is a save."""
        self._mark = time.perf_counter()

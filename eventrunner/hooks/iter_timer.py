"""IterTimerHook: how long data and iterations take, and how long is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.errors import OptionError
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.report.history import AGGREGATE_EVERY
from eventrunner.training.dataloader import batch_count

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["TIMES", "IterTimerHook"]

TIMES = ("time", "data_time")
"""What it records of each mode."""


@HOOKS.register_module()
class IterTimerHook(Hook):
    """Record ``<mode>/data_time`` and ``<mode>/time`` in seconds per iteration, and ``eta`` in seconds.

    ``time`` is the whole iteration, the wait for its batch included. On a GPU, whose work runs on after its launch,
    single values say little and their mean says what it should, because a later iteration waits for it. ``eta`` is the
    training's, and from ``before_val_epoch`` to ``after_val_epoch`` the validation's; the same of a test.

    Attributes:
        time_sec_tot: The seconds of the training's iterations since it began here.
        start_iter: The iteration at which it began here.
    """

    priority = "NORMAL"
    mutates = ()

    def __init__(self) -> None:
        self.time_sec_tot, self.start_iter = 0.0, 0
        self._mark = 0.0  # when the wait for this iteration's batch began
        self._began = 0.0
        self._eval_began, self._evaluated = 0.0, 0  # the evaluation under way, and how many of its batches are done
        self._waited: dict[str, Callable[[float], None]] = {}  # to the hub's own histories, by mode
        self._took: dict[str, Callable[[float], None]] = {}
        self._trained = 0  # iterations since the training began here
        self._planned: int | None = None  # iterations, asked for once an epoch: a loader may reckon its length anew

    def check_run(self, runner: Run) -> None:
        """Refuse metrics that are called like the times; called when the hook is registered."""
        for mode, evaluator in (("val", runner.val_evaluator), ("test", runner.test_evaluator)):
            for name in TIMES:
                if evaluator is not None and name in (evaluator.names() or ()):
                    raise OptionError(
                        f"{mode}_evaluator has a metric {name!r}, but the run itself logs '{mode}/{name}', and would "
                        "mix the two; give it another name."
                    )

    @property
    def t(self) -> float:
        """When the wait for this iteration's batch began, on the clock of ``time.time``."""
        return time.time() - (time.perf_counter() - self._mark)

    @t.setter
    def t(self, moment: float) -> None:
        self._mark = time.perf_counter() - (time.time() - moment)

    def before_run(self, runner: Run) -> None:
        """Forget the histories of another run."""
        self._waited, self._took = {}, {}

    def before_train(self, runner: Run) -> None:
        """Begin the clock that the remaining time is reckoned from."""
        self._began, self.start_iter, self.time_sec_tot = time.perf_counter(), runner.iter, 0.0
        self._trained = 0

    def _before_epoch(self, runner: Run, mode: str = "train") -> None:
        runner.message_hub.aggregate()  # the last epoch's times, if it was short
        self._mark = time.perf_counter()
        if mode == "train":
            self._planned = runner.max_iters
            runner.message_hub.provide_info("eta", self._train_left)
            return
        self._eval_began, self._evaluated = self._mark, 0
        planned = batch_count(runner.val_dataloader if mode == "val" else runner.test_dataloader)
        runner.message_hub.provide_info("eta", lambda: _left(self._mark - self._eval_began, self._evaluated, planned))

    def _before_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        waited = self._waited.get(mode)
        if waited is None:
            waited = self._waited[mode] = runner.message_hub.history(f"{mode}/data_time").append
        waited(time.perf_counter() - self._mark)

    def _after_iter(
        self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        took = self._took.get(mode)
        if took is None:
            took = self._took[mode] = runner.message_hub.history(f"{mode}/time").append
        now = time.perf_counter()
        seconds = now - self._mark
        took(seconds)
        self._mark = now
        if mode == "train":
            self.time_sec_tot += seconds
            self._trained += 1
        else:
            self._evaluated = batch_idx + 1
        if (batch_idx + 1) % AGGREGATE_EVERY == 0:
            runner.message_hub.aggregate()

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Go back to the time that is left of the training."""
        runner.message_hub.provide_info("eta", self._train_left)

    def after_test_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Go back to it after a test."""
        runner.message_hub.provide_info("eta", self._train_left)

    def after_val(self, runner: Run) -> None:
        """Leave the validation out of the next iteration."""
        self._mark = time.perf_counter()

    def after_commit_checkpoint(self, runner: Run, path: Path, step: int) -> None:
        """Leave the save out of it, too."""
        self._mark = time.perf_counter()

    def _train_left(self) -> float | None:
        planned = None if self._planned is None else self._planned - self.start_iter
        return _left(self._mark - self._began, self._trained, planned)


def _left(seconds: float, done: int, planned: int | None) -> float | None:
    """Return the seconds that the rest will take at the pace so far; None where that isn't known."""
    return None if not done or planned is None else seconds / done * (planned - done)

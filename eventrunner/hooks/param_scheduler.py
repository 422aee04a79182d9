"""ParamSchedulerHook: step the schedulers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from eventrunner.errors import OptionError, listed
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.training.schedule import Schedule, all_schedules

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["ParamSchedulerHook"]


@HOOKS.register_module()
class ParamSchedulerHook(Hook):
    """Step the schedulers by iteration, by epoch, or with a metric after each validation in training.

    By iteration means by batch, under gradient accumulation too: one clock for everything.
    """

    priority = "LOW"
    mutates = ()

    def __init__(self) -> None:
        self._stepped: set[int] = set()  # ids of the schedulers that have been stepped

    def forget_run(self) -> None:
        """Know no scheduler: another may have the id of one that is gone."""
        self._stepped = set()

    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Step those that count iterations."""
        schedules = runner.param_schedulers
        for schedule in schedules if type(schedules) is list else all_schedules(schedules):
            if schedule.by_epoch or schedule.needs_metric:
                continue
            if id(schedule.scheduler) in self._stepped:
                schedule.scheduler.step()
            else:
                self._step(schedule)

    def after_train_epoch(self, runner: Run) -> None:
        """Step those that count epochs."""
        for schedule in all_schedules(runner.param_schedulers):
            if schedule.by_epoch and not schedule.needs_metric:
                self._step(schedule)

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Step those that follow a metric; a validation by ``val()`` is no part of a training and steps none."""
        if runner.mode != "train":
            return
        for schedule in all_schedules(runner.param_schedulers):
            if schedule.needs_metric and schedule.monitor is not None:
                if schedule.monitor not in (metrics or {}):
                    raise OptionError(
                        f"param_scheduler monitor={schedule.monitor!r}: the validation gave {listed(metrics or {})}."
                    )
                schedule.step((metrics or {})[schedule.monitor])

    def _step(self, schedule: Schedule) -> None:
        if id(schedule.scheduler) in self._stepped:
            schedule.step()
            return
        # While the first gradients are still being accumulated, or a scaler has skipped every step, torch takes a
        # scheduler's first step to be in the wrong order, and warns.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            schedule.step()
        self._stepped.add(id(schedule.scheduler))

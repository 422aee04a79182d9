"""IterTimerHook: how long data and iterations take, and how long is left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventrunner.hook import Hook
from eventrunner.registry import HOOKS

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["IterTimerHook"]


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

    def before_train(self, runner: Runner) -> None:
        """Begin the clock that the remaining time is reckoned from."""
        self._began, self._first_iter = time.perf_counter(), runner.iter

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        self._mark = time.perf_counter()

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        runner.message_hub.update_scalar(f"{mode}/data_time", time.perf_counter() - self._mark)

    def _after_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        now = time.perf_counter()
        runner.message_hub.update_scalar(f"{mode}/time", now - self._mark)
        self._mark = now
        if mode == "train" and runner.max_iters is not None:
            done = runner.iter + 1 - self._first_iter
            left = (now - self._began) / done * (runner.max_iters - runner.iter - 1)
            runner.message_hub.update_info("eta", left, resumed=False)

    def after_val(self, runner: Runner) -> None:
        """A validation is no part of the next iteration."""
        self._mark = time.perf_counter()

    def after_commit_checkpoint(self, runner: Runner, path: Path, step: int) -> None:
        """Nor is a save."""
        self._mark = time.perf_counter()

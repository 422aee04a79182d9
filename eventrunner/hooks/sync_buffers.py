"""SyncBuffersHook: make the ranks agree on buffers such as BatchNorm's statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventrunner.hook import Hook
from eventrunner.registry import HOOKS

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["SyncBuffersHook"]


@HOOKS.register_module()
class SyncBuffersHook(Hook):
    """Set each floating-point buffer to its mean over the ranks, after an epoch and before a validation.

    Each rank's buffers follow its own share of the data; without this, ranks validate different models and the first
    one's is saved. Before a validation that directly follows the end of an epoch nothing is sent twice; by iterations,
    each validation sends. Integer buffers are left alone. With one process it does nothing.

    ``EMAHook`` has the same priority. Where it was registered earlier (MMEngine's order), the model has the averaged
    weights by then, so that a validation by iterations makes the ranks agree on the average's buffers; by epochs the
    average has the buffers of its own rank's last update.
    """

    priority = "NORMAL"
    mutates = ()
    collective = True

    def __init__(self) -> None:
        self._synced_at = -1

    def after_train_epoch(self, runner: Run) -> None:
        """Agree at the end of an epoch."""
        self._sync(runner)

    def before_val_epoch(self, runner: Run) -> None:
        """Agree before a validation, unless the epoch has just ended."""
        if runner.iter != self._synced_at:
            self._sync(runner)

    def _sync(self, runner: Run) -> None:
        if runner.distributed:
            runner.ranks.mean_([buffer for buffer in runner.model.buffers() if buffer.is_floating_point()])
            self._synced_at = runner.iter

"""DistSamplerSeedHook: tell samplers which epoch they shuffle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.training.dataloader import announce

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["DistSamplerSeedHook"]


@HOOKS.register_module()
class DistSamplerSeedHook(Hook):
    """Call ``set_epoch`` on the train dataloader's sampler, batch sampler and dataset before each epoch.

    Without it a ``DistributedSampler`` gives every epoch the same order, and so does a dataset that shuffles a stream.
    What has no ``set_epoch`` is left alone. Workers that persist keep the dataset as it was when they began.
    """

    priority = "NORMAL"
    mutates = ()

    def before_train_epoch(self, runner: Run) -> None:
        """Set the epoch."""
        announce(runner.train_dataloader, runner.epoch)

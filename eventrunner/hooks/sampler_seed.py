"""DistSamplerSeedHook: tell samplers which epoch they shuffle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventrunner.data import samplers
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["DistSamplerSeedHook"]


@HOOKS.register_module()
class DistSamplerSeedHook(Hook):
    """Call ``set_epoch`` on the train dataloader's sampler, or its batch sampler's, before each epoch.

    Without it a ``DistributedSampler`` gives every epoch the same order. A sampler without ``set_epoch``, and a loader
    without a sampler, are left alone.
    """

    priority = "NORMAL"
    mutates = ()

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the epoch."""
        for sampler in samplers(runner.train_dataloader):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(runner.epoch)

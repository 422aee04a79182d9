"""CheckInvalidLossHook: end a run whose loss is no number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from eventrunner.checks import check_ints
from eventrunner.errors import InvalidLossError
from eventrunner.hook import Hook
from eventrunner.registry import YIELDING_HOOKS

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["CheckInvalidLossHook"]


@YIELDING_HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Raise where the loss has become infinite or NaN, each n-th iteration.

    The run ends as by any exception: nothing is saved of the state by then, and ``resume=True`` goes on from the newest
    checkpoint whose weights are numbers. Looking at the loss makes the host wait for the device. A class of the same
    name that somebody registers takes the place of this one.

    Args:
        interval: Look at each n-th iteration; 1 stops at once.

    Raises:
        OptionError: *interval* is no int from 1.
        InvalidLossError: from the receiver, where the loss is no number.
    """

    priority = "NORMAL"
    mutates = ()

    def __init__(self, interval: int = 50) -> None:
        check_ints("CheckInvalidLossHook", 1, interval=interval)
        self.interval = interval

    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the loss where it is due; a step that returns none has none to look at."""
        if not self.every_n_train_iters(runner, self.interval) or "loss" not in (outputs or ()):
            return
        loss = torch.as_tensor(outputs["loss"])
        if not bool(torch.isfinite(loss).all()):
            raise InvalidLossError(
                f"the loss of iteration {runner.iter + 1} is {loss.detach().float().mean().item()}: lower the learning "
                "rate or clip gradients, and go on with resume=True from before it."
            )

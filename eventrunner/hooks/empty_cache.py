"""EmptyCacheHook: give the accelerator's unused memory back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from eventrunner.checks import check_bools
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["EmptyCacheHook"]

_EMPTY = {"cuda": torch.cuda.empty_cache, "mps": torch.mps.empty_cache, "xpu": torch.xpu.empty_cache}


@HOOKS.register_module()
class EmptyCacheHook(Hook):
    """Return what the allocator holds unused to the accelerator, for other processes or against fragmentation.

    Holds in training, validation and test alike. On a CPU there is nothing to return. It frees nothing that is in use
    and costs a wait for the device each time, and the allocations anew: by iteration, that is slow.

    Args:
        before_epoch: Before each epoch.
        after_epoch: After each epoch.
        after_iter: After each iteration.

    Raises:
        OptionError: an option is not a bool.
    """

    priority = "NORMAL"
    mutates = ()

    def __init__(self, before_epoch: bool = False, after_epoch: bool = True, after_iter: bool = False) -> None:
        wanted = {"before_epoch": before_epoch, "after_epoch": after_epoch, "after_iter": after_iter}
        check_bools("EmptyCacheHook", **wanted)
        for name, value in wanted.items():
            if value and getattr(type(self), f"_{name}") is getattr(Hook, f"_{name}"):  # a subclass may have its own
                # On the instance, because what a hook has is what gets connected.
                setattr(self, f"_{name}", self._empty)

    def _empty(self, runner: Run, **payload: Any) -> None:
        empty = _EMPTY.get(runner.device.type)
        if empty is not None:
            empty()

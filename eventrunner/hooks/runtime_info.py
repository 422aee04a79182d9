"""RuntimeInfoHook: what is going on, put into the message hub for whoever has no runner."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import torch

from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.version import __version__

if TYPE_CHECKING:
    from eventrunner.runner import Runner

__all__ = ["RuntimeInfoHook"]


@HOOKS.register_module()
class RuntimeInfoHook(Hook):
    """Keep counters, learning rates, losses and metrics in ``runner.message_hub``.

    Infos: ``epoch, iter, max_epochs, max_iters, loop_stage, seed, experiment_name, eventrunner_version``. Scalars:
    ``train/lr`` (``train/lr/0`` … where there are several groups) as it is used in the iteration, ``train/grad_norm``
    where gradients are clipped, every one-element entry of train_step's dict as ``train/<key>``, and
    ``val/<metric>``, ``test/<metric>``. Tensors are kept and read only when somebody looks: no transfer from the
    device at a quiet iteration.
    """

    priority = "VERY_HIGH"
    mutates = ()

    def __init__(self) -> None:
        self._last_stage: str | None = None

    def before_run(self, runner: Runner) -> None:
        """Say which run this is."""
        runner.message_hub.update_info_dict(
            {"seed": runner.seed, "experiment_name": runner.experiment_name, "eventrunner_version": __version__},
            resumed=False,
        )

    def before_train(self, runner: Runner) -> None:
        """Say how far the training is and how far it goes."""
        infos = {
            "loop_stage": "train",
            "epoch": runner.epoch,
            "iter": runner.iter,
            "max_epochs": runner.max_epochs,
            "max_iters": runner.max_iters,
        }
        runner.message_hub.update_info_dict(infos, resumed=False)

    def before_train_epoch(self, runner: Runner) -> None:
        """Note the epoch."""
        runner.message_hub.update_info("epoch", runner.epoch, resumed=False)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the iteration and the learning rates that it uses."""
        hub = runner.message_hub
        hub.update_info("iter", runner.iter, resumed=False)
        for name, rates in runner.optim_wrapper.get_lr().items():
            if len(rates) == 1:
                hub.update_scalar(f"train/{name}", rates[0])
            else:
                for index, rate in enumerate(rates):
                    hub.update_scalar(f"train/{name}/{index}", rate)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep what train_step returned, and the gradients' norm."""
        hub = runner.message_hub
        for key, value in (outputs or {}).items():  # a step that updates the weights itself may return nothing
            if _is_scalar(value):
                hub.update_scalar(f"train/{key}", value)
        for name, wrapper in runner.optim_wrappers:
            if wrapper.grad_norm is not None:
                hub.update_scalar(f"train/{name}grad_norm", wrapper.grad_norm)

    def before_val(self, runner: Runner) -> None:
        """Note the stage, remembering the one around it."""
        self._last_stage = runner.message_hub.get_info("loop_stage")
        runner.message_hub.update_info("loop_stage", "val", resumed=False)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics."""
        _keep(runner, "val", metrics)

    def after_val(self, runner: Runner) -> None:
        """Back to the stage around it."""
        runner.message_hub.update_info("loop_stage", self._last_stage, resumed=False)

    def before_test(self, runner: Runner) -> None:
        """Note the stage."""
        runner.message_hub.update_info("loop_stage", "test", resumed=False)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics."""
        _keep(runner, "test", metrics)


def _is_scalar(value: object) -> bool:
    """Whether it is a number or a tensor of one; flags and complex numbers are not."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.dtype is not torch.bool and not value.is_complex()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _keep(runner: Runner, mode: str, metrics: dict[str, float] | None) -> None:
    runner.message_hub.update_scalars({f"{mode}/{name}": value for name, value in (metrics or {}).items()})

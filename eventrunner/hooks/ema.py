"""EMAHook: keep an average of the weights, and validate, test and save with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eventrunner.checks import check_bools, check_ints
from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.hook import Hook
from eventrunner.registry import HOOKS
from eventrunner.session.resume import left_out
from eventrunner.training.averaging import (
    ExponentialMovingAverage,
    MomentumAnnealingEMA,
    Pair,
    StochasticWeightAverage,
    by_memory,
    copy_extra_state,
    paired_buffers,
    paired_parameters,
)
from eventrunner.training.device import resolve_device
from eventrunner.training.state import check_initialized
from eventrunner.training.weights import load_model, load_what_fits

if TYPE_CHECKING:
    from eventrunner.run import Run

__all__ = ["EMAHook"]

_AVERAGES: dict[str, type[AveragedModel]] = {
    cls.__name__: cls for cls in (ExponentialMovingAverage, StochasticWeightAverage, MomentumAnnealingEMA)
}
_OWN_OPTIONS = ("ema_type", "strict_load", "begin_iter", "begin_epoch")


@HOOKS.register_module()
class EMAHook(Hook):
    """Average the weights over the training; the training itself goes on with the raw ones.

    From ``before_val_epoch`` to ``after_val_epoch``, and the same of a test, the model has the averaged weights and
    ``ema_model`` the raw ones; what a receiver in between reads from the model is the average. The values are
    exchanged in place, so references to a parameter stay valid. A failure in between exchanges them back.

    A checkpoint's ``state_dict`` has the averaged weights, for predicting, and its
    ``ema_state_dict`` the raw ones: MMEngine's format. A resumed run takes both back to where they belong; weights
    taken with ``load_from`` are what its average begins with.

    The average is made at the first ``before_run`` and kept for all that follow: ``test()`` after ``train()`` tests
    it. It costs a second copy of the model, a pass over all weights per iteration (per batch, under accumulation too),
    and at each exchange a copy of the largest tensor.

    What modules return from ``get_extra_state`` isn't averaged: both have the model's own, in a checkpoint, after a
    validation and at the end of training.

    Args:
        ema_type: ``ExponentialMovingAverage``, ``StochasticWeightAverage`` or ``MomentumAnnealingEMA``, or a subclass
            of torch's ``AveragedModel``.
        strict_load: Whether a resumed checkpoint must have exactly the names of this average.
        begin_iter: The iteration, counted from 1, at which averaging begins; before it the average follows the weights.
        begin_epoch: The same by epochs; one of the two may be set.
        **kwargs: The average's own options, as ``momentum`` or ``interval``.

    Raises:
        OptionError: a value that can't be, an option that the average doesn't have, or, when it is registered, a begin
            after the training's end, a model whose parameters are yet to be made, or a second EMAHook.
    """

    priority = "NORMAL"
    mutates = ("model", "average")

    def __init__(
        self,
        ema_type: str | type[AveragedModel] = "ExponentialMovingAverage",
        strict_load: bool = True,
        begin_iter: int = 0,
        begin_epoch: int = 0,
        **kwargs: Any,
    ) -> None:
        check_bools("EMAHook", strict_load=strict_load)
        check_ints("EMAHook", 0, begin_iter=begin_iter, begin_epoch=begin_epoch)
        if begin_iter and begin_epoch:
            raise OptionError(f"EMAHook(begin_iter={begin_iter}, begin_epoch={begin_epoch}): give one of the two.")
        self.strict_load, self.begin_iter, self.begin_epoch = strict_load, begin_iter, begin_epoch
        self._kind = _average_class(ema_type)
        self._options = _checked_options(self._kind, kwargs)
        self._swapped = False
        self.src_model: nn.Module | None = None
        self.ema_model: Any = None  # an AveragedModel from the first before_run on

    def check_run(self, runner: Run) -> None:
        """Refuse what could never work in this run; called when the hook is registered."""
        if any(isinstance(hook, EMAHook) and hook is not self for hook in runner.hooks):
            raise OptionError("registering a second EMAHook: the model can be validated with one average only.")
        check_initialized("EMAHook", runner.unwrapped)
        for unit, begin, planned in (
            ("epoch", self.begin_epoch, runner.max_epochs),
            ("iter", self.begin_iter, runner.max_iters),
        ):
            if planned is not None and begin > planned:
                by_iter = runner.train_loop is not None and not runner.train_loop.by_epoch and unit == "epoch"
                raise OptionError(
                    f"EMAHook(begin_{unit}={begin}) would never begin: the training ends after {unit} {planned}"
                    f"{', as by iterations all of it is one epoch; give begin_iter.' if by_iter else '.'}"
                )

    def forget_run(self) -> None:
        """Begin with another average, though it be of the same model."""
        self.src_model = self.ema_model = None
        self._swapped = False

    def before_run(self, runner: Run) -> None:
        """Make the average, unless there is one of this model."""
        if self.src_model is not runner.unwrapped:
            self.src_model = runner.unwrapped
            self.ema_model = _average(self._kind, runner.unwrapped, self._options)

    def after_train_iter(self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the new weights in; before the begin, copy them."""
        if runner.epoch + 1 >= self.begin_epoch and runner.iter + 1 >= self.begin_iter:
            self.ema_model.update_parameters(self.src_model)
        else:
            self._follow()

    def before_val_epoch(self, runner: Run) -> None:
        """Validate with the average."""
        self._swap_ema_parameters()

    def after_val_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Go on with the raw weights."""
        self._swap_ema_parameters()

    def before_test_epoch(self, runner: Run) -> None:
        """Test with the average."""
        self._swap_ema_parameters()

    def after_test_epoch(self, runner: Run, metrics: dict[str, float] | None = None) -> None:
        """Leave the raw weights behind."""
        self._swap_ema_parameters()

    def on_exception(self, runner: Run, exception: BaseException) -> None:
        """Leave the raw weights behind where a validation or test failed."""
        if self._swapped:
            self._swap_ema_parameters()

    def after_train(self, runner: Run) -> None:
        """Leave the raw weights behind where a signal ended the run within a validation."""
        if self._swapped:
            self._swap_ema_parameters()
        copy_extra_state(runner.unwrapped, self.ema_model.module)

    def before_save_checkpoint(self, runner: Run, checkpoint: dict[str, Any]) -> None:
        """Add the average and exchange its tensors for the model's, in the dict alone."""
        if self.ema_model is None:  # saved by hand, before any run
            return
        copy_extra_state(runner.unwrapped, self.ema_model.module)
        checkpoint["ema_state_dict"] = self.ema_model.state_dict()
        if not self._swapped:
            self._swap_ema_state_dict(checkpoint)

    def after_load_checkpoint(self, runner: Run, checkpoint: dict[str, Any]) -> None:
        """Go on with the saved average, or begin with the loaded weights where there is none.

        Raises:
            ResumeError: names or shapes aren't those of this run's model.
        """
        absent = left_out(checkpoint)
        if not runner.session.resuming and not runner.load_strict:
            load_what_fits(self.ema_model.module, checkpoint["state_dict"])
            return
        if not runner.session.resuming or "ema_state_dict" not in checkpoint:
            load_model(self.ema_model.module, checkpoint["state_dict"], absent)
            return
        self._swap_ema_state_dict(checkpoint)
        if self.strict_load:
            load_model(self.ema_model, checkpoint["ema_state_dict"], {f"module.{name}" for name in absent})
        else:
            self.ema_model.load_state_dict(checkpoint["ema_state_dict"], strict=False)

    def own_tensors(self) -> Iterable[Tensor]:
        """Return the averaged weights: nothing but this hook changes them."""
        return () if self.ema_model is None else self.ema_model.parameters()

    def state_dict(self) -> dict[str, Any]:
        """Return that the weights saved are the averaged ones: a run without the hook goes on with the raw ones."""
        return {"swapped": True}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: :meth:`after_load_checkpoint` has taken the average."""

    @torch.no_grad()
    def _swap_ema_parameters(self) -> None:
        for group in by_memory(self._pairs()):
            kept = [average.clone() for average, _ in group]
            for average, source in group:
                average.copy_(source)
            for value, (_, source) in zip(kept, group, strict=True):
                source.copy_(value)
        self._swapped = not self._swapped
        assert self.src_model is not None  # before_run
        copy_extra_state(self.src_model, self.ema_model.module)

    def _swap_ema_state_dict(self, checkpoint: dict[str, Any]) -> None:
        weights, average = checkpoint["state_dict"], checkpoint["ema_state_dict"]
        for name in weights:
            key = f"module.{name}"
            if key in average:
                weights[name], average[key] = average[key], weights[name]

    @torch.no_grad()
    def _follow(self) -> None:
        for average, source in self._pairs():
            average.copy_(source)

    def _pairs(self) -> list[Pair]:
        assert self.src_model is not None  # before_run
        ours, theirs = self.ema_model.module, self.src_model
        return paired_parameters(ours, theirs) + paired_buffers(ours, theirs)


def _average(kind: type[AveragedModel], model: nn.Module, options: Mapping[str, Any]) -> AveragedModel:
    return kind(model, **options)


def _average_class(ema_type: str | type[AveragedModel]) -> type[AveragedModel]:
    if isinstance(ema_type, type) and issubclass(ema_type, AveragedModel):
        return ema_type
    if not isinstance(ema_type, str) or ema_type not in _AVERAGES:
        near = did_you_mean(str(ema_type), _AVERAGES) or "."
        raise OptionError(
            f"EMAHook(ema_type={ema_type!r}): give {listed(_AVERAGES)}, or a subclass of torch's AveragedModel{near}"
        )
    return _AVERAGES[ema_type]


def _checked_options(kind: type[AveragedModel], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for the average, with its device resolved; those of the built-in averages are tried out."""
    parameters = list(inspect.signature(kind).parameters.values())[1:]  # the first is the model
    names = [each.name for each in parameters]
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for name in options:
        if name not in names and not takes_all:
            near = did_you_mean(name, [*names, *_OWN_OPTIONS]) or f"; it takes {listed(names)}."
            raise OptionError(f"EMAHook's {kind.__name__} has no option {name!r}{near}")
    if options.get("device") is not None:
        options["device"] = resolve_device(options["device"])
    if kind in _AVERAGES.values():
        _average(kind, nn.Module(), options)
    return options

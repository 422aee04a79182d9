"""Averages of a model's weights over the training, on ``torch.optim.swa_utils.AveragedModel``.

The formulas and arguments are MMEngine's (``mmengine/model/averaged_model.py``); so ``momentum`` is the weight of the
*new* value, and 0.0002 here is what other libraries call a decay of 0.9998. Three things differ from torch's own
class: an update never reads a number back from the device, integer buffers are copied and not averaged, and a model
with another number of tensors is refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from eventrunner.checks import check_ints
from eventrunner.errors import OptionError
from eventrunner.training.state import check_initialized

__all__ = [
    "ExponentialMovingAverage",
    "MomentumAnnealingEMA",
    "StochasticWeightAverage",
    "WeightAverage",
    "by_memory",
    "copy_extra_state",
    "paired_buffers",
    "paired_parameters",
]

Pair = tuple[Tensor, Tensor]
"""A tensor of the average, and the model's."""


class WeightAverage(AveragedModel):
    """What the three averages share; a subclass says how much a new value weighs.

    ``module`` is a deep copy of the model, whose parameters don't require grad. Its ``parameters()`` and ``buffers()``
    come in the model's own order, so that two equal ``zip``-ped lists are all that swapping the weights takes. It is
    changed in place and never replaced.

    The first update copies, and after it every ``interval``-th averages; at each of these, buffers are copied. The
    others only count. With weights in bfloat16 or float16 a small momentum is lost in rounding: average in float32.
    A buffer that the model makes or resizes later is taken over as it is. What modules return from
    ``get_extra_state`` isn't followed, as it may be large: call :func:`copy_extra_state` before you use the average.

    The state has the model's keys behind ``module.``, and ``n_averaged``, the number of calls so far: torch's keys.

    Args:
        model: whose weights are averaged; it isn't changed.
        interval: calls of ``update_parameters`` per average.
        device: where the average lives, if not where the model does. Each update then copies the weights across,
            and one that goes from a device to the host waits for the device.
        update_buffers: average the floating-point buffers as well (BatchNorm's statistics, say).

    Raises:
        OptionError: interval is not an int from 1, or the model's parameters are made by its first forward pass.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        check_initialized(type(self).__name__, model)
        super().__init__(model, None if device is None else torch.device(device), use_buffers=update_buffers)
        check_ints("", 1, interval=interval)
        self.interval = interval
        self.module.requires_grad_(False)
        # The counter stays on the host: read from a device, it would make every update wait for that device.
        self.n_averaged = torch.zeros((), dtype=torch.long, device="cpu")

    @property
    def steps(self) -> int:
        """Calls of ``update_parameters`` so far."""
        return int(self.n_averaged)

    def weight(self, steps: int) -> float:
        """Return how much the new value weighs in an average that was called ``steps`` times before; ``steps`` > 0."""
        raise NotImplementedError

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        """Count, and where it is the turn of an average, take the model's values in.

        Raises:
            OptionError: the model has more or fewer parameters or buffers than the one that was copied.
        """
        steps = self.steps
        if steps % self.interval == 0:
            self._take_in(model, 1.0 if steps == 0 else self.weight(steps))
        elif not self.use_buffers:  # what isn't averaged follows the model at every call
            self._copy(paired_buffers(self.module, model))
        self.n_averaged.add_(1)

    def _take_in(self, model: torch.nn.Module, weight: float) -> None:
        params, buffers = paired_parameters(self.module, model), paired_buffers(self.module, model)
        averaged, copied = (params + _distinct(buffers), []) if self.use_buffers else (params, buffers)
        blended = [pair for pair in averaged if weight < 1.0 and _can_blend(pair[0])]
        copied = copied + [pair for pair in averaged if weight == 1.0 or not _can_blend(pair[0])]
        if blended:
            torch._foreach_lerp_([a for a, _ in blended], [_alike(v, a) for a, v in blended], weight)
        self._copy(copied)

    def _copy(self, pairs: list[Pair]) -> None:
        if pairs:
            torch._foreach_copy_([average for average, _ in pairs], [value for _, value in pairs])


class ExponentialMovingAverage(WeightAverage):
    """``average += momentum * (value - average)``.

    Raises:
        OptionError: momentum is not a float between 0 and 1.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        momentum: float = 0.0002,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, interval, device, update_buffers)
        self.momentum = _momentum(momentum)

    def weight(self, steps: int) -> float:
        """Return the momentum."""
        return self.momentum


class StochasticWeightAverage(WeightAverage):
    """The plain mean of the values taken in."""

    def weight(self, steps: int) -> float:
        """Return ``1 / (n + 1)`` after ``n`` values."""
        return 1.0 / (steps // self.interval + 1)


class MomentumAnnealingEMA(WeightAverage):
    """An exponential moving average that follows closely at first: its momentum falls as ``gamma / (gamma + steps)``.

    Args:
        model: as for ``WeightAverage``, like the arguments not named here.
        momentum: what the momentum falls to.
        gamma: the number of calls after which it is a half.

    Raises:
        OptionError: momentum is not a float between 0 and 1, or gamma not an int from 1.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        momentum: float = 0.0002,
        gamma: int = 100,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, interval, device, update_buffers)
        self.momentum = _momentum(momentum)
        check_ints("", 1, gamma=gamma)
        self.gamma = gamma

    def weight(self, steps: int) -> float:
        """Return ``max(momentum, gamma / (gamma + steps))``."""
        return max(self.momentum, self.gamma / (self.gamma + steps))


def copy_extra_state(model: nn.Module, average: nn.Module) -> None:
    """Give the modules of *average* copies of what those of *model* return from ``get_extra_state``."""
    for theirs, ours in zip(model.modules(), average.modules(), strict=False):
        kind = type(theirs)
        if kind.get_extra_state is not nn.Module.get_extra_state and kind.set_extra_state is not (
            nn.Module.set_extra_state
        ):
            ours.set_extra_state(copy.deepcopy(theirs.get_extra_state()))


def paired_parameters(average: nn.Module, model: nn.Module) -> list[Pair]:
    """Return the parameters of the two, in the model's order.

    Raises:
        OptionError: the one has more than the other.
    """
    return _pairs("parameters", average.parameters(), model.parameters())


def paired_buffers(average: nn.Module, model: nn.Module) -> list[Pair]:
    """Return the buffers of the two, in the model's order; *average* is given those that were made or resized since.

    Raises:
        OptionError: the one has more than the other, as it has other modules.
    """
    if list(map(Tensor.size, average.buffers())) != list(map(Tensor.size, model.buffers())):
        _take_over_buffers(average, model)
    return _pairs("buffers", average.buffers(), model.buffers())


def by_memory(pairs: Iterable[Pair]) -> Iterable[list[Pair]]:
    """Group pairs whose values share memory, as views do, and parameters that are tied by their ``data``."""
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(_memory_of(pair[1]), []).append(pair)
    return groups.values()


def _memory_of(tensor: Tensor) -> int:
    shared = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    return shared or id(tensor)


def _distinct(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs without those whose average is the memory of an earlier one, which would be averaged twice."""
    return list({(_memory_of(a), a.shape, a.stride() if _can_blend(a) else ()): (a, v) for a, v in pairs}.values())


def _take_over_buffers(average: nn.Module, model: nn.Module) -> None:
    place = next((tensor.device for tensor in average.parameters()), None)
    modules = dict(average.named_modules())
    for path, theirs in model.named_modules():
        ours = modules.get(path, theirs)
        for name, value in theirs.named_buffers(recurse=False, remove_duplicate=False):
            if _size(ours, name) != value.size():
                persistent = name not in theirs._non_persistent_buffers_set  # noqa: SLF001  # torch has no public way
                ours.register_buffer(name, value.detach().clone().to(place), persistent)


def _size(module: nn.Module, name: str) -> torch.Size | None:
    buffer = getattr(module, name, None)
    return None if buffer is None else buffer.size()


def _pairs(what: str, averages: Iterable[Tensor], values: Iterable[Tensor]) -> list[Pair]:
    ours, theirs = list(averages), list(values)
    if len(ours) != len(theirs):
        raise OptionError(
            f"averaging a model of {len(theirs)} {what}, where its average has {len(ours)}: make the average when the "
            "model has them all, after one forward pass if that makes them."
        )
    return list(zip(ours, theirs, strict=True))


def _can_blend(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and (tensor.is_floating_point() or tensor.is_complex())


def _alike(value: Tensor, average: Tensor) -> Tensor:
    return value if value.device == average.device and value.dtype == average.dtype else value.to(average)


def _momentum(value: object) -> float:
    if not isinstance(value, float) or not 0.0 < value < 1.0:
        raise OptionError(f"momentum, the weight of the new value, must be a float between 0 and 1, not {value!r}.")
    if value > 0.5:
        warnings.warn(
            f"momentum={value} is the weight of the new value, so that the average follows the weights closely; "
            f"where a decay of {value} is meant, pass momentum={1 - value:.6g}.",
            stacklevel=3,
        )
    return value

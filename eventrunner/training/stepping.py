"""Whether a schedule is made for the unit by which a run steps it: epochs or iterations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from eventrunner.errors import OptionError
from eventrunner.training.schedule import Schedule, Schedules, all_schedules, with_parts

__all__ = ["Planned", "check_steps", "unit_remarks"]

# Arguments that are a number of steps, and the attributes that have it.
_WHOLE: dict[type[LRScheduler], tuple[str, str]] = {  # of the whole training
    lr_scheduler.CosineAnnealingLR: ("T_max", "T_max"),
    lr_scheduler.OneCycleLR: ("total_steps", "total_steps"),
    lr_scheduler.PolynomialLR: ("total_iters", "total_iters"),
    lr_scheduler.MultiStepLR: ("milestones", "milestones"),
}
_PART: dict[type[LRScheduler], tuple[str, str]] = {  # of a part of it: a warm-up, or the time between two changes
    lr_scheduler.LinearLR: ("total_iters", "total_iters"),
    lr_scheduler.ConstantLR: ("total_iters", "total_iters"),
    lr_scheduler.SequentialLR: ("milestones", "_milestones"),
    lr_scheduler.StepLR: ("step_size", "step_size"),
    lr_scheduler.ExponentialLR: ("gamma", "gamma"),  # a step down each time
    lr_scheduler.CosineAnnealingWarmRestarts: ("T_0", "T_0"),
    lr_scheduler.CyclicLR: ("step_size_up + step_size_down", "total_size"),
}
_NOTHING = 1e-9
"""A factor by which a learning rate trains nothing any more."""


@dataclass(frozen=True, slots=True)
class Planned:
    """How long a training is to be, in both units; None in one of them where the dataloader has no length.

    Where the training goes by iterations, ``epochs`` are its passes over the data.
    """

    by_epoch: bool
    epochs: float | None
    iters: int | None

    @classmethod
    def of(cls, by_epoch: bool, maximum: int, length: int | None) -> Planned:
        """Plan a training of *maximum* epochs or iterations, over a dataloader of *length* batches."""
        if by_epoch:
            return cls(True, maximum, None if length is None else maximum * length)
        return cls(False, maximum / length if length else None, maximum)

    def steps(self, schedule: Schedule) -> float | None:
        """Return how often the training steps it; by iterations, all of the training is one epoch."""
        if not schedule.by_epoch:
            return self.iters
        return self.epochs if self.by_epoch else 1


def check_steps(schedules: Schedules, planned: Planned) -> None:
    """Refuse a ``OneCycleLR`` that would be stepped more often than it can be: torch raises then, in mid-training.

    Raises:
        OptionError: it says how often the training steps it.
    """
    for schedule in all_schedules(schedules):
        steps, scheduler = planned.steps(schedule), schedule.scheduler
        if not isinstance(scheduler, lr_scheduler.OneCycleLR) or steps is None or steps <= scheduler.total_steps:
            continue
        fits = planned.by_epoch and not schedule.by_epoch and (planned.epochs or 0) <= scheduler.total_steps
        raise OptionError(
            f"param_scheduler OneCycleLR has total_steps={scheduler.total_steps} and can't be stepped more often, but "
            f"is stepped by {'epoch' if schedule.by_epoch else 'iteration'}, of which there are {steps}: make it "
            f"with total_steps={steps}{', or give by_epoch=True beside it.' if fits else '.'}"
        )


def unit_remarks(schedules: Schedules, planned: Planned) -> Iterator[str]:
    """Say of each schedule that looks as if it were made for the other unit, in which numbers it does."""
    for schedule in all_schedules(schedules):
        if schedule.by_epoch and not planned.by_epoch and not schedule.needs_metric:
            yield (
                f"{type(schedule.scheduler).__name__} with by_epoch=True is stepped once, at the end: by iterations, "
                "all of the training is one epoch; leave by_epoch out."
            )
        elif planned.epochs is not None and planned.iters is not None and planned.iters >= 2 * planned.epochs:
            for found in _mistaken(schedule, planned.epochs, planned.iters):
                yield found + _instead(schedule, planned.by_epoch, planned.epochs, planned.iters)
                break


def _mistaken(schedule: Schedule, epochs: float, iters: int) -> Iterator[str]:
    """Yield the numbers of the scheduler, or of those that it is made of, that are of the other unit."""
    fits = _fits_iterations if schedule.by_epoch else _fits_epochs
    for scheduler in with_parts(schedule.scheduler):
        for argument, steps, whole in _numbers(scheduler):
            if steps and fits(scheduler, steps, whole, epochs, iters):
                yield f"{type(scheduler).__name__} has {argument}={_shown(steps)}"


def _numbers(scheduler: LRScheduler) -> Iterator[tuple[str, float, bool]]:
    """Yield each argument that is a number of steps, the number, and whether it is one of the whole training."""
    for kind, (argument, attribute) in (_WHOLE | _PART).items():
        if isinstance(scheduler, kind):
            yield argument, _last(getattr(scheduler, attribute)), kind in _WHOLE
    for function in getattr(scheduler, "lr_lambdas", ()):  # what transformers makes: LambdaLR with a partial
        for argument, steps in getattr(function, "keywords", {}).items():
            if argument in ("num_training_steps", "num_warmup_steps"):
                yield argument, float(steps), argument == "num_training_steps"


def _instead(schedule: Schedule, by_epoch: bool, epochs: float, iters: int) -> str:
    if schedule.by_epoch:
        return (
            f" and is stepped by epoch, of which there are {epochs}; if it counts iterations, of which there are "
            f"{iters}, give dict(scheduler=…, by_epoch=False)."
        )
    stepped = f" and is stepped by iteration, of which there are {iters}; if it counts"
    if by_epoch:
        return f"{stepped} epochs, of which there are {epochs}, give dict(scheduler=…, by_epoch=True)."
    passes, batches = _shown(epochs), _shown(iters / epochs)
    return f"{stepped} passes over the data, of which there are {passes}, multiply it by their {batches} batches."


def _fits_iterations(scheduler: LRScheduler, steps: float, whole: bool, epochs: float, iters: int) -> bool:
    """Whether the epochs come nowhere near its end, and the iterations do.

    A training may well end before its schedule: as a trial, or because the last, low rates are of no use.
    """
    return steps == iters or (2 * epochs < steps < 2 * iters and (not whole or 4 * steps >= iters))


def _fits_epochs(scheduler: LRScheduler, steps: float, whole: bool, epochs: float, iters: int) -> bool:
    """Whether the rate comes to nothing, begins anew in each pass, or is at its end when the training has begun."""
    if isinstance(scheduler, lr_scheduler.StepLR | lr_scheduler.ExponentialLR):
        return _decay(scheduler, iters) < _NOTHING < _decay(scheduler, epochs)
    if isinstance(scheduler, lr_scheduler.CyclicLR) or getattr(scheduler, "T_mult", 0) == 1:
        return steps <= epochs and steps * epochs < iters
    return whole and (steps == epochs or (steps < epochs and 4 * steps <= iters))


def _decay(scheduler: Any, steps: float) -> float:
    """Return what is left of the rate after so many steps; all of one that rises, perhaps beyond all numbers."""
    return float(min(scheduler.gamma, 1.0) ** (steps // getattr(scheduler, "step_size", 1)))


def _last(steps: Any) -> float:
    """Return a number of steps, or the last of several milestones."""
    return float(steps if isinstance(steps, int | float) else max(steps, default=0))


def _shown(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:.6g}"

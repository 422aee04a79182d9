"""Schedules: torch's own ``lr_scheduler`` objects, and when each is stepped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from eventrunner.errors import OptionError, did_you_mean, listed
from eventrunner.training.rules import check_monitor, known_rule

__all__ = ["Schedule", "Schedules", "all_schedules", "begin_schedules", "build_schedules", "with_parts"]

_KEYS = ("scheduler", "by_epoch", "monitor", "rule")
_SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
_CYCLED = ("momentum", "betas")
"""What torch's schedulers set in a parameter group, and beside that where they cycle its momentum."""
_MODES = {"greater": "max", "less": "min"}
"""What a plateau scheduler calls the rules."""


@dataclass(slots=True)
class Schedule:
    """A scheduler, its unit (epochs or iterations), and for plateau schedulers the metric that it follows."""

    scheduler: Any  # torch types the step of a plateau scheduler apart from that of the others
    by_epoch: bool
    monitor: str | None = None
    needs_metric: bool = field(init=False)
    """Whether ``step`` takes a metric, after a validation, instead of counting."""

    def __post_init__(self) -> None:
        self.needs_metric = isinstance(self.scheduler, ReduceLROnPlateau)

    def step(self, *metric: float) -> None:
        """Step the scheduler."""
        self.scheduler.step(*metric)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's own state."""
        return dict(self.scheduler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the scheduler's own state."""
        self.scheduler.load_state_dict(state)


Schedules = list[Schedule] | dict[str, list[Schedule]]


def build_schedules(
    given: Any, by_epoch: bool, optimizers: Mapping[str, Any], metrics: tuple[str, ...] | None
) -> Schedules:
    """Return what ``param_scheduler=`` may be, as a list of schedules or a dict of such lists.

    Args:
        given: A scheduler, ``dict(scheduler=…, by_epoch=…, monitor=…, rule=…)``, a list of these, or a dict of lists
            by the names of several optimizers.
        by_epoch: The unit of a scheduler that doesn't say: the train loop's own.
        optimizers: The run's optimizers by name, the only one under ``""``; each scheduler must drive one of them.
        metrics: The evaluator's names, to check ``monitor`` against; None where they aren't known yet.

    Raises:
        OptionError: something else, an optimizer of another run, one scheduler twice, or a plateau scheduler without a
            metric or against its metric's rule.
    """
    built: Schedules
    if isinstance(given, Mapping) and given and set(given) <= set(optimizers):
        built = {name: _build_list(part, by_epoch, [optimizers[name]], metrics) for name, part in given.items()}
    else:
        built = _build_list(given, by_epoch, list(optimizers.values()), metrics)
    _refuse_twice(built)
    return built


def all_schedules(schedules: Schedules) -> list[Schedule]:
    """Return every schedule, in order."""
    return schedules if isinstance(schedules, list) else [each for part in schedules.values() for each in part]


def begin_schedules(optimizer: Any, made: list[dict[str, Any]], alone: bool) -> None:
    """Begin schedules on an optimizer whose state was loaded after they were made.

    Args:
        optimizer: What they drive.
        made: Its parameter groups as the schedules had set them when they were made.
        alone: Whether no other schedule drives it; the rates are then what was set. Else it is a factor of theirs.
    """
    for group, own in zip(optimizer.param_groups, made, strict=True):
        set_by_schedules = {key for key in own if key in _SCHEDULED or ("max_momentum" in own and key in _CYCLED)}
        if alone:
            group.update({key: own[key] for key in set_by_schedules})
        else:
            group["lr"] = group["lr"] * own["lr"] / own["initial_lr"]
            group.update({key: own[key] for key in set_by_schedules - group.keys()})


def with_parts(scheduler: Any) -> Iterator[LRScheduler]:
    """Yield a scheduler, and then those that a ``SequentialLR`` or ``ChainedScheduler`` is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from with_parts(part)


def _refuse_twice(schedules: Schedules) -> None:
    seen: set[int] = set()
    for scheduler in (part for schedule in all_schedules(schedules) for part in with_parts(schedule.scheduler)):
        if id(scheduler) in seen:
            raise OptionError(
                f"param_scheduler has one {type(scheduler).__name__} twice, which would be stepped twice as often; "
                "give it once, by itself or within another scheduler."
            )
        seen.add(id(scheduler))


def _build_list(given: Any, by_epoch: bool, optimizers: list[Any], metrics: tuple[str, ...] | None) -> list[Schedule]:
    if given is None:
        return []
    items = given if isinstance(given, list | tuple) else [given]
    return [_build(item, by_epoch, optimizers, metrics) for item in items]


def _build(item: Any, by_epoch: bool, optimizers: list[Any], metrics: tuple[str, ...] | None) -> Schedule:
    config = dict(item) if isinstance(item, Mapping) else {"scheduler": item}
    for key in config:
        if key == "type":
            raise OptionError(
                f"param_scheduler={dict(item)!r}: give torch's object, as in "
                "dict(scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 10), by_epoch=True)."
            )
        if key not in _KEYS:
            near = did_you_mean(str(key), _KEYS)
            raise OptionError(
                f"param_scheduler has no key {key!r}; it takes {', '.join(_KEYS)}, or lists by the names of several "
                f"optimizers{near or '.'}"
            )
    if "scheduler" not in config:
        raise OptionError(f"param_scheduler={config!r} has no 'scheduler', an object of torch.optim.lr_scheduler.")
    scheduler = config["scheduler"]
    if not isinstance(scheduler, LRScheduler):
        raise OptionError(f"param_scheduler {scheduler!r} is not a scheduler of torch.optim.lr_scheduler.")
    if not any(scheduler.optimizer is optimizer for optimizer in optimizers):
        raise OptionError(
            f"param_scheduler {type(scheduler).__name__} drives another optimizer than the one that this run steps."
        )
    schedule = Schedule(scheduler, _unit(config.get("by_epoch"), by_epoch), config.get("monitor"))
    if schedule.needs_metric:
        schedule.monitor = _monitor(schedule.monitor, metrics)
        _check_mode(scheduler, schedule.monitor, config.get("rule"))
        return schedule
    for key in ("monitor", "rule"):
        if config.get(key) is not None:
            raise OptionError(
                f"param_scheduler {key}={config[key]!r}: {type(scheduler).__name__} follows no metric; "
                "ReduceLROnPlateau does."
            )
    return schedule


def _check_mode(scheduler: Any, monitor: str, rule: str | None) -> None:
    """Refuse a plateau scheduler that would take every improvement for none."""
    better = known_rule(monitor, rule)
    if better is not None and scheduler.mode != _MODES[better]:
        more, other = ("more", "less") if better == "greater" else ("less", "greater")
        raise OptionError(
            f"param_scheduler ReduceLROnPlateau(mode={scheduler.mode!r}) follows {monitor!r}, of which {more} is "
            f"better: make it with mode={_MODES[better]!r}, or give rule={other!r} beside it if that isn't so."
        )


def _unit(given: Any, default: bool) -> bool:
    if given is None:
        return default
    if not isinstance(given, bool):
        raise OptionError(
            f"param_scheduler by_epoch={given!r} must be True, False, or left out for the training's own."
        )
    return given


def _monitor(monitor: str | None, metrics: tuple[str, ...] | None) -> str:
    """Return the metric's name as the evaluator has it; the only one there is, where none is named."""
    if monitor is None and metrics is not None and len(metrics) == 1:
        return metrics[0]
    if monitor is None:
        raise OptionError(
            "param_scheduler ReduceLROnPlateau follows a metric: pass "
            f"dict(scheduler=…, monitor=NAME) with one of {listed(metrics or (), 'the names of val_evaluator')}."
        )
    return check_monitor(f"param_scheduler monitor={monitor!r}", monitor, metrics)

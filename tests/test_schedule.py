"""Schedules: torch's own objects in every form that param_scheduler takes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, ReduceLROnPlateau, StepLR

from eventrunner.errors import OptionError
from eventrunner.training.schedule import Schedule, all_schedules, build_schedules


def sgd() -> torch.optim.Optimizer:
    """An optimizer of something."""
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)


OPTIMIZER = sgd()
STEP, DECAY = StepLR(OPTIMIZER, 1), ExponentialLR(OPTIMIZER, 0.5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, []),
        ([], []),
        (STEP, [Schedule(STEP, True)]),
        ([STEP, DECAY], [Schedule(STEP, True), Schedule(DECAY, True)]),
        ((STEP,), [Schedule(STEP, True)]),
        ({"scheduler": STEP}, [Schedule(STEP, True)]),
        ({"scheduler": STEP, "by_epoch": False}, [Schedule(STEP, False)]),
        ([STEP, {"scheduler": DECAY, "by_epoch": False}], [Schedule(STEP, True), Schedule(DECAY, False)]),
    ],
)
def test_one_or_a_list_with_units_or_without(given: Any, expected: list[Schedule]) -> None:
    """Without by_epoch the unit is the training's own."""
    assert build_schedules(given, True, {"": OPTIMIZER}, None) == expected


def test_the_unit_is_the_trainings_own() -> None:
    """By iterations it is the iteration, unless the schedule says otherwise."""
    given = [STEP, {"scheduler": DECAY, "by_epoch": True}]
    assert [each.by_epoch for each in all_schedules(build_schedules(given, False, {"": OPTIMIZER}, None))] == [
        False,
        True,
    ]


def test_a_chain_of_torchs_is_one_schedule() -> None:
    """It is a scheduler like any other."""
    chain = ChainedScheduler([ConstantLR(OPTIMIZER), DECAY])
    (built,) = all_schedules(build_schedules(chain, True, {"": OPTIMIZER}, None))
    assert built.scheduler is chain


def test_several_optimizers_have_lists_by_name() -> None:
    """Each name's schedules drive that optimizer; a list over all of them is fine too."""
    optimizers = {"a": sgd(), "b": sgd()}
    a, b = StepLR(optimizers["a"], 1), StepLR(optimizers["b"], 1)
    built = build_schedules({"b": [b], "a": {"scheduler": a, "by_epoch": False}}, True, optimizers, None)
    assert built == {"b": [Schedule(b, True)], "a": [Schedule(a, False)]}
    assert [each.scheduler for each in all_schedules(built)] == [b, a]
    assert [each.scheduler for each in all_schedules(build_schedules([a, b], True, optimizers, None))] == [a, b]


def test_a_schedule_under_another_optimizers_name_is_refused() -> None:
    """It would be stepped all the same, and reported under the wrong name."""
    optimizers = {"a": sgd(), "b": sgd()}
    with pytest.raises(OptionError, match=r"^param_scheduler StepLR drives another optimizer than the one"):
        build_schedules({"a": StepLR(optimizers["b"], 1)}, True, optimizers, None)


PLATEAU, RISING = ReduceLROnPlateau(OPTIMIZER), ReduceLROnPlateau(OPTIMIZER, mode="max")


@pytest.mark.parametrize(
    ("given", "metrics", "monitor"),
    [
        (PLATEAU, ("loss",), "loss"),
        (RISING, ("accuracy",), "accuracy"),
        ({"scheduler": RISING, "monitor": "accuracy"}, ("loss", "accuracy"), "accuracy"),
        ({"scheduler": RISING, "monitor": "val/accuracy"}, ("loss", "accuracy"), "accuracy"),
        ({"scheduler": PLATEAU, "monitor": "score", "rule": "less"}, ("score",), "score"),
        ({"scheduler": RISING, "monitor": "anything"}, None, "anything"),
        ({"scheduler": PLATEAU, "monitor": "anything"}, None, "anything"),
    ],
)
def test_a_plateau_follows_a_metric(given: Any, metrics: Any, monitor: str) -> None:
    """The only one there is, or the one that is named, with val/ or without."""
    (built,) = all_schedules(build_schedules(given, True, {"": OPTIMIZER}, metrics))
    assert built.needs_metric
    assert built.monitor == monitor


def test_a_schedule_steps_and_has_the_schedulers_state() -> None:
    """By itself, and with a metric where it follows one."""
    optimizer = sgd()
    decay, plateau = (
        Schedule(ExponentialLR(optimizer, 0.5), True),
        Schedule(ReduceLROnPlateau(optimizer, patience=0), True),
    )
    optimizer.step()
    decay.step()
    plateau.step(1.0)
    plateau.step(2.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert not decay.needs_metric
    twin = Schedule(ExponentialLR(sgd(), 0.5), True)
    twin.load_state_dict(decay.state_dict())
    assert twin.state_dict() == decay.state_dict()
    assert twin.scheduler.last_epoch == 1


KEYS = "scheduler, by_epoch, monitor, rule, or lists by the names of several optimizers"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shceduler": STEP}, f"param_scheduler has no key 'shceduler'; it takes {KEYS}; did you mean 'scheduler'?"),
        ({"a": [STEP]}, f"param_scheduler has no key 'a'; it takes {KEYS}."),
        ({}, "param_scheduler={} has no 'scheduler', an object of torch.optim.lr_scheduler."),
        ("StepLR", "param_scheduler 'StepLR' is not a scheduler of torch.optim.lr_scheduler."),
        (
            {"by_epoch": True},
            "param_scheduler={'by_epoch': True} has no 'scheduler', an object of torch.optim.lr_scheduler.",
        ),
        (
            {"scheduler": STEP, "by_epoch": "epoch"},
            "param_scheduler by_epoch='epoch' must be True, False, or left out for the training's own.",
        ),
        (
            {"scheduler": STEP, "monitor": "loss"},
            "param_scheduler monitor='loss': StepLR follows no metric; ReduceLROnPlateau does.",
        ),
        (
            {"scheduler": STEP, "rule": "less"},
            "param_scheduler rule='less': StepLR follows no metric; ReduceLROnPlateau does.",
        ),
        (
            {"scheduler": PLATEAU, "monitor": "loss", "rule": "lower"},
            "rule='lower' for 'loss' must be 'greater' or 'less'.",
        ),
        (
            [STEP, STEP],
            "param_scheduler has one StepLR twice, which would be stepped twice as often; give it once, by itself or "
            "within another scheduler.",
        ),
        (
            [DECAY, ChainedScheduler([ConstantLR(OPTIMIZER), DECAY])],
            "param_scheduler has one ExponentialLR twice, which would be stepped twice as often; give it once, by "
            "itself or within another scheduler.",
        ),
        (
            PLATEAU,
            "param_scheduler ReduceLROnPlateau follows a metric: pass dict(scheduler=…, monitor=NAME) with one of "
            "loss, accuracy.",
        ),
        (
            {"scheduler": PLATEAU, "monitor": "acuracy"},
            "param_scheduler monitor='acuracy': the evaluator reports 'loss', 'accuracy'; did you mean 'accuracy'?",
        ),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(given: Any, said: str) -> None:
    """Misspelt keys, other things, and metrics that there aren't."""
    with pytest.raises(OptionError) as caught:
        build_schedules(given, True, {"": OPTIMIZER}, ("loss", "accuracy"))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("given", "metric", "said"),
    [
        (
            PLATEAU,
            "accuracy",
            "param_scheduler ReduceLROnPlateau(mode='min') follows 'accuracy', of which more is better: make it with "
            "mode='max', or give rule='less' beside it if that isn't so.",
        ),
        (
            {"scheduler": RISING, "monitor": "val/mse"},
            "mse",
            "param_scheduler ReduceLROnPlateau(mode='max') follows 'mse', of which less is better: make it with "
            "mode='min', or give rule='greater' beside it if that isn't so.",
        ),
        (
            {"scheduler": RISING, "rule": "less"},
            "anything",
            "param_scheduler ReduceLROnPlateau(mode='max') follows 'anything', of which less is better: make it with "
            "mode='min', or give rule='greater' beside it if that isn't so.",
        ),
    ],
    ids=str,
)
def test_a_plateau_against_its_metric_is_refused(given: Any, metric: str, said: str) -> None:
    """It would lower the rate while the metric gets better; torch's own default is mode='min'."""
    with pytest.raises(OptionError) as caught:
        build_schedules(given, True, {"": OPTIMIZER}, (metric,))
    assert str(caught.value) == said


def test_a_plateau_whose_metrics_are_not_known_must_name_one() -> None:
    """The message can't list them."""
    with pytest.raises(OptionError, match=r"monitor=NAME\) with one of the names of val_evaluator\.$"):
        build_schedules(PLATEAU, True, {"": OPTIMIZER}, None)

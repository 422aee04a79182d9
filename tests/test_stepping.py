"""A schedule's unit: what seems to be made for the other one is said when the Runner is made, what is right is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import MeanSquaredError, batches, linear, val_step
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from eventrunner.errors import OptionError
from eventrunner.training.schedule import build_schedules
from eventrunner.training.stepping import Planned, unit_remarks

Build = Callable[[Optimizer], LRScheduler]


def warm(optimizer: Optimizer, warm_up: int, then: LRScheduler) -> SequentialLR:
    """A linear warm-up, and then another schedule."""
    return SequentialLR(optimizer, [LinearLR(optimizer, total_iters=warm_up), then], milestones=[warm_up])


def cyclic(optimizer: Optimizer, up: int, **more: Any) -> CyclicLR:
    """A cycle of twice as many steps."""
    return CyclicLR(optimizer, 0.01, 0.1, step_size_up=up, **more)


def rate(step: int, *, num_warmup_steps: int, num_training_steps: int) -> float:
    """Up, and then down."""
    return min(step / max(num_warmup_steps, 1), 1.0) * (1 - step / num_training_steps)


def linear_with_warmup(optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int) -> LambdaLR:
    """As transformers makes its schedulers."""
    keywords = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    return LambdaLR(optimizer, functools.partial(rate, **keywords))


def remarks(build: Build, by_epoch: bool | None, planned: Planned) -> list[str]:
    """What is said of a schedule; by_epoch None leaves it to the training."""
    optimizer = torch.optim.SGD(linear().parameters(), lr=0.1, momentum=0.9)
    given = {"scheduler": build(optimizer), "by_epoch": by_epoch}
    return list(unit_remarks(build_schedules(given, planned.by_epoch, {"": optimizer}, None), planned))


# Trainings of 3 epochs of 8 batches and of 90 of 500; by iterations, of 24 over 8 batches, and of 40,000 over 1,000.
TINY, USUAL = Planned.of(True, 3, 8), Planned.of(True, 90, 500)
TINY_ITERS, USUAL_ITERS = Planned.of(False, 24, 8), Planned.of(False, 40_000, 1000)


@pytest.mark.parametrize("planned", [TINY, USUAL], ids=["tiny", "usual"])
@pytest.mark.parametrize(
    ("build", "argument", "number"),
    [
        (lambda o, n, b: CosineAnnealingLR(o, n), "CosineAnnealingLR has T_max", lambda n, b: n),
        (lambda o, n, b: CosineAnnealingLR(o, n - b), "CosineAnnealingLR has T_max", lambda n, b: n - b),
        (lambda o, n, b: CosineAnnealingLR(o, n + 1), "CosineAnnealingLR has T_max", lambda n, b: n + 1),
        (lambda o, n, b: OneCycleLR(o, 0.1, total_steps=n), "OneCycleLR has total_steps", lambda n, b: n),
        (lambda o, n, b: PolynomialLR(o, n), "PolynomialLR has total_iters", lambda n, b: n),
        (lambda o, n, b: MultiStepLR(o, [b, n // 2]), "MultiStepLR has milestones", lambda n, b: n // 2),
        (lambda o, n, b: LinearLR(o, total_iters=b), "LinearLR has total_iters", lambda n, b: b),
        (lambda o, n, b: ConstantLR(o, total_iters=b), "ConstantLR has total_iters", lambda n, b: b),
        (lambda o, n, b: StepLR(o, b), "StepLR has step_size", lambda n, b: b),
        (
            lambda o, n, b: CosineAnnealingWarmRestarts(o, b),
            "CosineAnnealingWarmRestarts has T_0",
            lambda n, b: b,
        ),
        (lambda o, n, b: cyclic(o, b), "CyclicLR has step_size_up + step_size_down", lambda n, b: 2 * b),
        (lambda o, n, b: linear_with_warmup(o, b, n), "LambdaLR has num_warmup_steps", lambda n, b: b),
        (lambda o, n, b: linear_with_warmup(o, 0, n), "LambdaLR has num_training_steps", lambda n, b: n),
        (lambda o, n, b: warm(o, b, CosineAnnealingLR(o, n - b)), "SequentialLR has milestones", lambda n, b: b),
        (lambda o, n, b: warm(o, 1, CosineAnnealingLR(o, n - 1)), "CosineAnnealingLR has T_max", lambda n, b: n - 1),
        (
            lambda o, n, b: ChainedScheduler([ConstantLR(o, total_iters=1), PolynomialLR(o, n)]),
            "PolynomialLR has total_iters",
            lambda n, b: n,
        ),
    ],
)
def test_what_counts_iterations_and_is_stepped_by_epoch_is_said(
    build: Any, argument: str, number: Callable[[int, int], int], planned: Planned
) -> None:
    """With both numbers, and the argument to add; a build takes the optimizer, all iterations and those of an epoch."""
    epochs, iters = int(planned.epochs or 0), planned.iters or 0
    sizes = (iters, iters // epochs)
    assert remarks(lambda optimizer: build(optimizer, *sizes), None, planned) == [
        f"{argument}={number(*sizes)} and is stepped by epoch, of which there are {epochs}; if it counts iterations, "
        f"of which there are {iters}, give dict(scheduler=…, by_epoch=False)."
    ]


@pytest.mark.parametrize("planned", [TINY, USUAL], ids=["tiny", "usual"])
@pytest.mark.parametrize(
    "build",
    [
        lambda o, e: CosineAnnealingLR(o, e),
        lambda o, e: PolynomialLR(o, e),
        lambda o, e: linear_with_warmup(o, 1, e),
        lambda o, e: MultiStepLR(o, [e // 2, e - 1]),
        lambda o, e: StepLR(o, e // 3),
        lambda o, e: ExponentialLR(o, 0.4 if e == 3 else 0.9),
        lambda o, e: CosineAnnealingWarmRestarts(o, e),
        lambda o, e: cyclic(o, 1),
        lambda o, e: warm(o, 1, CosineAnnealingLR(o, e - 1)),
        lambda o, e: ChainedScheduler([ConstantLR(o), PolynomialLR(o, e)]),
    ],
)
def test_what_counts_epochs_and_is_stepped_by_iteration_is_said(build: Any, planned: Planned) -> None:
    """It would be at its end, or come to nothing, within the first epochs."""
    (said,) = remarks(lambda optimizer: build(optimizer, int(planned.epochs or 0)), False, planned)
    assert said.endswith(
        f" and is stepped by iteration, of which there are {planned.iters}; if it counts epochs, of which there are "
        f"{planned.epochs:g}, give dict(scheduler=…, by_epoch=True)."
    )


@pytest.mark.parametrize("planned", [TINY_ITERS, USUAL_ITERS], ids=["tiny", "usual"])
def test_what_counts_passes_in_a_training_by_iterations_is_said(planned: Planned) -> None:
    """There by_epoch=True would be of no use: its numbers must be larger."""
    passes, iters = int(planned.epochs or 0), planned.iters or 0
    assert remarks(lambda optimizer: CosineAnnealingLR(optimizer, passes), None, planned) == [
        f"CosineAnnealingLR has T_max={passes} and is stepped by iteration, of which there are {iters}; if it counts "
        f"passes over the data, of which there are {passes}, multiply it by their {iters // passes} batches."
    ]


def test_large_numbers_are_said_to_the_last_digit() -> None:
    """And passes that don't come out even as they are."""
    planned = Planned.of(False, 12_345_678, 1000)
    (said,) = remarks(lambda optimizer: CosineAnnealingLR(optimizer, 12_345), None, planned)
    assert said == (
        "CosineAnnealingLR has T_max=12345 and is stepped by iteration, of which there are 12345678; if it counts "
        "passes over the data, of which there are 12345.7, multiply it by their 1000 batches."
    )


def test_by_epoch_in_a_training_by_iterations_is_said() -> None:
    """All of it is one epoch, so whatever the schedule is, it is stepped when nothing is left to train."""
    assert remarks(lambda optimizer: ExponentialLR(optimizer, 0.9), True, Planned.of(False, 24, None)) == [
        "ExponentialLR with by_epoch=True is stepped once, at the end: by iterations, all of the training is one "
        "epoch; leave by_epoch out."
    ]


@pytest.mark.parametrize(
    ("planned", "build"),
    [
        (USUAL, lambda o: CosineAnnealingLR(o, 90)),
        (USUAL, lambda o: CosineAnnealingLR(o, 10)),  # several times down and up
        (USUAL, lambda o: CosineAnnealingLR(o, 100)),  # not down to the end
        (USUAL, lambda o: CosineAnnealingLR(o, 300)),  # the beginning of a longer one
        (USUAL, lambda o: OneCycleLR(o, 0.1, total_steps=90)),
        (USUAL, lambda o: MultiStepLR(o, [30, 60, 80])),
        (USUAL, lambda o: MultiStepLR(o, [])),
        (USUAL, lambda o: StepLR(o, 30)),
        (USUAL, lambda o: PolynomialLR(o, 90)),
        (USUAL, lambda o: LinearLR(o, total_iters=5)),
        (USUAL, lambda o: ExponentialLR(o, 0.95)),
        (USUAL, lambda o: CosineAnnealingWarmRestarts(o, 10, T_mult=2)),
        (USUAL, lambda o: cyclic(o, 4)),
        (USUAL, lambda o: warm(o, 5, CosineAnnealingLR(o, 85))),
        (USUAL, lambda o: ChainedScheduler([LinearLR(o, total_iters=5), MultiStepLR(o, [30, 60])])),
        (USUAL, lambda o: LambdaLR(o, lambda epoch: 0.95**epoch)),
        (USUAL, lambda o: linear_with_warmup(o, 5, 90)),
        (USUAL, lambda o: MultiplicativeLR(o, lambda epoch: 0.95)),
        (Planned.of(True, 2, 500), lambda o: MultiStepLR(o, [30, 60, 90])),  # a trial
        (Planned.of(True, 2, 500), lambda o: CosineAnnealingLR(o, 100)),  # another
        (Planned.of(True, 3, 8), lambda o: LinearLR(o)),  # torch's default of 5
        (Planned.of(True, 10, None), lambda o: CosineAnnealingLR(o, 5000)),  # nobody knows
        (Planned.of(True, 10, 1), lambda o: CosineAnnealingLR(o, 10)),  # both units are one
    ],
)
def test_nothing_is_said_of_what_fits_epochs(planned: Planned, build: Build) -> None:
    """Nor of what may."""
    assert remarks(build, True, planned) == []


@pytest.mark.parametrize(
    ("planned", "build"),
    [
        (planned, build)
        for planned in (USUAL, Planned.of(False, 45_000, 500), Planned.of(False, 45_000, 10**9))
        for build in (
            lambda o: CosineAnnealingLR(o, 45_000),
            lambda o: CosineAnnealingLR(o, 500),
            lambda o: OneCycleLR(o, 0.1, total_steps=45_000),
            lambda o: OneCycleLR(o, 0.1, epochs=90, steps_per_epoch=500),
            lambda o: MultiStepLR(o, [30_000, 40_000]),
            lambda o: StepLR(o, 15_000),
            lambda o: StepLR(o, 1, gamma=0.9999),
            lambda o: ExponentialLR(o, 0.9999),
            lambda o: ExponentialLR(o, 1.1),  # to find the highest rate: beyond all numbers
            lambda o: StepLR(o, 1, gamma=2.0),
            lambda o: PolynomialLR(o, 45_000),
            lambda o: LinearLR(o, total_iters=5),
            lambda o: ConstantLR(o, total_iters=50),
            lambda o: CosineAnnealingWarmRestarts(o, 1000),
            lambda o: CosineAnnealingWarmRestarts(o, 10, T_mult=2),
            lambda o: cyclic(o, 1000),
            lambda o: warm(o, 50, CosineAnnealingLR(o, 44_950)),
            lambda o: ChainedScheduler([LinearLR(o, total_iters=50), MultiStepLR(o, [30_000])]),
            lambda o: LambdaLR(o, lambda step: min(1.0, step / 500)),
            lambda o: linear_with_warmup(o, 50, 45_000),
        )
    ],
)
def test_nothing_is_said_of_what_fits_iterations(planned: Planned, build: Build) -> None:
    """A warm-up may be as short as it likes."""
    assert remarks(build, False, planned) == []


@pytest.mark.parametrize(
    "planned",
    [Planned.of(False, 24, None), Planned.of(False, 24, 100), Planned.of(False, 24, 0), Planned.of(True, 3, 0)],
    ids=str,
)
def test_nothing_is_said_where_there_are_no_two_units(planned: Planned) -> None:
    """The loader has no length, or less than a pass over it is planned, or it is empty."""
    assert remarks(lambda optimizer: CosineAnnealingLR(optimizer, 3), None, planned) == []


def test_nothing_is_said_of_a_plateau_which_counts_validations() -> None:
    """Its unit is neither."""
    optimizer = torch.optim.SGD(linear().parameters(), lr=0.1)
    given = {"scheduler": ReduceLROnPlateau(optimizer), "by_epoch": True, "monitor": "mse"}
    built = build_schedules(given, False, {"": optimizer}, ("mse",))
    assert list(unit_remarks(built, TINY_ITERS)) == []


def test_it_is_said_once_when_the_runner_is_made(make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is trained, and the run isn't refused: it may be meant."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = make_runner(
        model=model, optimizer=optimizer, param_scheduler=CosineAnnealingLR(optimizer, 24), epochs=3, count=8,
        log_level="WARNING",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("CosineAnnealingLR has T_max=24 and is stepped by epoch, of which there are 3") == 1
    runner.train()
    assert runner.epoch == 3
    assert "CosineAnnealingLR" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scheduler", "train_cfg", "said"),
    [
        (
            {"by_epoch": False},
            {"max_epochs": 3},
            "stepped by iteration, of which there are 24: make it with total_steps=24, or give by_epoch=True beside "
            "it.",
        ),
        ({}, {"max_epochs": 4}, "stepped by epoch, of which there are 4: make it with total_steps=4."),
        ({}, {"max_iters": 24}, "stepped by iteration, of which there are 24: make it with total_steps=24."),
    ],
    ids=str,
)
def test_a_cycle_that_ends_before_the_training_is_refused(
    make_runner: MakeRunner, scheduler: dict[str, Any], train_cfg: dict[str, int], said: str
) -> None:
    """At the step behind it torch raises: better before the first."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = {"scheduler": OneCycleLR(optimizer, 0.1, total_steps=3), **scheduler}
    with pytest.raises(OptionError) as caught:
        make_runner(model=model, optimizer=optimizer, param_scheduler=given, count=8, train_cfg=train_cfg)
    begin = "param_scheduler OneCycleLR has total_steps=3 and can't be stepped more often, but is "
    assert str(caught.value) == begin + said


@pytest.mark.parametrize("train_cfg", [{"max_epochs": 3}, {"max_iters": 3}], ids=str)
def test_a_cycle_as_long_as_the_training_runs_to_its_end(make_runner: MakeRunner, train_cfg: dict[str, int]) -> None:
    """To the last step that torch allows."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cycle = OneCycleLR(optimizer, 0.1, total_steps=3)
    make_runner(model=model, optimizer=optimizer, param_scheduler=cycle, count=8, train_cfg=train_cfg).train()
    assert cycle.last_epoch == 3


def test_a_plateau_against_the_only_metric_is_refused_by_the_runner(make_runner: MakeRunner) -> None:
    """Without monitor too: it is the metric that would be followed."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluation = {"val_dataloader": batches(1), "val_evaluator": {"mse": MeanSquaredError()}, "val_step": val_step}
    plateau = ReduceLROnPlateau(optimizer, mode="max")
    with pytest.raises(OptionError, match=r"^param_scheduler ReduceLROnPlateau\(mode='max'\) follows 'mse'"):
        make_runner(model=model, optimizer=optimizer, param_scheduler=plateau, **evaluation)

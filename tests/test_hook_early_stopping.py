"""EarlyStoppingHook in trainings whose validations report given scores, one after the other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import MeanSquaredError
from torch import Tensor, nn

from eventrunner.bus.bus import Bus
from eventrunner.errors import OptionError
from eventrunner.hooks import EarlyStoppingHook
from eventrunner.runner import Runner


class Scores:
    """A metric that reports the given numbers in turn; a None reports another name instead."""

    def __init__(self, values: list[float | None]) -> None:
        self.values = list(values)

    def update(self, value: Tensor) -> None:
        pass

    def compute(self) -> dict[str, float]:
        value = self.values.pop(0)
        return {"other": 0.0} if value is None else {"score": value}

    def reset(self) -> None:
        pass


class Plain(Scores):
    """The same with one number, so that the evaluator knows its names before the first validation."""

    def compute(self) -> float:  # type: ignore[override]
        return self.values.pop(0) or 0.0


def train_step(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Anything that can be trained."""
    return {"loss": model(batch).square().mean()}


def make(folder: Path, values: list[float | None], *hooks: Any, metric: Any = None, **options: Any) -> Runner:
    """As many epochs of one batch as there are scores; the metric is val/quality/score, or val/loss."""
    model = nn.Linear(2, 1)
    options = {
        "train_dataloader": [torch.ones(1, 2)],
        "train_cfg": {"max_epochs": len(values)},
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_step": train_step,
        "default_hooks": {"logger": None, "checkpoint": None},
        **options,
    }
    return Runner(
        model=model,
        work_dir=folder,
        val_dataloader=[torch.ones(1, 2)],
        val_step=lambda model, batch: model(batch),
        val_evaluator={"quality": Scores(values)} if metric is None else metric,
        custom_hooks=list(hooks),
        bus=Bus(),
        device="cpu",
        **options,
    )


def lines_with(words: str, folder: Path) -> list[str]:
    """The lines of log.txt that have the words, with single spaces."""
    lines = [" ".join(line.split()) for line in (folder / "log.txt").read_text().splitlines()]
    return [line for line in lines if words in line]


@pytest.mark.parametrize(
    ("options", "values", "epochs", "reason"),
    [
        ({"patience": 2}, [0.5, 0.6, 0.6, 0.5, 0.9], 4, "early_stop"),
        ({"patience": 2, "rule": "less"}, [0.5, 0.6, 0.4, 0.5, 0.4, 0.1], 5, "early_stop"),
        ({"patience": 2}, [0.1, 0.2, 0.3, 0.4], 4, "completed"),
        ({"patience": 1}, [0.5, 0.5, 0.9], 2, "early_stop"),
        ({"patience": 2, "min_delta": 0.1}, [0.5, 0.55, 0.59, 0.9], 3, "early_stop"),
        ({"patience": 2, "min_delta": 0.1, "rule": "less"}, [0.5, 0.39, 0.3, 0.35, 0.1], 4, "early_stop"),
        ({"stopping_threshold": 1.0}, [0.5, 1.0, 0.9], 2, "early_stop"),
        ({"stopping_threshold": 0.1, "rule": "less"}, [0.5, 0.05, 0.9], 2, "early_stop"),
        ({}, [0.5, math.nan, 0.9], 2, "nan"),
        ({}, [0.5, math.inf, 0.9], 2, "nan"),
        ({"check_finite": False, "patience": 2}, [0.5, math.nan, math.nan, 0.9], 3, "early_stop"),
        ({"check_finite": False, "stopping_threshold": 0.8}, [math.nan, 0.5, 0.9, 0.1], 3, "early_stop"),
    ],
)
def test_the_training_stops_when_it_should(
    tmp_path: Path, options: dict[str, Any], values: list[float | None], epochs: int, reason: str
) -> None:
    """After so many epochs, for that reason."""
    runner = make(tmp_path / "run", values, EarlyStoppingHook("quality/score", **options))
    runner.train()
    assert (runner.epoch, runner.stop_reason) == (epochs, reason)


@pytest.mark.parametrize(
    ("options", "values", "line"),
    [
        ({"patience": 1}, [0.5, 0.25], "early stop quality/score hasn't improved on 0.5 in 1 validation"),
        ({"patience": 2}, [0.5, 0.25, 0.25], "early stop quality/score hasn't improved on 0.5 in 2 validations"),
        ({"stopping_threshold": 0.3}, [0.5], "early stop quality/score is 0.5 and was to reach 0.3"),
        ({}, [math.nan], "early stop quality/score is nan"),
    ],
)
def test_one_line_says_why(tmp_path: Path, options: dict[str, Any], values: list[float | None], line: str) -> None:
    """In log.txt as on the terminal."""
    make(tmp_path / "run", values, EarlyStoppingHook("val/quality/score", **options)).train()
    assert lines_with("early stop", tmp_path / "run") == [line]


def test_it_stops_a_training_by_iterations_too(tmp_path: Path) -> None:
    """At the iteration whose validation was one too many."""
    values: list[float | None] = [0.5, 0.5, 0.5, 0.9]
    cfg = {"max_iters": 8, "val_interval": 2}
    runner = make(tmp_path / "run", values, EarlyStoppingHook("quality/score", patience=2), train_cfg=cfg)
    runner.train()
    assert (runner.iter, runner.stop_reason) == (6, "early_stop")


def test_a_validation_outside_of_training_doesnt_count(tmp_path: Path) -> None:
    """val() judges nothing."""
    hook = EarlyStoppingHook("quality/score", patience=1)
    runner = make(tmp_path / "run", [0.9, 0.1, 0.2], hook)
    runner.val()
    assert (hook.best_score, hook.wait_count) == (-math.inf, 0)


def test_a_validation_without_the_metric_is_passed_over_with_one_warning(tmp_path: Path) -> None:
    """It is neither an improvement nor the lack of one."""
    runner = make(tmp_path / "run", [0.5, None, None, 0.4, 0.6], EarlyStoppingHook("quality/score", patience=2))
    runner.train()
    assert (runner.epoch, runner.stop_reason) == (5, "completed")
    assert lines_with("warning", tmp_path / "run") == [
        "warning early stopping waits for 'quality/score': the validation gave 'quality/other'"
    ]


def test_strictly_a_validation_without_the_metric_is_an_error(tmp_path: Path) -> None:
    """The message names the metrics that were there."""
    runner = make(tmp_path / "run", [0.5, None, 0.6], EarlyStoppingHook("quality/score", strict=True))
    with pytest.raises(OptionError) as caught:
        runner.train()
    assert str(caught.value) == (
        "EarlyStoppingHook(monitor='quality/score', strict=True): the validation gave 'quality/other'."
    )


def test_the_count_survives_a_resume(tmp_path: Path) -> None:
    """Stopped after two of three validations without improvement and resumed, it stops after the third."""
    options = {"default_hooks": {"logger": None}, "train_cfg": {"max_epochs": 9}}
    first = make(tmp_path / "run", [0.5, 0.4, 0.3], EarlyStoppingHook("quality/score", patience=3), **options)
    first.on("after_val_epoch", every=3)(lambda runner: runner.stop("for now"))
    first.train()
    hook = EarlyStoppingHook("quality/score", patience=3)
    # The last save is that of the third epoch's end, so its validation is done again.
    second = make(tmp_path / "run", [0.3, 0.2, 0.6], hook, resume=True, **options)
    second.train()
    assert (second.epoch, second.stop_reason) == (4, "early_stop")
    assert (hook.best_score, hook.wait_count) == (0.5, 3)


def test_the_state_before_the_first_validation_survives_a_resume(tmp_path: Path) -> None:
    """The best score is then an infinity, which a checkpoint must hold."""
    options = {"default_hooks": {"logger": None}, "train_cfg": {"max_epochs": 2, "val_begin": 2}}
    first = make(tmp_path / "run", [], EarlyStoppingHook("quality/score"), **options)
    first.on("after_train_epoch")(lambda runner: runner.stop("for now"))
    first.train()
    hook = EarlyStoppingHook("quality/score")
    make(tmp_path / "run", [0.5], hook, resume=True, **options).train()
    assert hook.best_score == 0.5


@pytest.mark.parametrize(
    ("monitor", "rule"), [("val/loss", "less"), ("accuracy", "greater"), ("val/top1_error", "less")]
)
def test_the_rule_is_told_from_the_name(monitor: str, rule: str) -> None:
    """Whole words count, with or without val/."""
    assert EarlyStoppingHook(monitor).rule == rule


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("acuracy", "EarlyStoppingHook(monitor='acuracy'): the evaluator reports 'accuracy'; did you mean 'accuracy'?"),
        ("weight", "whether more of 'weight' is better can't be told from its name; pass rule='greater' or 'less'."),
    ],
)
def test_a_name_that_tells_no_rule_is_checked_for_a_slip_first(
    make_runner: MakeRunner, monitor: str, message: str
) -> None:
    """Both when the Runner is made."""
    evaluator = {"accuracy": MeanSquaredError(), **({"weight": MeanSquaredError()} if monitor == "weight" else {})}
    with pytest.raises(OptionError) as caught:
        make_runner(val=True, val_evaluator=evaluator, custom_hooks=[EarlyStoppingHook(monitor)])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": ""}, "EarlyStoppingHook(monitor=''): give the name of a metric."),
        ({"monitor": "val/"}, "EarlyStoppingHook(monitor='val/'): give the name of a metric."),
        ({"monitor": 3}, "EarlyStoppingHook(monitor=3): give the name of a metric."),
        ({"rule": "lower"}, "rule='lower' for 'loss' must be 'greater' or 'less'"),
        ({"min_delta": -0.1}, "EarlyStoppingHook(min_delta=-0.1): give a number of 0 or more."),
        ({"min_delta": math.nan}, "EarlyStoppingHook(min_delta=nan): give a number of 0 or more."),
        ({"min_delta": "0.1"}, "EarlyStoppingHook(min_delta='0.1'): give a number of 0 or more."),
        ({"strict": "yes"}, "EarlyStoppingHook(strict='yes'): give True or False."),
        ({"check_finite": 1}, "EarlyStoppingHook(check_finite=1): give True or False."),
        ({"patience": 0}, "EarlyStoppingHook(patience=0): give an int of 1 or more."),
        ({"patience": 2.5}, "EarlyStoppingHook(patience=2.5): give an int of 1 or more."),
        ({"patience": True}, "EarlyStoppingHook(patience=True): give an int of 1 or more."),
        ({"stopping_threshold": math.inf}, "EarlyStoppingHook(stopping_threshold=inf): give a finite number."),
        ({"stopping_threshold": True}, "EarlyStoppingHook(stopping_threshold=True): give a finite number."),
    ],
)
def test_an_option_that_cant_be_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    """When the hook is made, before there is a run."""
    with pytest.raises(OptionError) as caught:
        EarlyStoppingHook(**{"monitor": "loss", **options})
    assert str(caught.value).startswith(message)


def test_a_metric_that_the_run_doesnt_have_is_refused_when_the_hook_is_registered(tmp_path: Path) -> None:
    """With the names that there are, and before a folder is made."""
    with pytest.raises(OptionError) as caught:
        make(tmp_path / "run", [0.5], EarlyStoppingHook("accuracy"), metric={"loss": Plain([0.5])})
    assert str(caught.value) == "EarlyStoppingHook(monitor='accuracy'): the evaluator reports 'loss'."
    assert not (tmp_path / "run").exists()


def test_a_metric_that_the_run_has_is_accepted(tmp_path: Path) -> None:
    """By its name in the evaluator."""
    metric = {"loss": Plain([0.5, 0.6, 0.7, 0.1])}
    runner = make(tmp_path / "run", [None] * 4, EarlyStoppingHook("val/loss", patience=2), metric=metric)
    runner.train()
    assert (runner.epoch, runner.stop_reason) == (3, "early_stop")


def test_a_training_without_validations_is_refused(tmp_path: Path) -> None:
    """Nothing would ever be judged."""
    model = nn.Linear(2, 1)
    with pytest.raises(OptionError) as caught:
        Runner(
            model=model,
            work_dir=tmp_path / "run",
            train_dataloader=[torch.ones(1, 2)],
            train_cfg={"max_epochs": 1},
            train_step=train_step,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            custom_hooks=[{"type": "EarlyStoppingHook", "monitor": "loss"}],
            bus=Bus(),
            device="cpu",
        )
    assert str(caught.value) == (
        "EarlyStoppingHook(monitor='loss') needs validations: give the Runner val_dataloader and val_evaluator."
    )

"""ParamSchedulerHook in real runs: torch's own schedulers, stepped when they should be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import MeanSquaredError, batches, linear, rows, train_step
from torch import nn
from torch.optim import lr_scheduler

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import load_checkpoint
from eventrunner.errors import OptionError
from eventrunner.hook import Hook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper
from eventrunner.training.schedule import Schedule

LOG = {"checkpoint": None, "logger": {"interval": 1}}


class Given:
    """Reports one of the *scores* after the other."""

    def __init__(self, *scores: float | dict[str, float]) -> None:
        self.scores = list(scores)

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        pass

    def compute(self) -> Any:
        return self.scores.pop(0)

    def reset(self) -> None:
        pass


@pytest.fixture
def scheduled(make_runner: MakeRunner, tmp_path: Path) -> Callable[..., list[float]]:
    """``scheduled(build, **changes)``: the learning rate of each iteration of a run with what *build* makes."""

    def run(build: Callable[[Any], Any], lr: float = 1.0, **changes: Any) -> list[float]:
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        chosen = {"model": model, "optimizer": optimizer, "param_scheduler": build(optimizer), "default_hooks": LOG}
        make_runner(**{**chosen, **changes}).train()
        return [row["train/lr"] for row in rows(tmp_path / "run") if "train/lr" in row]

    return run


def halved(optimizer: Any) -> Any:
    return lr_scheduler.ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize(
    ("form", "changes", "expected"),
    [
        (lambda s: s, {}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (lambda s: s, {"train_cfg": {"max_iters": 4}}, [1, 0.5, 0.25, 0.125]),
        (lambda s: {"scheduler": s, "by_epoch": False}, {}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        (lambda s: {"scheduler": s, "by_epoch": True}, {}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (lambda s: {"scheduler": s, "by_epoch": True}, {"train_cfg": {"max_iters": 4}}, [1, 1, 1, 1]),
        (lambda s: [s], {}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (lambda s: [{"scheduler": s, "by_epoch": False}], {"epochs": 1}, [1, 0.5]),
    ],
)
def test_a_scheduler_is_stepped_in_its_unit(
    scheduled: Callable[..., list[float]], form: Callable[[Any], Any], changes: dict[str, Any], expected: list[float]
) -> None:
    """By default the training's own; the rate of an iteration is the one that it used."""
    assert scheduled(lambda optimizer: form(halved(optimizer)), **{"epochs": 3, **changes}) == expected


def test_two_schedulers_of_one_optimizer_both_act(scheduled: Callable[..., list[float]]) -> None:
    """One by iterations, one by epochs."""
    assert scheduled(lambda o: [halved(o), {"scheduler": lr_scheduler.ExponentialLR(o, 0.1), "by_epoch": False}]) == (
        pytest.approx([1, 0.1, 0.005, 0.0005])
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.1),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=8),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
        ),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.StepLR(o, 3)]),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    ],
    ids=["MultiStepLR", "OneCycleLR", "WarmRestarts", "SequentialLR", "Chained", "LambdaLR"],
)
def test_torch_schedulers_go_as_they_go_by_themselves(
    scheduled: Callable[..., list[float]], build: Callable[[Any], Any]
) -> None:
    """Beside a plain loop that steps the optimizer and then the schedule."""
    optimizer = torch.optim.SGD(linear().parameters(), lr=1.0)
    schedule, expected = build(optimizer), []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert scheduled(build, train_cfg={"max_iters": 7}) == expected


@pytest.mark.parametrize("monitor", ["loss", "val/loss", None])
def test_a_plateau_scheduler_follows_a_metric(scheduled: Callable[..., list[float]], monitor: str | None) -> None:
    """With or without ``val/``, or the only one there is; it is stepped after each validation and not else."""
    scores = Given(3.0, 2.0, 2.5, 2.5)
    found = scheduled(
        lambda o: {"scheduler": lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0), "monitor": monitor},
        epochs=4,
        val=True,
        val_evaluator={"loss": scores},
    )
    assert found == [1, 1, 1, 1, 1, 1, 0.5, 0.5]


def test_val_on_its_own_steps_nothing(make_runner: MakeRunner) -> None:
    """It is no part of a training."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    evaluator = {"loss": Given(1.0, 2.0, 3.0)}
    options = {"model": model, "optimizer": optimizer, "param_scheduler": plateau, "val_evaluator": evaluator}
    runner = make_runner(val=True, **options)
    for _ in range(3):
        runner.val()
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_metric_that_only_a_validation_shows_to_be_missing_is_an_error(make_runner: MakeRunner) -> None:
    """The message has the names that there are."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plateau = {"scheduler": lr_scheduler.ReduceLROnPlateau(optimizer, mode="max"), "monitor": "f1/micro"}
    scores = Given({"macro": 1.0, "weighted": 2.0})
    options = {"model": model, "optimizer": optimizer, "param_scheduler": plateau, "val_evaluator": {"f1": scores}}
    runner = make_runner(val=True, **options)
    with pytest.raises(OptionError) as caught:
        runner.train()
    assert str(caught.value) == "param_scheduler monitor='f1/micro': the validation gave f1/macro, f1/weighted."


def test_several_optimizers_have_their_own_schedules(make_runner: MakeRunner, tmp_path: Path) -> None:
    """A dict of lists, by the optimizers' names."""

    def both(model: nn.Module, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
        for name in ("w", "b"):
            optim_wrapper[name].update_params(train_step(model, batch)["loss"])
        return {}

    model = linear()
    optimizers = {"w": torch.optim.SGD([model.weight], lr=1.0), "b": torch.optim.SGD([model.bias], lr=1.0)}
    schedules = {
        "w": [halved(optimizers["w"])],
        "b": [{"scheduler": lr_scheduler.ExponentialLR(optimizers["b"], 0.1), "by_epoch": False}],
    }
    options = {"model": model, "optim_wrapper": optimizers, "param_scheduler": schedules, "train_step": both}
    make_runner(**options, default_hooks=LOG).train()
    found = rows(tmp_path / "run")
    assert [row["train/w.lr"] for row in found] == [1, 1, 0.5, 0.5]
    assert [row["train/b.lr"] for row in found] == pytest.approx([1, 0.1, 0.01, 0.001])


def test_without_schedulers_the_rate_stays(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The hook has nothing to do."""
    make_runner(default_hooks=LOG).train()
    assert {row["train/lr"] for row in rows(tmp_path / "run")} == {0.1}


class Overflowing(nn.Module):
    """A model whose first losses are infinite, so that a gradient scaler leaves the first steps out."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.left = steps

    def train_step(self, batch: Any) -> dict[str, Any]:
        self.left -= 1
        return {"loss": self.weight * (1e30 if self.left >= 0 else 1.0)}


@pytest.mark.parametrize("by_epoch", [True, False])
def test_steps_that_the_optimizer_has_left_out_bring_no_warning(make_runner: MakeRunner, by_epoch: bool) -> None:
    """While gradients accumulate over whole epochs, and where a scaler skips the first: warnings are errors here."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = {"scheduler": halved(optimizer), "by_epoch": by_epoch}
    accumulating = OptimWrapper(optimizer, accumulative_counts=6)
    make_runner(model=model, optim_wrapper=accumulating, param_scheduler=schedule, epochs=3).train()

    overflowing = Overflowing(steps=3)
    optimizer = torch.optim.SGD(overflowing.parameters(), lr=1.0)
    schedule = {"scheduler": halved(optimizer), "by_epoch": by_epoch}
    scaled = OptimWrapper(optimizer, dtype="float16", loss_scale=2.0**100)
    changes = {"model": overflowing, "optim_wrapper": scaled, "param_scheduler": schedule, "train_step": None}
    make_runner(**changes, count=1, epochs=5, work_dir="b", bus=Bus()).train()
    assert optimizer.param_groups[0]["lr"] == 0.5**5


def test_a_warning_of_the_scheduler_itself_is_heard(make_runner: MakeRunner) -> None:
    """Only the one about the order of the first steps is known to be wrong."""

    class Grumbling(lr_scheduler.LRScheduler):
        def get_lr(self) -> list[float]:
            if self.last_epoch:
                warnings.warn("grumble", UserWarning, stacklevel=1)
            return [group["lr"] for group in self.optimizer.param_groups]

    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    runner = make_runner(model=model, optimizer=optimizer, param_scheduler=Grumbling(optimizer))
    with pytest.raises(UserWarning, match="grumble"):
        runner.train()


def test_a_save_has_the_state_for_the_next_step(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The scheduler comes before the checkpoint at every site."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    hooks = {"logger": None, "checkpoint": {"interval": 1, "by_epoch": False}}
    schedules = [{"scheduler": halved(optimizer), "by_epoch": False}]
    options = {"model": model, "optimizer": optimizer, "param_scheduler": schedules, "default_hooks": hooks}
    make_runner(**options).train()
    saved = load_checkpoint(tmp_path / "run/iter_1")
    assert saved["param_schedulers"][0]["last_epoch"] == 1
    assert saved["optimizer"]["optimizer"]["param_groups"][0]["lr"] == 0.5


@pytest.mark.parametrize("by_epoch", [True, False])
def test_a_resumed_schedule_goes_on(
    scheduled: Callable[..., list[float]], make_runner: MakeRunner, tmp_path: Path, by_epoch: bool
) -> None:
    """A plateau's counts, too: the rates are those of a run that was never broken off."""

    class Dies(Hook):
        def before_train_iter(self, runner: Runner) -> None:
            if runner.iter == 5:
                raise SystemExit("killed")

    def build(optimizer: Any) -> list[Any]:
        cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=20)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return [{"scheduler": cycle, "by_epoch": by_epoch}, {"scheduler": plateau, "monitor": "mse"}]

    hooks = {"logger": {"interval": 1}}
    options = {"epochs": 4, "val": True, "default_hooks": hooks, "val_evaluator": {"mse": MeanSquaredError()}}
    straight = scheduled(build, **options, work_dir=tmp_path / "run", bus=Bus())
    (tmp_path / "run").rename(tmp_path / "straight")
    with pytest.raises(SystemExit):
        scheduled(build, **options, custom_hooks=[Dies()], bus=Bus())
    assert scheduled(build, **options, resume=True, bus=Bus()) == straight
    assert len(straight) == 8


def test_an_optimizer_is_scheduled_in_a_run_that_is_tested(make_runner: MakeRunner) -> None:
    """A test steps nothing."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    options = {"model": model, "optimizer": optimizer, "param_scheduler": halved(optimizer), "val": True}
    runner = make_runner(**options, test_dataloader=batches(2))
    runner.test()
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("site", ["before_train", "before_train_epoch"])
def test_a_scheduler_that_comes_later_is_stepped_too(make_runner: MakeRunner, site: str) -> None:
    """A hook may put one in when the training has begun."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    runner = make_runner(model=model, optimizer=optimizer)

    @runner.on(site, priority="LOWEST", once=True)
    def put_in(runner: Runner) -> None:
        runner.param_schedulers.append(Schedule(lr_scheduler.ExponentialLR(optimizer, 0.5), by_epoch=False))

    runner.train()
    assert optimizer.param_groups[0]["lr"] == 0.5**runner.iter

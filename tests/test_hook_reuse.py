"""A hook object in one run after another: in each training it begins as in the first, unless that is resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, batches, linear, options, rows, same, val_step, weights

from eventrunner.bus.bus import Bus
from eventrunner.hook import Hook
from eventrunner.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, LoggerHook
from eventrunner.runner import Runner

Make = Callable[..., Runner]


class Given:
    """A metric whose values are given, one per validation."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def update(self, *outputs: Any) -> None:
        """Nothing."""

    def compute(self) -> float:
        return self.values.pop(0)

    def reset(self) -> None:
        """Nothing."""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(name, *hooks)``: a run in a folder of that name, whose metric is *scores* where there are some."""

    def make(name: str, *hooks: Hook, scores: tuple[float, ...] = (), **changes: Any) -> Runner:
        if scores:
            evaluation = {"val_dataloader": batches(1), "val_step": val_step, "val_evaluator": {"mse": Given(*scores)}}
            changes = {"epochs": len(scores), **evaluation, **changes}
        given = {"default_hooks": QUIET, "custom_hooks": hooks, **changes}
        return Runner(work_dir=tmp_path / name, bus=Bus(), **options(**given))

    return make


class Counts(Hook):
    """Counts iterations and adds up losses, as part of the run's state."""

    def __init__(self, count: int = 0) -> None:
        self.count, self.step = count, 1
        self.total = torch.zeros(1)

    def after_train_iter(self, runner: Runner, outputs: Any) -> None:
        self.count += self.step
        self.total += outputs["loss"].detach()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.total = state["count"], state["total"]


def test_a_state_begins_as_in_the_first_run(make: Make) -> None:
    """Tensors that were changed in place too, and with what it had before it was registered."""
    hook = Counts(count=100)
    make("a", hook).train()
    first = copy.deepcopy(hook.state_dict())
    for name in ("b", "c"):
        make(name, hook).train()
        assert same(hook.state_dict(), first)
    assert hook.count == 104


def test_what_is_set_on_a_hook_between_runs_holds(make: Make) -> None:
    """An option at any time, and what is its state after the next Runner was made."""
    hook = Counts()
    make("a", hook).train()
    hook.step = 10
    runner = make("b", hook)
    hook.count = 1000
    runner.train()
    assert hook.count == 1040


def test_runs_that_are_made_together_and_trained_in_turn_begin_afresh(make: Make) -> None:
    """The hook has the last run's state when the next one begins."""
    hook = Counts()
    runners = [make(name, hook) for name in "abc"]
    counts = []
    for runner in runners:
        runner.train()
        counts.append(hook.count)
    assert counts == [4, 4, 4]


def test_a_run_that_goes_on_keeps_the_state(make: Make) -> None:
    """Called again after a stop, and registered again with another priority."""
    hook = Counts()
    runner = make("a", hook)
    with runner.bus.after_train_iter.connected_to(lambda: runner.stop("enough"), runner):
        runner.train()
    assert hook.count == 1
    runner.register_hook(hook, priority="LOW")
    runner.train()
    assert hook.count == 4


def test_a_resumed_run_has_the_checkpoints_state(make: Make) -> None:
    """Whatever the hook object has been through, the state is that of the run which goes on."""
    hook, saving = Counts(), {"default_hooks": {"logger": None}}
    make("a", hook, epochs=1, **saving).train()
    make("b", hook, epochs=4, **saving).train()
    make("a", hook, epochs=2, resume=True, **saving).train()
    assert hook.count == 4


def test_a_runner_that_only_evaluates_leaves_the_state(make: Make) -> None:
    """It may be made for what a training has gathered, which goes on after it."""
    hook, average = Counts(), EMAHook(momentum=0.25)
    runner = make("a", hook, average)
    runner.train()
    averaged = weights(average.ema_model.module)
    nothing = {"train_dataloader": None, "train_cfg": None, "optimizer": None, "train_step": None}
    tester = make("b", hook, average, model=runner.model, scores=(1.0,), **nothing)
    seen: list[Any] = []
    tester.on("before_val_iter")(lambda runner: seen.append(weights(runner.model)))
    tester.val()
    assert same(seen, [averaged])
    assert hook.count == 4


class Late(Counts):
    """Has a state from its first run on."""

    def __init__(self) -> None:
        self.step = 1

    def before_train(self, runner: Runner) -> None:
        self.count, self.total = 0, torch.zeros(1)


def test_a_hook_whose_state_is_made_in_a_run_is_left_to_it(make: Make) -> None:
    """It can't be asked for it before."""
    hook = Late()
    for name in "ab":
        make(name, hook).train()
        assert hook.count == 4


@dataclass(frozen=True)
class Frozen(Hook):
    """Takes no attribute, and is equal to others."""

    counts: Counts

    def after_train_iter(self, runner: Runner, outputs: Any) -> None:
        self.counts.after_train_iter(runner, outputs)

    def state_dict(self) -> dict[str, Any]:
        return self.counts.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts.load_state_dict(state)


def test_a_hook_that_takes_no_attribute_begins_afresh_too(make: Make) -> None:
    """A frozen dataclass, for one."""
    hook = Frozen(Counts())
    for name in "ab":
        make(name, hook).train()
        assert hook.counts.count == 4


def test_a_copy_of_a_used_hook_begins_afresh_too(make: Make) -> None:
    """As one makes one for each fold."""
    hook = Counts()
    make("a", hook).train()
    other = copy.deepcopy(hook)
    make("b", other).train()
    assert (hook.count, other.count) == (4, 4)


class Forgets(Hook):
    """Has something of each run without a state."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def forget_run(self) -> None:
        self.names.clear()

    def before_train(self, runner: Runner) -> None:
        self.names.append(runner.work_dir.name)


def test_a_hook_is_asked_to_forget_the_last_run(make: Make) -> None:
    """Once for each further one, before its first site."""
    hook = Forgets()
    for name in "abc":
        make(name, hook).train()
        assert hook.names == [name]


def test_early_stopping_counts_anew(make: Make) -> None:
    """The second fold's scores aren't compared with the first one's."""
    hook = EarlyStoppingHook("mse", patience=2)
    epochs = []
    for name, scores in (("a", (0.1, 0.2, 0.3, 0.4)), ("b", (5.0, 4.0, 3.0, 2.0)), ("c", (1.0, 2.0, 3.0, 4.0))):
        runner = make(name, hook, scores=scores)
        runner.train()
        epochs.append(runner.epoch)
    assert epochs == [3, 4, 3]


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("key", ["mse", "auto"])
def test_the_best_and_the_kept_are_the_runs_own(make: Make, tmp_path: Path, key: str) -> None:
    """Worse scores have a best of their own, and nothing of the first run is kept instead."""
    hook = CheckpointHook(save_best=key, rule="less", max_keep_ckpts=1)
    for name, scores in (("a", (0.1, 0.2, 0.3)), ("b", (5.0, 4.0, 3.0))):
        make(name, scores=scores, default_hooks={"logger": None, "checkpoint": hook}).train()
    assert saved(tmp_path / "a") == ["best_mse_epoch_1", "epoch_3"]
    assert saved(tmp_path / "b") == ["best_mse_epoch_3", "epoch_3"]


def test_auto_is_the_first_metric_of_each_run(make: Make, tmp_path: Path) -> None:
    """It isn't bound to what the first run's was called."""
    hook = CheckpointHook(save_best="auto", rule="less")
    make("a", scores=(1.0,), default_hooks={"logger": None, "checkpoint": hook}).train()
    evaluator = {"val_evaluator": {"error": Given(1.0)}}
    make("b", scores=(1.0,), default_hooks={"logger": None, "checkpoint": hook}, **evaluator).train()
    assert saved(tmp_path / "b") == ["best_error_epoch_1", "epoch_1"]


def test_the_interval_follows_from_each_run(make: Make, tmp_path: Path) -> None:
    """By epoch in one, by iteration in the next; what was given or set since stays."""
    hook = CheckpointHook()
    make("a", default_hooks={"logger": None, "checkpoint": hook}).train()
    by_iter = {"train_cfg": {"max_iters": 3}, "default_hooks": {"logger": None, "checkpoint": hook}}
    make("b", **by_iter).train()
    assert saved(tmp_path / "b") == ["iter_3"]
    hook.interval = 2
    make("c", **by_iter).train()
    assert saved(tmp_path / "c") == ["iter_2", "iter_3"]
    make("d", epochs=3, default_hooks={"logger": None, "checkpoint": hook}).train()
    assert saved(tmp_path / "d") == ["epoch_2", "epoch_3"]


def test_a_checkpoint_hook_of_runs_that_are_made_together_saves_in_each(make: Make, tmp_path: Path) -> None:
    """What follows from a run does so again when it begins."""
    hook = CheckpointHook(save_best="auto", rule="less", max_keep_ckpts=1)
    given = {"default_hooks": {"logger": None, "checkpoint": hook}}
    runners = [
        make("a", scores=(1.0, 2.0), **given),
        make("b", scores=(5.0, 4.0), train_cfg={"max_iters": 4, "val_interval": 2}, **given),
        make("c", scores=(3.0, 4.0), **given),
    ]
    for runner in runners:
        runner.train()
    assert saved(tmp_path / "a") == ["best_mse_epoch_1", "epoch_2"]
    assert saved(tmp_path / "b") == ["best_mse_iter_4", "iter_4"]
    assert saved(tmp_path / "c") == ["best_mse_epoch_1", "epoch_2"]


def test_an_average_of_the_same_model_begins_anew(make: Make) -> None:
    """A model that was reset for the second fold has no part of the first one's average."""
    hook, model, averages = EMAHook(momentum=0.25), linear(), []
    for name in "ab":
        model.load_state_dict(linear().state_dict())
        make(name, hook, model=model).train()
        averages.append(weights(hook.ema_model.module))
    assert same(*averages)


def test_each_run_is_introduced_and_has_all_its_rows(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first line, and the row of an incomplete interval at the same step."""
    hook = LoggerHook(interval=10)
    for name in "ab":
        make(name, log_level="INFO", default_hooks={"logger": hook, "checkpoint": None}).train()
        introduced, *_ = capsys.readouterr().out.splitlines()
        assert f"event=run work_dir={name} " in introduced
    assert rows(tmp_path / "a") == rows(tmp_path / "b")

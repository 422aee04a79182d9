"""The six hooks that every run has: which they are, in which order they run, and how they are replaced."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import QUIET, batches, train_step
from torch import nn

from eventrunner.bus.priority import get_priority
from eventrunner.errors import HookError, OptionError
from eventrunner.hook import Hook
from eventrunner.hooks import (
    DEFAULT_HOOKS,
    CheckpointHook,
    DistSamplerSeedHook,
    EmptyCacheHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
    RuntimeInfoHook,
)
from eventrunner.registry import HOOKS
from eventrunner.report.history import AGGREGATE_EVERY
from eventrunner.runner import Runner

SIX = [
    (RuntimeInfoHook, 10),
    (IterTimerHook, 50),
    (DistSamplerSeedHook, 50),
    (LoggerHook, 60),
    (ParamSchedulerHook, 70),
    (CheckpointHook, 90),
]


def listed(runner: Runner) -> list[tuple[type[Hook], int]]:
    """The run's hooks with their priorities, in the order in which they run."""
    return [(type(hook), get_priority(hook.priority)) for hook in runner.hooks]


def the(kind: type[Hook], runner: Runner) -> Any:
    """The run's one hook of that class."""
    (found,) = (hook for hook in runner.hooks if isinstance(hook, kind))
    return found


class Saves(Hook):
    """Would lose its state."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class Loads(Hook):
    """Has none to load."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Attribute(Saves):
    """Has something of that name that is no method."""

    load_state_dict: Any = None


@pytest.mark.parametrize(
    ("hook", "there", "missing"),
    [
        (Saves(), "state_dict", "load_state_dict"),
        (Attribute(), "state_dict", "load_state_dict"),
        (Loads(), "load_state_dict", "state_dict"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Hook) else "",
)
def test_half_a_state_is_refused(make_runner: MakeRunner, hook: Hook, there: str, missing: str) -> None:
    """At registration: at a resume it would be too late."""
    runner = make_runner()
    before = str(runner.bus.describe(runner))
    with pytest.raises(HookError) as caught:
        runner.register_hook(hook)
    assert str(caught.value) == (
        f"registering {type(hook).__name__}: it has a {there} and no {missing}, so that its state would be lost in a "
        "resumed run; give it both, or neither."
    )
    assert str(runner.bus.describe(runner)) == before
    assert hook not in runner.hooks


def test_a_run_has_six_hooks_with_their_priorities(make_runner: MakeRunner) -> None:
    """Those of MMEngine, in its order."""
    assert listed(make_runner()) == SIX


@pytest.mark.parametrize("given", [None, {}, copy.deepcopy(dict(DEFAULT_HOOKS))], ids=["none", "empty", "spelt out"])
def test_naming_the_defaults_changes_nothing(make_runner: MakeRunner, given: Any) -> None:
    """The tutorial's own listing of them, too."""
    assert listed(make_runner(default_hooks=given)) == SIX


def test_the_plan_says_who_runs_where(make_runner: MakeRunner) -> None:
    """At each site in order of priority: the text that a run writes into its log."""
    info = make_runner().get_hooks_info()
    sites = {block.split("\n", 1)[0]: block.splitlines()[1:] for block in info.replace("\n  ", "\r  ").split("\n")}
    blocks = {head.split("\r")[0]: [line.split()[:2] for line in head.split("\r")[1:]] for head in sites}
    assert blocks["after_train_iter"] == [
        ["10", "RuntimeInfoHook"],
        ["50", "IterTimerHook"],
        ["60", "LoggerHook"],
        ["70", "ParamSchedulerHook"],
        ["90", "CheckpointHook"],
    ]
    assert blocks["before_train_epoch"] == [
        ["10", "RuntimeInfoHook"],
        ["50", "IterTimerHook"],
        ["50", "DistSamplerSeedHook"],
        ["60", "LoggerHook"],
    ]
    assert blocks["after_val_epoch"] == [
        ["10", "RuntimeInfoHook"],
        ["50", "IterTimerHook"],
        ["60", "LoggerHook"],
        ["70", "ParamSchedulerHook"],
        ["90", "CheckpointHook"],
    ]
    assert "before_optimizer_step" not in blocks
    assert list(blocks) == [name for name in Hook.stages if name in blocks]


def test_the_plan_is_in_the_log_and_not_on_the_terminal(
    make_runner: MakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody reads forty lines before each training."""
    runner = make_runner(log_level="INFO", epochs=1)
    info = runner.get_hooks_info()
    runner.train()
    assert info in (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    assert "runtime_info.py" not in capsys.readouterr().out


def test_options_without_a_type_are_for_the_default_of_that_name(make_runner: MakeRunner) -> None:
    """The others stay as they are, and the caller's dict too."""
    given = {"checkpoint": {"interval": 3, "priority": "LOWEST"}, "logger": {"interval": 7}}
    before = copy.deepcopy(given)
    runner = make_runner(default_hooks=given)
    assert the(CheckpointHook, runner).interval == 3
    assert the(LoggerHook, runner).interval == 7
    assert listed(runner) == [*SIX[:5], (CheckpointHook, 100)]
    assert given == before


def test_none_leaves_a_default_out(make_runner: MakeRunner) -> None:
    """Each of them; the training works without any."""
    for name in DEFAULT_HOOKS:
        kept = make_runner(default_hooks={name: None}).hooks
        assert len(kept) == 5
        assert DEFAULT_HOOKS[name]["type"] not in {type(hook).__name__ for hook in kept}
    runner = make_runner(default_hooks=dict.fromkeys(DEFAULT_HOOKS), epochs=1)
    assert runner.hooks == []
    runner.train()
    assert runner.iter == 2


def test_a_hook_object_takes_the_place_of_a_default(make_runner: MakeRunner) -> None:
    """The very object, with its own priority."""
    mine = CheckpointHook(interval=4)
    runner = make_runner(default_hooks={"checkpoint": mine})
    assert the(CheckpointHook, runner) is mine
    assert listed(runner) == SIX


def test_another_type_takes_the_place_of_a_default(make_runner: MakeRunner) -> None:
    """By its name or as a class."""
    for kind in ("EmptyCacheHook", EmptyCacheHook):
        runner = make_runner(default_hooks={"checkpoint": {"type": kind}})
        assert listed(runner) == [*SIX[:3], (EmptyCacheHook, 50), *SIX[3:5]]


def test_another_name_adds_a_hook(make_runner: MakeRunner) -> None:
    """Equal priorities run in the order of registration: defaults, new names, then custom hooks."""

    class Mine(Hook):
        pass

    runner = make_runner(default_hooks={"cache": {"type": "EmptyCacheHook"}}, custom_hooks=[Mine()])
    assert listed(runner) == [*SIX[:3], (EmptyCacheHook, 50), (Mine, 50), *SIX[3:]]


@pytest.mark.parametrize(
    ("default_hooks", "begin", "end"),
    [
        ({"checkpoints": {"interval": 2}}, "default_hooks['checkpoints']", "; did you mean 'checkpoint'?"),
        ({"mine": {"interval": 2}}, "default_hooks['mine']", "param_scheduler, checkpoint."),
        ({"timer": {"interval": 2}}, "IterTimerHook has no option 'interval'", "; it takes no options."),
        ({"logger": {"interval": 0}}, "LoggerHook(interval=0)", ": give an int of 1 or more."),
    ],
)
def test_what_cannot_be_a_default_is_refused(
    make_runner: MakeRunner, tmp_path: Path, default_hooks: Any, begin: str, end: str
) -> None:
    """By name, and before the run has a folder."""
    with pytest.raises(OptionError) as caught:
        make_runner(default_hooks=default_hooks)
    assert str(caught.value).startswith(begin)
    assert str(caught.value).endswith(end)
    assert not (tmp_path / "run").exists()


def test_a_default_that_is_no_hook_is_refused(make_runner: MakeRunner) -> None:
    """Neither an object of another kind nor a class."""
    for given in (3, CheckpointHook):
        with pytest.raises(HookError, match="a hook is an instance of Hook or a dict"):
            make_runner(default_hooks={"checkpoint": given})


# The tutorial's own hook, as it is written there


@HOOKS.register_module(force=True)
class CheckInvalidLossHook(Hook):
    """Check invalid loss hook.

    This hook will regularly check whether the loss is valid
    during training.

    Args:
        interval (int): Checking interval (every k iterations).
            Defaults to 50.
    """

    def __init__(self, interval=50):
        self.interval = interval

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """All subclasses should override this method, if they need any
        operations after each training iteration.

        Args:
            runner (Runner): The runner of the training process.
            batch_idx (int): The index of the current batch in the train loop.
            data_batch (dict or tuple or list, optional): Data from dataloader.
            outputs (dict, optional): Outputs from model.
        """  # noqa: D205
        if self.every_n_train_iters(runner, self.interval):
            assert torch.isfinite(outputs['loss']),\
                runner.logger.info('loss become infinite or NaN!')  # fmt: skip


def becomes_infinite(at: int) -> Any:
    """A train_step whose loss is infinite from an iteration on, counted from 1."""
    taken = 0

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"loss": train_step(model, batch)["loss"] * (float("inf") if taken >= at else 1.0)}

    return step


@pytest.mark.parametrize(
    ("hook", "priority"),
    [
        (dict(type="CheckInvalidLossHook", interval=3), 50),
        (dict(type="CheckInvalidLossHook", interval=3, priority="ABOVE_NORMAL"), 40),
        (CheckInvalidLossHook(interval=3), 50),
    ],
    ids=["dict", "dict with a priority", "object"],
)
def test_the_tutorials_hook_ends_a_run_whose_loss_is_not_finite(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str], hook: Any, priority: int
) -> None:
    """At the first multiple of its interval, in the log's words; the caller's dict is left as it was."""
    before = copy.deepcopy(hook)
    runner = make_runner(
        custom_hooks=[hook], train_step=becomes_infinite(4), count=5, log_level="INFO", default_hooks=QUIET
    )
    assert (CheckInvalidLossHook, priority) in listed(runner)
    with pytest.raises(AssertionError) as caught:
        runner.train()
    assert runner.iter == 5  # the sixth is under way
    assert 'event="loss become infinite or NaN!"' in capsys.readouterr().out
    (note,) = caught.value.__notes__
    assert note.startswith("raised by receiver CheckInvalidLossHook (")
    assert note.endswith("at 'after_train_iter', epoch 1, iter 5")
    if isinstance(hook, dict):
        assert hook == before


def test_the_tutorials_hook_lets_a_healthy_run_pass(make_runner: MakeRunner) -> None:
    """With its default interval of 50, as in the tutorial's last example: the class says the priority."""

    class Early(CheckInvalidLossHook):
        priority = "ABOVE_NORMAL"

    runner = make_runner(custom_hooks=[Early()], count=60, epochs=1, default_hooks=QUIET)
    assert listed(runner)[1] == (Early, 40)
    runner.train()
    assert runner.iter == 60


@pytest.mark.parametrize("by_epoch", [False, True])
def test_histories_that_nobody_looks_at_are_added_up_all_the_same(make_runner: MakeRunner, by_epoch: bool) -> None:
    """Else a long training without lines would hold each of its values twice."""
    cfg = {"max_epochs": 30} if by_epoch else {"max_iters": 2100}
    runner = make_runner(train_dataloader=batches(70), train_cfg=cfg, default_hooks=QUIET)
    runner.train()
    histories = runner.message_hub.log_scalars
    assert set(histories) == {"train/lr", "train/loss", "train/data_time", "train/time"}
    for history in histories.values():
        assert len(history._pending) <= AGGREGATE_EVERY
        assert len(history) == 2100

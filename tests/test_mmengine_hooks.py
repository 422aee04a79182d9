"""Hooks in the manner of MMEngine's users: only the import lines differ from what they would have there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import QUIET, batches, linear, rows, train_step
from torch.optim.lr_scheduler import ExponentialLR

from eventrunner import HOOKS, Hook, Runner, hooks
from eventrunner.errors import HookError, OptionError
from eventrunner.foreign import PRIVATE
from eventrunner.hooks import (
    CheckpointHook,
    DistSamplerSeedHook,
    EarlyStoppingHook,
    EMAHook,
    EmptyCacheHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
    ProfilerHook,
    RuntimeInfoHook,
    SyncBuffersHook,
)
from eventrunner.registry import Registry
from eventrunner.training.optim import OptimWrapper


@HOOKS.register_module()
class GradientStatisticsHook(Hook):
    """Reads param_groups and gradients at an interval, with MMEngine's helpers and a priority between the named."""

    priority = 55

    def __init__(self, interval: int = 2) -> None:
        self.interval = interval
        self.records: list[dict[str, float]] = []

    def before_train(self, runner) -> None:
        self.max_iters = runner.max_iters
        self.param_groups = runner.optim_wrapper.optimizer.param_groups

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval) and not self.is_last_train_iter(runner):
            return
        norm = sum(p.square().sum() for group in self.param_groups for p in group["params"]).sqrt()
        self.records.append({"iter": runner.iter, "lr": self.param_groups[0]["lr"], "norm": norm.item()})
        runner.message_hub.update_scalar("train/weight_norm", norm)
        runner.logger.info(f"weight norm {norm.item():.3f}")


@HOOKS.register_module()
class StopAtPlateauOfTheLossHook(Hook):
    """Reads smoothed scalars of the message hub, and ends the training by the loop's flag."""

    priority = "LOW"

    def __init__(self, window: int, at_most: float) -> None:
        self.window, self.at_most = window, at_most

    def after_train_epoch(self, runner: Runner) -> None:
        loss = runner.message_hub.get_scalar("train/loss")
        if loss.mean(self.window) < self.at_most:
            runner.message_hub.update_info("stopped_at", runner.epoch + 1)
            runner.train_loop.stop_training = True


class FreezeHook(Hook):
    """Changes the model at an epoch, by the fan-in method and its mode."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.modes: list[str] = []

    def _before_epoch(self, runner, mode: str = "train") -> None:
        self.modes.append(mode)
        if mode == "train" and runner.epoch == self.epoch:
            for parameter in runner.model.parameters():
                parameter.requires_grad_(parameter.dim() == 1)

    def _after_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence | dict | None = None,
        mode: str = "train",
    ) -> None:
        assert isinstance(outputs, dict if mode == "train" else tuple)
        loader = runner.train_dataloader if mode == "train" else runner.val_dataloader
        if self.end_of_epoch(loader, batch_idx):
            self.modes.append(f"{mode} ended")


class CheckLossHook(Hook):
    """Raises on purpose, as the tutorials' invalid-loss hooks do."""

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval):
            assert torch.isfinite(outputs["loss"]), "loss become infinite or NaN!"


class NoisyEMAHook(EMAHook):
    """Overrides a private method of a built-in hook, and calls it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.swaps = 0

    def _swap_ema_parameters(self) -> None:
        self.swaps += 1
        super()._swap_ema_parameters()


class CountingTimerHook(IterTimerHook):
    """Wraps a fan-in method of a built-in hook."""

    count = 0

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train") -> None:
        super()._after_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode=mode)
        self.count += 1


class WarmupParamSchedulerHook(ParamSchedulerHook):
    """Leaves the schedule alone for a while."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter >= 2:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


class SaveMetaHook(Hook):
    """Puts something of its own into the checkpoint and takes it back."""

    def __init__(self) -> None:
        self.seen = 0

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self.seen += len(metrics)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["my_meta"] = {"seen": self.seen}

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.seen = checkpoint["my_meta"]["seen"]


def test_a_hook_with_an_integer_priority_reads_groups_and_weights(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every second iteration and the last, under no_grad, between the timer and the logger."""
    hook = {"type": "GradientStatisticsHook", "interval": 2}
    runner = make_runner(count=5, epochs=1, custom_hooks=[hook], log_level="INFO")
    runner.train()
    ours = next(each for each in runner.hooks if isinstance(each, GradientStatisticsHook))
    assert [record["iter"] for record in ours.records] == [1, 3, 4]
    assert all(record["lr"] == 0.1 for record in ours.records)
    assert runner.message_hub.get_scalar("train/weight_norm").current() == pytest.approx(ours.records[-1]["norm"])
    assert [type(each).__name__ for each in runner.hooks][2:5] == [
        "DistSamplerSeedHook", "GradientStatisticsHook", "LoggerHook",
    ]  # fmt: skip
    assert "weight norm" in capsys.readouterr().out


def test_a_hook_stops_by_the_smoothed_loss(make_runner: MakeRunner) -> None:
    """message_hub.get_scalar(key).mean(window) and train_loop.stop_training, by a priority of the dict's own."""
    hook = {"type": "StopAtPlateauOfTheLossHook", "window": 2, "at_most": 0.05, "priority": "VERY_LOW"}
    runner = make_runner(epochs=50, custom_hooks=[hook])
    runner.train()
    assert 1 < runner.epoch < 50
    assert runner.message_hub.get_info("stopped_at") == runner.epoch
    assert runner.message_hub.get_scalar("train/loss").mean(2) < 0.05
    assert runner.stop_reason == "stopped"


def test_a_hook_freezes_a_part_by_the_fan_in_methods(make_runner: MakeRunner) -> None:
    """One method for three sites, told apart by the mode; from epoch 1 on the frozen weight stays."""
    hook = FreezeHook(epoch=1)
    runner = make_runner(val=True, custom_hooks=[hook])
    at: list[torch.Tensor] = []
    runner.on("after_train_epoch")(lambda runner: at.append(runner.model.weight.detach().clone()))
    runner.train()
    assert hook.modes == ["train", "train ended", "val", "val ended"] * 2
    assert torch.equal(at[0], at[1])


def test_a_hook_that_raises_on_purpose_ends_the_run_with_its_words(make_runner: MakeRunner) -> None:
    """An AssertionError of the hook's own, with a note of where it stands."""

    def step(model: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": train_step(model, batch)["loss"] * (math.inf if runner.iter == 1 else 1)}

    runner = make_runner(train_step=step, custom_hooks=[CheckLossHook()])
    with pytest.raises(AssertionError, match="loss become infinite or NaN!") as caught:
        runner.train()
    assert "receiver CheckLossHook" in caught.value.__notes__[0]
    assert runner.iter == 1


def test_subclasses_of_built_in_hooks_reach_the_methods_that_they_override(make_runner: MakeRunner) -> None:
    """EMAHook's swap, IterTimerHook's fan-in, and ParamSchedulerHook's site, each with super()."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    average, timer = NoisyEMAHook(momentum=0.5), CountingTimerHook()
    runner = make_runner(
        model=model,
        val=True,
        optim_wrapper=OptimWrapper(optimizer),
        param_scheduler={"scheduler": ExponentialLR(optimizer, 0.5), "by_epoch": False},
        default_hooks={"timer": timer, "param_scheduler": WarmupParamSchedulerHook()},
        custom_hooks=[average],
    )
    runner.train()
    assert average.swaps == 4
    assert timer.count == 6
    assert optimizer.param_groups[0]["lr"] == 1e-3 / 4
    assert len(runner.message_hub.get_scalar("train/time")) == 4


def test_a_hook_keeps_something_of_its_own_in_the_checkpoint(make_runner: MakeRunner) -> None:
    """By before_save_checkpoint and after_load_checkpoint, without a state_dict."""
    make_runner(val=True, epochs=2, custom_hooks=[SaveMetaHook()]).train()
    hook = SaveMetaHook()
    resumed = make_runner(val=True, epochs=3, custom_hooks=[hook], resume=True)
    began: list[int] = []
    resumed.on("before_train")(lambda: began.append(hook.seen))
    resumed.train()
    assert began == [1]
    assert hook.seen == 3


def test_none_of_mmengines_helpers_is_missing() -> None:
    """With the signatures that its users call them by."""
    hook = Hook()

    class Counters:
        epoch, iter, max_epochs, max_iters = 4, 9, 5, 10

    assert hook.every_n_epochs(Counters, 5)
    assert hook.every_n_epochs(Counters, n=2, start=5)
    assert hook.every_n_train_iters(Counters, 5)
    assert hook.every_n_inner_iters(3, 2)
    assert hook.end_of_epoch([1, 2], 1)
    assert hook.is_last_train_epoch(Counters)
    assert hook.is_last_train_iter(Counters)
    assert FreezeHook(1).get_triggered_stages() == [
        "before_train_epoch", "after_train_iter", "before_val_epoch", "after_val_iter", "before_test_epoch",
        "after_test_iter",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [{1}, object(), linear(), {1: 2}, print], ids=lambda value: type(value).__name__)
def test_an_info_of_a_hook_fails_no_save(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    """Whatever it is, and whether or not the hook says resumed=False; what isn't saved is said once."""

    class Keeps(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            runner.message_hub.update_info("mine", value)
            runner.message_hub.update_info("last_ckpt", "elsewhere")

    runner = make_runner(epochs=2, custom_hooks=[Keeps()], log_level="WARNING")
    runner.train()
    assert runner.message_hub.get_info("mine") is value
    said = capsys.readouterr().out
    assert said.count("info 'mine' is a ") == 1
    assert "which can't be saved with the run: pass resumed=False" in said
    assert runner.message_hub.get_info("saves")["committed"] == 2
    resumed = make_runner(epochs=3, resume=True)
    resumed.train()
    assert resumed.message_hub.get_info("mine") is None


def test_scalars_of_a_hook_are_logged_whatever_their_keys(make_runner: MakeRunner) -> None:
    """Those of a validation with its metrics, others with the training's; the terminal's lines stay as they are."""

    class Adds(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            runner.message_hub.update_scalars({"mine/share": batch_idx + 0.5, "plain": 1, "step": -1, "epoch": -1})

        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            runner.message_hub.update_scalar("val/share", 0.25)

        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            runner.message_hub.update_scalar("test/share", 0.75)

    hooks = {"logger": {"interval": 1}}
    runner = make_runner(epochs=1, val=True, test_dataloader=batches(1), custom_hooks=[Adds()], default_hooks=hooks)
    told: list[set[str]] = []
    runner.on("on_log")(lambda scalars: told.append(set(scalars)))
    runner.train()
    runner.test()
    first, second, val, test = rows(Path(runner.work_dir))
    assert (first["mine/share"], second["mine/share"], second["plain"]) == (0.5, 1.5, 1.0)
    assert [row["step"] for row in (first, second, val, test)] == [1, 2, 2, 2]
    assert val.keys() == {"step", "epoch", "val/mse", "val/share"}
    assert test.keys() == {"step", "epoch", "test/mse", "test/share"}
    assert (val["val/share"], test["test/share"]) == (0.25, 0.75)
    assert "mine/share" in told[0]


BUILT_IN = {
    "runtime_info": RuntimeInfoHook,
    "timer": IterTimerHook,
    "sampler_seed": DistSamplerSeedHook,
    "logger": LoggerHook,
    "param_scheduler": ParamSchedulerHook,
    "checkpoint": CheckpointHook,
    "ema": EMAHook,
    "empty": EmptyCacheHook,
    "buffers": SyncBuffersHook,
    "profiler": ProfilerHook,
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_subclass_of_a_built_in_hook_may_leave_out_its_init(make_runner: MakeRunner, name: str) -> None:
    """It has what that sets without arguments, besides its own, and does what the hook does."""

    def init(self: Any, factor: float) -> None:
        self.factor = factor

    hook = type(f"My{name}", (BUILT_IN[name],), {"__init__": init})(0.5)
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = {"scheduler": ExponentialLR(optimizer, 0.5), "by_epoch": False}
    hooks = {"logger": None, name: hook}
    runner = make_runner(model=model, optimizer=optimizer, param_scheduler=schedule, val=True, default_hooks=hooks)
    runner.train()
    assert hook.factor == 0.5
    assert optimizer.param_groups[0]["lr"] == 1 / 16
    assert len(runner.message_hub.get_scalar("train/time")) == 4
    assert (Path(runner.work_dir) / "epoch_2").is_dir()


def test_what_a_subclass_sets_itself_stays(make_runner: MakeRunner) -> None:
    """Only what it leaves out is filled in."""

    class Often(CheckpointHook):
        def __init__(self) -> None:
            self.interval, self.by_epoch, self.save_last = 1, False, False

    runner = make_runner(epochs=1, default_hooks={"logger": None, "checkpoint": Often()})
    runner.train()
    assert sorted(path.name for path in Path(runner.work_dir).glob("*_*") if path.is_dir()) == ["iter_1", "iter_2"]


@pytest.mark.parametrize(
    ("built_in", "name"),
    [(getattr(hooks, hook), name) for hook, names in PRIVATE.items() for name in names],
)
def test_overriding_what_nothing_calls_is_refused(make_runner: MakeRunner, built_in: type[Hook], name: str) -> None:
    """At registration, with its name and what there is here instead; nothing of the hook stays connected."""

    def init(self: Any) -> None:
        pass

    def overridden(self: Any, *args: Any) -> Any:
        return getattr(super(kind, self), name)(*args)

    kind: Any = type("Mine", (built_in,), {"__init__": init, name: overridden})
    hook = kind.__new__(kind)
    vars(hook).update(vars(built_in("mse") if built_in is EarlyStoppingHook else built_in()))
    runner = make_runner(val=True)
    before = len(runner.hooks)
    with pytest.raises(HookError) as caught:
        runner.register_hook(hook)
    said = str(caught.value)
    assert said.startswith(f"hook Mine overrides {built_in.__name__}.{name} (")
    assert "which nothing calls: that is MMEngine's name; here " in said
    assert len(runner.hooks) == before


def test_a_method_that_the_hook_itself_calls_is_its_own(make_runner: MakeRunner) -> None:
    """Whatever MMEngine calls its own."""
    called: list[int] = []

    class Saves(CheckpointHook):
        def _save_checkpoint(self, runner) -> None:
            called.append(runner.iter)

        def after_train_epoch(self, runner) -> None:
            super().after_train_epoch(runner)
            self._save_checkpoint(runner)

    make_runner(epochs=1, default_hooks={"logger": None, "checkpoint": Saves()}).train()
    assert called == [2]


def test_a_subclass_of_the_cache_hook_reaches_its_own_method(make_runner: MakeRunner) -> None:
    """By the fan-in name that MMEngine's has, whatever the options are."""
    modes: list[str] = []

    class Mine(EmptyCacheHook):
        def _after_epoch(self, runner, mode="train") -> None:
            modes.append(mode)

    make_runner(epochs=1, val=True, default_hooks=QUIET, custom_hooks=[Mine(after_epoch=True)]).train()
    assert modes == ["train", "val"]


def test_a_hook_named_like_a_built_in_one_registers_in_a_registry_of_its_own(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And dicts find it; the built-in one is left as it was."""
    monkeypatch.setattr(HOOKS, "_adopted", [])
    own = Registry("hook", parent=HOOKS)

    @own.register_module(name="EMAHook")
    class MyEMAHook(EMAHook):
        """With another default."""

        def __init__(self, momentum: float = 0.5) -> None:
            super().__init__(momentum=momentum)

    runner = make_runner(epochs=1, default_hooks=QUIET, custom_hooks=[{"type": "EMAHook", "momentum": 0.25}])
    assert [type(hook) for hook in runner.hooks if isinstance(hook, EMAHook)] == [MyEMAHook]
    runner.train()
    with pytest.raises(OptionError, match=r"or register it in a Registry\('hook', parent=…\) of your own"):
        HOOKS.register_module(name="EMAHook", module=MyEMAHook)

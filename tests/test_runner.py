"""Runner as its users meet it: training that is right without a hook, stops, failures, names, and what is freed."""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import os
import re
import resource
import signal
import subprocess
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import QUIET, MeanSquaredError, batches, forked, linear, options, same, train_step, val_step, weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import eventrunner
from eventrunner import on
from eventrunner.bus.bus import Bus, default_bus
from eventrunner.bus.priority import Priority
from eventrunner.bus.signature import short_path
from eventrunner.checkpoint import find_newest, load_checkpoint
from eventrunner.errors import EventRunnerError, HookError, OptionError, UnknownSiteError
from eventrunner.hook import Hook
from eventrunner.hooks import CheckpointHook, EarlyStoppingHook, LoggerHook
from eventrunner.registry import HOOKS
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper

NO_HOOKS = dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"))


# Training without a hook


def by_hand(
    epochs: int, count: int, accumulate: int = 1, clip: float | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights after a loop as one writes it by hand."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data, done, total = batches(count), 0, epochs * count
    for _ in range(epochs):
        for batch in data:
            size = min(accumulate, total - done // accumulate * accumulate)
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = train_step(model, batch)["loss"]
            (loss if size == 1 else loss / size).backward()
            done += 1
            if done % accumulate == 0 or done == total:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"accumulate": 2},
        {"accumulate": 4},
        {"clip": 0.05},
        {"dtype": torch.bfloat16},
        {"accumulate": 3, "clip": 0.05, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_without_a_hook_the_weights_are_those_of_a_loop_by_hand(
    make_runner: MakeRunner, extras: dict[str, Any], by_epoch: bool
) -> None:
    """To the bit: with accumulation whose last group is incomplete, with clipping, with autocast, and with all."""
    model = linear()
    wrapper = OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        accumulative_counts=extras.get("accumulate", 1),
        clip_grad={"max_norm": extras["clip"]} if "clip" in extras else None,
        dtype=extras.get("dtype"),
    )
    cfg = {"max_epochs": 2} if by_epoch else {"max_iters": 10}
    runner = make_runner(model=model, count=5, train_cfg=cfg, optim_wrapper=wrapper, default_hooks=NO_HOOKS)
    assert runner.hooks == []
    assert runner.train() is model
    assert same(weights(model), by_hand(2, 5, **extras))


def test_the_default_hooks_change_no_weight(make_runner: MakeRunner) -> None:
    """With all six of them, the weights are those of the loop by hand too."""
    runner = make_runner(count=5)
    assert len(runner.hooks) == 6
    assert same(weights(runner.train()), by_hand(2, 5))


def test_gradients_left_from_before_are_no_part_of_the_first_step(make_runner: MakeRunner) -> None:
    """A backward of the caller's own before train() leaves gradients that the loop forgets."""
    model = linear()
    model(torch.ones(1, 2)).sum().backward()
    assert same(weights(make_runner(model=model, count=5, default_hooks=NO_HOOKS).train()), by_hand(2, 5))


class Pair(nn.Module):
    """Two halves, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(3), linear(4)


def test_several_optimizers_are_stepped_by_a_train_step_that_takes_them(make_runner: MakeRunner) -> None:
    """Each half follows its own loss, at its own rate, as by hand."""

    def step(model: Pair, batch: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        losses = {name: train_step(getattr(model, name), batch)["loss"] for name in ("first", "second")}
        for name, loss in losses.items():
            optim_wrapper[name].update_params(loss)
        return losses

    model = Pair()
    optimizers = {
        "first": torch.optim.SGD(model.first.parameters(), lr=0.1),
        "second": OptimWrapper(torch.optim.SGD(model.second.parameters(), lr=0.2), accumulative_counts=2),
    }
    runner = make_runner(model=model, train_step=step, optim_wrapper=optimizers, default_hooks=QUIET)
    steps: list[int] = []
    runner.on("after_optimizer_step")(lambda runner: steps.append(runner.iter))
    runner.train()

    twin = Pair()
    first = torch.optim.SGD(twin.first.parameters(), lr=0.1)
    second = torch.optim.SGD(twin.second.parameters(), lr=0.2)
    for done, batch in enumerate(batches(2) * 2, 1):
        train_step(twin.first, batch)["loss"].backward()
        first.step()
        first.zero_grad()
        (train_step(twin.second, batch)["loss"] / 2).backward()
        if done % 2 == 0:
            second.step()
            second.zero_grad()
    assert same(weights(model), weights(twin))
    assert steps == [0, 1, 1, 2, 3, 3]
    assert runner.message_hub.get_scalar("train/second.lr").current() == 0.2


def test_a_step_that_updates_twice_a_batch_has_no_last_group(make_runner: MakeRunner) -> None:
    """Nobody knows how many losses there will be, so groups of two are groups of two to the end."""

    def step(model: nn.Module, batch: Any, optim_wrapper: OptimWrapper) -> None:
        for _ in range(2):
            optim_wrapper.update_params(train_step(model, batch)["loss"])

    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    runner = make_runner(model=model, count=3, epochs=1, train_step=step, optim_wrapper=wrapper, default_hooks=QUIET)
    steps: list[int] = []
    runner.on("before_optimizer_step")(lambda runner: steps.append(wrapper.inner_count))
    runner.train()
    assert steps == [2, 4, 6]


class OwnSteps(nn.Module):
    """Has the two steps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        return train_step(self.layer, batch)

    def val_step(self, batch: Any) -> Any:
        return val_step(self.layer, batch)


class MMEngineLike(OwnSteps):
    """Updates itself, as MMEngine's BaseModel does."""

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:  # type: ignore[override]
        losses = super().train_step(data)
        optim_wrapper.update_params(losses["loss"])
        return losses


@pytest.mark.parametrize("kind", [OwnSteps, MMEngineLike])
def test_a_model_may_have_its_own_steps(make_runner: MakeRunner, kind: type[OwnSteps]) -> None:
    """train_step(batch) and val_step(batch), or a train_step(data, optim_wrapper) that updates the model itself."""
    model = kind()
    runner = make_runner(
        model=model,
        count=5,
        train_step=None,
        val_dataloader=batches(1),
        val_evaluator={"mse": MeanSquaredError()},
        default_hooks=QUIET,
    )
    runner.train()
    assert same(weights(model.layer), by_hand(2, 5))
    assert runner.message_hub.get_scalar("val/mse").current() >= 0


def test_a_step_that_updates_the_model_itself_may_return_nothing(make_runner: MakeRunner) -> None:
    """Or a dict of what is to be logged; anything else is an error that says so."""

    def make(outputs: Any) -> Runner:
        work_dir = f"run_{type(outputs).__name__}"
        return make_runner(train_step=lambda model, batch, optim_wrapper: outputs, work_dir=work_dir)

    for fine in (None, {"reward": 1.0}):
        make(fine).train()
    with pytest.raises(OptionError) as caught:
        make(torch.ones(())).train()
    assert str(caught.value) == (
        "train_step returned Tensor; one that takes optim_wrapper must return a dict of what is to be logged, or "
        "nothing."
    )


@pytest.mark.parametrize("outputs", ["loss", None, [1.0], {"los": 1.0}, torch.ones(())], ids=repr)
def test_a_step_that_returns_no_loss_is_told_what_to_return(make_runner: MakeRunner, outputs: Any) -> None:
    """A string, nothing, a list, a dict without it, or the bare tensor."""
    found = "a dict with 'los'" if isinstance(outputs, dict) else type(outputs).__name__
    runner = make_runner(train_step=lambda model, batch: outputs)
    with pytest.raises(OptionError) as caught:
        runner.train()
    assert str(caught.value) == f"train_step returned {found}; it must return a dict with 'loss', a scalar tensor."


def test_the_optimizer_passes_no_site_once_the_training_is_over(make_runner: MakeRunner) -> None:
    """The caller goes on with the wrapper, and nobody hears of it; after a failure neither."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner = make_runner(model=model, optim_wrapper=wrapper, default_hooks=QUIET)
    steps: list[int] = []
    runner.on("before_optimizer_step")(lambda runner: steps.append(runner.iter))
    fail_at(runner, "after_train_epoch", ZeroDivisionError(), once=True)
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError):
            runner.train()
        assert (wrapper.before_step, wrapper.after_step) == (None, None)
        wrapper.update_params(train_step(model, batches(1)[0])["loss"])
    assert steps == [0, 1, 2, 3]


# Modes and devices


class Modes(nn.Module):
    """Notes the mode of its parts at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.frozen = linear(), nn.Dropout(0.5)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, self.frozen.training))
        return self.layer(x)


def test_each_epoch_trains_in_train_mode_and_a_frozen_part_stays_frozen_through_validation(
    make_runner: MakeRunner,
) -> None:
    """model.train() comes before before_train_epoch, where parts are frozen; a validation puts all back as it was."""
    model = Modes()
    model.eval()
    runner = make_runner(model=model, train_cfg={"max_iters": 4, "val_interval": 2}, val=True, default_hooks=QUIET)
    runner.on("before_train_epoch")(lambda runner: runner.model.frozen.eval())
    runner.train()
    train, val = (True, False), (False, False)
    assert model.seen == [train, train, val, train, train, val]


def test_an_evaluation_that_fails_puts_the_modes_back(make_runner: MakeRunner) -> None:
    """The model is in train mode after a val_step that raised."""
    runner = make_runner(val=True, val_step=failing, default_hooks=QUIET)
    with pytest.raises(ZeroDivisionError):
        runner.val()
    assert runner.model.training


def failing(model: nn.Module, batch: Any) -> Any:
    """A step that fails."""
    raise ZeroDivisionError("on purpose")


def test_an_evaluation_has_no_gradients_and_autocasts_as_training_does(make_runner: MakeRunner) -> None:
    """val_step runs under no_grad, and in bfloat16 where the optimizer's wrapper says so."""
    seen: list[tuple[bool, torch.dtype]] = []

    def step(model: nn.Module, batch: Any) -> Any:
        output = model(batch[0])
        seen.append((output.requires_grad, output.dtype))
        return output.float(), batch[1]

    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), dtype="bfloat16")
    make_runner(model=model, val=True, val_step=step, optim_wrapper=wrapper, default_hooks=QUIET).val()
    assert seen == [(False, torch.bfloat16)]


def test_batches_go_to_the_device(make_runner: MakeRunner) -> None:
    """On the meta device, which every machine has: the step sees the batch there, containers and all."""
    seen: set[str] = set()

    def step(model: nn.Module, batch: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        seen.update((batch[0].device.type, batch[1]["y"].device.type))
        return {}

    model = nn.Linear(2, 1, device="meta")  # moving there makes other parameters, which no optimizer would have
    loader = [(torch.ones(1, 2), {"y": torch.ones(1, 1)})]
    make_runner(model=model, device="meta", train_dataloader=loader, train_step=step, default_hooks=NO_HOOKS).train()
    assert seen == {"meta"}


@pytest.mark.parametrize("compiled", [{"backend": "eager"}, {"backend": "eager", "dynamic": False}])
def test_compile_compiles_in_place(make_runner: MakeRunner, compiled: dict[str, Any]) -> None:
    """The weights are those of the loop by hand, under the names that they have without compiling."""
    runner = make_runner(count=5, compile=compiled, default_hooks=NO_HOOKS)
    assert runner.model._compiled_call_impl is not None
    assert same(weights(runner.train()), by_hand(2, 5))


def test_the_loader_is_read_anew_after_before_train_epoch(make_runner: MakeRunner) -> None:
    """A receiver there replaces it for the epoch that begins."""
    runner = make_runner(default_hooks=QUIET)
    other = batches(3)

    @runner.on("before_train_epoch", when=lambda runner: runner.epoch == 1)
    def replace(runner: Runner) -> None:
        runner.train_loop.dataloader = other

    taken: list[Any] = []
    runner.on("before_train_iter")(lambda data_batch: taken.append(data_batch))
    runner.train()
    assert len(taken) == 5
    assert taken[2:] == other
    assert runner.train_dataloader is runner.train_loop.dataloader is other


# The names that hooks read


def test_the_names_that_hooks_read_are_all_there(make_runner: MakeRunner) -> None:
    """Those of MMEngine's Runner that its users' hooks use, each with what it should be."""
    marker = object()
    loaders = {f"{mode}_dataloader": batches(2) for mode in ("train", "val", "test")}
    runner = make_runner(val=True, **loaders, cfg=marker, experiment_name="mine", epochs=3)
    named = {name: getattr(runner, name) for name in (
        "epoch", "iter", "max_epochs", "max_iters", "rank", "world_size", "distributed", "experiment_name", "seed",
        "deterministic", "param_schedulers", "cfg",
    )}  # fmt: skip
    assert named == {
        "epoch": 0, "iter": 0, "max_epochs": 3, "max_iters": 6, "rank": 0, "world_size": 1, "distributed": False,
        "experiment_name": "mine", "seed": 1, "deterministic": False, "param_schedulers": [], "cfg": marker,
    }  # fmt: skip
    assert isinstance(runner.model, nn.Linear)
    assert isinstance(runner.optim_wrapper, OptimWrapper)
    assert (runner.train_loop.epoch, runner.train_loop.iter) == (0, 0)
    for mode in ("train", "val", "test"):
        assert getattr(runner, f"{mode}_dataloader") is loaders[f"{mode}_dataloader"]
        assert getattr(runner, f"{mode}_loop").dataloader is loaders[f"{mode}_dataloader"]
    assert runner.work_dir == runner.log_dir == runner.checkpoint_dir == Path.cwd() / "run"
    assert re.fullmatch(r"\d{8}_\d{6}", runner.timestamp)
    assert runner.message_hub.log_scalars == {}
    assert callable(runner.logger.info)
    assert [type(hook).__name__ for hook in runner.hooks] == [
        "RuntimeInfoHook", "IterTimerHook", "DistSamplerSeedHook", "LoggerHook", "ParamSchedulerHook", "CheckpointHook",
    ]  # fmt: skip


def test_a_run_that_only_evaluates_has_the_names_too(bus: Bus) -> None:
    """Where there is no training, what concerns it is None."""
    parts = {key: value for key, value in options(val=True, bus=bus).items() if not key.startswith(("train", "optim"))}
    runner = Runner(**parts)
    for name in ("train_loop", "train_dataloader", "max_epochs", "max_iters", "optim_wrapper", "test_loop"):
        assert getattr(runner, name) is None
    assert list(runner.val()) == ["mse"]
    with pytest.raises(OptionError, match=re.escape("train() needs train_dataloader, train_cfg and an optimizer;")):
        runner.train()
    with pytest.raises(OptionError, match=re.escape("test() needs test_dataloader and test_evaluator;")):
        runner.test()


def test_val_without_its_parts_says_what_it_needs(make_runner: MakeRunner) -> None:
    """val() of a run that only trains."""
    with pytest.raises(OptionError, match=re.escape("val() needs val_dataloader and val_evaluator;")):
        make_runner().val()


def test_max_iters_is_unknown_where_the_loader_has_no_length(make_runner: MakeRunner) -> None:
    """A plain iterable trains by epoch all the same, every batch of it."""

    class Stream:
        def __iter__(self) -> Any:
            return iter(batches(3))

    runner = make_runner(train_dataloader=Stream())
    assert runner.max_iters is None
    runner.train()
    assert (runner.epoch, runner.iter) == (2, 6)


def test_a_loader_without_batches_is_an_error(make_runner: MakeRunner) -> None:
    """By epoch and by iteration, which would otherwise pass over it for ever."""
    for unit in ("max_epochs", "max_iters"):
        runner = make_runner(train_dataloader=[], train_cfg={unit: 1}, work_dir=unit)
        with pytest.raises(OptionError, match=r"^the train_dataloader gave no batch; check its dataset, batch_size"):
            runner.train()


@pytest.mark.parametrize("mode", ["val", "test"])
@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(torch.zeros(0, 2)), 2)], ids=["list", "DataLoader"])
def test_an_evaluation_of_no_batch_is_refused_when_the_runner_is_made(
    make_runner: MakeRunner, mode: str, loader: Any
) -> None:
    """Its metrics would be those of nothing, and the best so far."""
    given = {f"{mode}_dataloader": loader, f"{mode}_evaluator": {"mse": MeanSquaredError()}, "val_step": val_step}
    with pytest.raises(OptionError, match=rf"^the {mode}_dataloader gave no batch; check its dataset, batch_size and"):
        make_runner(**given)


@pytest.mark.parametrize("mode", ["val", "test"])
def test_an_evaluation_that_turns_out_to_have_no_batch_is_an_error(make_runner: MakeRunner, mode: str) -> None:
    """A loader without a length shows it when it is passed over; no metric is computed, and every mode is put back."""

    class Nothing:
        def __iter__(self) -> Any:
            return iter(())

    metric = MeanSquaredError()
    given = {f"{mode}_dataloader": Nothing(), f"{mode}_evaluator": {"mse": metric}, "val_step": val_step}
    runner = make_runner(**given)
    seen: list[Any] = []
    runner.on(f"after_{mode}_epoch")(lambda runner: seen.append(runner))
    with pytest.raises(OptionError, match=rf"^the {mode}_dataloader gave no batch"):
        getattr(runner, mode)()
    assert seen == []
    assert runner.model.training


# Stopping


STOPS_AFTER = {
    **dict.fromkeys(("before_run", "before_train", "before_train_epoch"), 0),
    **dict.fromkeys(("before_train_iter", "before_optimizer_step", "after_optimizer_step", "after_train_iter"), 1),
    **dict.fromkeys(("on_log",), 1),
    **dict.fromkeys(("before_val", "before_val_epoch", "before_val_iter", "after_val_iter"), 3),
    **dict.fromkeys(("after_val_epoch", "after_val", "before_save_checkpoint", "after_commit_checkpoint"), 3),
}
"""The iterations done when a stop that was asked for at the first passing of a site has ended the training."""


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("site", [*STOPS_AFTER, "after_train_epoch"])
@pytest.mark.slow
def test_a_stop_from_any_site_ends_the_training_and_a_second_train_goes_on(
    make_runner: MakeRunner, site: str, by_epoch: bool
) -> None:
    """The run stops short of its end, says why, and train() again ends as if it had never stopped."""
    cfg = {"max_epochs": 3} if by_epoch else {"max_iters": 9, "val_interval": 3}
    loader = DataLoader(TensorDataset(*map(torch.cat, zip(*batches(3), strict=True))), 2, shuffle=True)
    hooks = {"logger": {"interval": 1}, "checkpoint": {"mode": "sync"}}  # else a commit comes at any later iteration

    def make(**changes: Any) -> Runner:
        return make_runner(
            model=nn.Sequential(linear(), nn.Dropout(0.5)), val=True, train_dataloader=loader, train_cfg=cfg, **changes
        )

    whole = make(work_dir="whole", default_hooks=hooks).train()
    runner = make(default_hooks=hooks)
    runner.on(site, once=True)(lambda runner: runner.stop("because"))
    runner.train()
    assert runner.stop_reason == "because"
    assert re.fullmatch(r"<lambda>, .*test_runner\.py:\d+", runner.session.stop_where)
    assert runner.iter == STOPS_AFTER.get(site, 3 if by_epoch else 9)
    runner.train()
    assert (runner.stop_reason, runner.session.stop_where, runner.iter) == ("completed", "", 9)
    assert same(weights(runner.model), weights(whole))


def test_stop_training_on_the_loop_is_a_stop_too(make_runner: MakeRunner) -> None:
    """As MMEngine's hooks do it; the reason is the plain one."""
    runner = make_runner(count=3, default_hooks=QUIET)

    @runner.on("after_train_iter")
    def stop(runner: Runner) -> None:
        runner.train_loop.stop_training = True

    runner.train()
    assert (runner.iter, runner.stop_reason, runner.session.stop_where) == (1, "stopped", "")


def test_a_metric_that_is_nan_stops_the_run_with_that_reason(make_runner: MakeRunner) -> None:
    """Keras stops at a nan without a word of why; here the reason is 'nan'."""
    runner = make_runner(
        val=True,
        epochs=5,
        train_step=lambda model, batch: {"loss": train_step(model, batch)["loss"] * float("nan")},
        custom_hooks=[EarlyStoppingHook("mse")],
        default_hooks=QUIET,
    )
    runner.train()
    assert (runner.epoch, runner.stop_reason) == (1, "nan")


def test_after_a_failing_step_a_second_train_repeats_that_iteration(make_runner: MakeRunner) -> None:
    """Nothing of the failed iteration counts: the weights are in the end those of a run without a failure."""
    failures = [ZeroDivisionError()]

    def step(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        if runner.iter == 3 and failures:
            raise failures.pop()
        return train_step(model, batch)

    runner = make_runner(count=5, train_step=step, default_hooks=QUIET)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert runner.iter == 3
    assert same(weights(runner.train()), by_hand(2, 5))


@pytest.mark.parametrize("iteration", [3, 4, 5])
def test_after_a_failing_optimizer_site_the_repeated_iteration_counts_once(
    make_runner: MakeRunner, iteration: int
) -> None:
    """Its gradients were there already when it failed; they are forgotten, and groups end where they would have."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner = make_runner(model=model, count=5, optim_wrapper=wrapper, default_hooks=QUIET)
    at = {"once": True, "when": lambda runner: runner.iter == iteration}
    fail_at(runner, "before_optimizer_step", ZeroDivisionError(), **at)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert same(weights(runner.train()), by_hand(2, 5))
    assert wrapper.inner_count == 10


@pytest.mark.parametrize(("site", "after"), [("after_train_iter", (0, 3)), ("after_train_epoch", (0, 5))])
def test_after_a_failing_receiver_a_second_train_goes_on_behind_the_work(
    make_runner: MakeRunner, site: str, after: tuple[int, int]
) -> None:
    """The iteration or epoch was complete when its receiver failed: it isn't trained a second time."""
    runner = make_runner(count=5, default_hooks=QUIET)

    @runner.on(site, once=True, when=lambda runner: runner.iter >= 3)
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert (runner.epoch, runner.iter) == after
    assert same(weights(runner.train()), by_hand(2, 5))
    assert (runner.epoch, runner.iter) == (2, 10)


# Failures


def fail_at(runner: Runner, site: str, error: BaseException, **more: Any) -> None:
    """Connect a receiver that raises."""

    def broken() -> None:
        raise error

    runner.on(site, **more)(broken)


def test_a_receiver_of_on_exception_does_not_make_train_return(make_runner: MakeRunner) -> None:
    """In Ignite a registered exception handler makes run() return as if nothing had happened."""
    runner = make_runner(train_step=failing, default_hooks=QUIET)
    heard: list[BaseException] = []
    runner.on("on_exception")(lambda exception: heard.append(exception))
    with pytest.raises(ZeroDivisionError) as caught:
        runner.train()
    assert heard == [caught.value]


def test_an_interrupt_reaches_the_leaving_sites_and_is_not_swallowed(make_runner: MakeRunner) -> None:
    """At Ctrl-C torchtnt skips them and Ignite swallows it; here a real SIGINT passes all of them and comes out."""
    runner = make_runner(default_hooks=QUIET)
    heard: list[str] = []
    runner.on("before_train_iter")(lambda: signal.raise_signal(signal.SIGINT))
    for site in ("on_exception", "after_train", "after_run"):
        runner.on(site)(lambda site=site: heard.append(site))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["on_exception", "after_train", "after_run"]
    assert runner.stop_reason == "interrupted"


@pytest.mark.parametrize("site", ["on_exception", "after_train", "after_run"])
@pytest.mark.parametrize("second", [ValueError("second"), KeyboardInterrupt("second")], ids=repr)
def test_a_failure_on_the_way_out_masks_nothing(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str], site: str, second: BaseException
) -> None:
    """In Lightning an exit hook that raises hides the first error; here it is reported, and later receivers run."""
    runner = make_runner(train_step=failing, default_hooks=QUIET)
    fail_at(runner, site, second, priority="HIGH")
    heard: list[Any] = []
    runner.on(site)(lambda: heard.append("later receiver"))
    runner.on("on_receiver_error")(lambda site, error: heard.append((site, error)))
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        runner.train()
    assert heard == ["later receiver", (site, second)]
    log = (runner.work_dir / "log.txt").read_text()
    assert "second" in log
    assert "During handling of the above exception" not in log
    assert f"{site}: {second!r}" in capsys.readouterr().out


@pytest.mark.parametrize("site", ["after_train", "after_run"])
def test_a_failure_at_a_leaving_site_fails_the_run_and_the_later_receivers_run(
    make_runner: MakeRunner, site: str
) -> None:
    """A run that trained well fails by its exit receiver: the first error propagates, the second is reported."""
    runner = make_runner(default_hooks=QUIET)
    fail_at(runner, site, ZeroDivisionError("first"))
    fail_at(runner, site, ValueError("second"))
    heard: list[Any] = []
    runner.on(site, priority="LOWEST")(lambda: heard.append("later"))
    runner.on("on_receiver_error")(lambda error: heard.append(str(error)))
    with pytest.raises(ZeroDivisionError, match="first"):
        runner.train()
    assert heard == ["later", "second"]
    assert runner.stop_reason == "exception"
    assert '"ended": "exception after epoch 2, step 4"' in (runner.work_dir / "run.json").read_text()


def test_an_error_in_on_receiver_error_itself_is_logged(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reporter of errors may be broken too; nothing is lost and nothing masked."""
    runner = make_runner(train_step=failing, default_hooks=QUIET)
    fail_at(runner, "after_run", ValueError("second"))
    fail_at(runner, "on_receiver_error", OSError("third"))
    with pytest.raises(ZeroDivisionError):
        runner.train()
    out = capsys.readouterr().out
    assert "second" in out
    assert "third" in out


def test_an_error_has_the_users_frame_and_a_note(make_runner: MakeRunner) -> None:
    """MMEngine drops the frames of a TypeError in a hook; here they are there, with a note of receiver and place."""

    class Careless(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int) -> None:
            len(5)  # type: ignore[arg-type]

    runner = make_runner(custom_hooks=[Careless()], default_hooks=QUIET)
    with pytest.raises(TypeError, match="has no len") as caught:
        runner.train()
    assert caught.traceback[-1].path == Path(__file__)
    assert caught.value.__notes__ == [
        "raised by receiver Careless "
        f"({short_path(__file__)}:{Careless.after_train_iter.__code__.co_firstlineno}) "
        "at 'after_train_iter', epoch 0, iter 0"
    ]


SLIP = """
import torch
from torch import nn
from eventrunner import Runner
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(9, 1))
Runner(
    model=model, train_step=lambda model, batch: {"loss": model(batch).sum()}, device="cpu", log_level="ERROR",
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_dataloader=[torch.ones(2, 4)],
    train_cfg=dict(max_epochs=1),
).train()
"""


@pytest.mark.slow
def test_a_wrong_layer_in_a_script_shows_at_most_four_frames_of_ours(tmp_path: Path) -> None:
    """The traceback of a newcomer's slip is short, and ends in torch's own sentence."""
    script = tmp_path / "slip.py"
    script.write_text(SLIP)
    package = Path(eventrunner.__file__).parent
    command, path = [sys.executable, script], {"PYTHONPATH": str(package.parent), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert 0 < done.stderr.count(f'File "{package}') <= 4
    assert done.stderr.strip().endswith("mat1 and mat2 shapes cannot be multiplied (2x8 and 9x1)")


def test_a_session_within_a_session_is_refused(make_runner: MakeRunner) -> None:
    """val() in a receiver would end the training's session; its loop is what evaluates there."""
    runner = make_runner(val=True, epochs=1, default_hooks=QUIET)
    said: list[str] = []

    @runner.on("after_train_epoch")
    def validate(runner: Runner) -> None:
        for mode in (runner.val, runner.train):
            with pytest.raises(OptionError) as caught:
                mode()
            said.append(str(caught.value))
        assert list(runner.val_loop.run()) == ["mse"]

    runner.train()
    assert said == [
        "val() was called while train() is under way; within it, runner.val_loop.run() evaluates.",
        "train() was called while train() is under way.",
    ]
    assert runner.stop_reason == "completed"


# Checkpoints through the Runner


def test_a_failing_second_write_with_max_keep_1_keeps_the_first(make_runner: MakeRunner) -> None:
    """Ignite and MMEngine delete before they write; here a folder in the way of the second save costs nothing."""
    runner = make_runner(default_hooks={"checkpoint": {"max_keep_ckpts": 1}})
    (runner.work_dir / "epoch_2").mkdir()
    with pytest.raises(EventRunnerError, match="can't save checkpoint 'epoch_2'"):
        runner.train()
    found = find_newest(runner.work_dir)
    assert found.path == runner.work_dir / "epoch_1"
    (runner.work_dir / "epoch_2").rmdir()
    again = make_runner(resume=True)
    assert same(weights(again.train()), by_hand(2, 2))


def wide_run(**more: Any) -> Runner:
    """A run whose checkpoints have some size, one of which is kept."""
    model = nn.utils.skip_init(nn.Linear, 200, 200)
    nn.init.constant_(model.weight, 0.01)
    nn.init.zeros_(model.bias)
    return Runner(
        **options(
            model=model,
            epochs=3,
            work_dir="run",
            bus=Bus(),
            train_dataloader=[torch.ones(2, 200)] * 2,
            train_step=lambda model, batch: {"loss": model(batch).square().mean()},
            default_hooks={"checkpoint": {"max_keep_ckpts": 1}},
            **more,
        )
    )


def train_until_the_disk_is_full() -> None:
    """Train, and from the second epoch on let no file become larger than 50 kB; the exit status is the error's."""
    runner = wide_run()

    @runner.on("before_train_epoch", when=lambda runner: runner.epoch == 1)
    def fill_the_disk() -> None:
        runner.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    try:
        runner.train()
    except OSError as error:
        sys.exit(error.errno)


def test_a_write_that_is_cut_leaves_the_previous_checkpoint_and_it_resumes(tmp_path: Path) -> None:
    """MMEngine's is left without a usable checkpoint; here the process fails, and a second goes on from epoch 1."""
    process = forked(train_until_the_disk_is_full)
    process.join(60)
    assert process.exitcode == errno.EFBIG
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock", "epoch_1", "last_checkpoint", "log.jsonl", "log.txt", "run.json",
    ]  # fmt: skip
    runner = wide_run(resume=True)
    began: list[int] = []
    runner.on("before_train")(lambda runner: began.append(runner.epoch))
    runner.train()
    assert began == [1]
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["epoch_3"]


class Counter(Hook):
    """Counts iterations, and has that as its state."""

    def __init__(self) -> None:
        self.count = 0

    def after_train_iter(self, runner: Runner, batch_idx: int) -> None:
        self.count += 1

    def after_train_epoch(self, runner: Runner) -> None:
        self.count += 100

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class LateCounter(Counter):
    priority = "LOWEST"


def test_the_state_of_hooks_in_a_checkpoint_is_that_after_the_site(make_runner: MakeRunner, tmp_path: Path) -> None:
    """In Hugging Face's older trainers it was that before; here even a hook behind CheckpointHook is complete."""
    hooks = [Counter(), LateCounter()]
    make_runner(default_hooks={"checkpoint": {"by_epoch": False, "interval": 1}}, custom_hooks=hooks).train()
    for step, count in ((1, 1), (2, 2), (3, 103), (4, 104)):
        saved = load_checkpoint(tmp_path / "run" / f"iter_{step}")["hooks"]
        assert (saved["Counter"], saved["LateCounter"]) == ({"count": count}, {"count": count})


def test_a_checkpoint_is_a_copy_of_the_weights_at_its_step(make_runner: MakeRunner, tmp_path: Path) -> None:
    """MMEngine's dict shares its memory with the live tensors; what is on disk is the state at the save."""
    runner = make_runner(default_hooks={"checkpoint": {"by_epoch": False, "interval": 1}})
    at: dict[int, dict[str, Tensor]] = {}
    runner.on("after_train_iter")(lambda runner: at.update({runner.iter + 1: weights(runner.model)}))
    runner.train()
    for step, expected in at.items():
        assert same(load_checkpoint(tmp_path / "run" / f"iter_{step}")["state_dict"], expected)


def test_what_before_save_checkpoint_changes_is_saved(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The dict is the receivers' to change, and the run's own state isn't touched by it."""
    runner = make_runner(epochs=1)

    @runner.on("before_save_checkpoint")
    def add(runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["extra"] = {"note": "mine"}
        checkpoint["state_dict"]["weight"] = torch.zeros(1, 2)

    runner.train()
    saved = load_checkpoint(tmp_path / "run" / "epoch_1")
    assert saved["extra"] == {"note": "mine"}
    assert same(saved["state_dict"]["weight"], torch.zeros(1, 2))
    assert not same(runner.model.weight.detach(), torch.zeros(1, 2))


def test_after_commit_checkpoint_comes_when_the_files_are_complete(make_runner: MakeRunner) -> None:
    """A receiver that reads or uploads the folder finds it whole, under the step that it holds."""
    runner = make_runner()
    read: list[tuple[int, int]] = []

    @runner.on("after_commit_checkpoint")
    def verify(path: Path, step: int) -> None:
        read.append((step, load_checkpoint(path)["meta"]["iter"]))

    runner.train()
    assert read == [(2, 2), (4, 4)]


@pytest.mark.parametrize(
    "site", ["before_train", "before_train_epoch", "after_train_iter", "after_train_epoch", "before_val", "after_val"]
)
def test_what_is_deferred_is_done_when_all_receivers_of_the_site_have_run(make_runner: MakeRunner, site: str) -> None:
    """In order, after receivers of lower priority, and before the run goes on."""
    runner = make_runner(count=1, val=True, train_cfg={"max_epochs": 1, "val_begin": 0}, default_hooks=QUIET)
    done: list[str] = []

    @runner.on(site, priority="HIGHEST")
    def ask(runner: Runner) -> None:
        runner.defer(lambda: done.append("first"))
        runner.defer(lambda: done.append("second"))

    runner.on(site, priority="LOWEST")(lambda: done.append("last receiver"))
    for later in ("before_train_iter", "before_val_iter", "after_train"):
        runner.on(later)(lambda later=later: done.append(later))
    runner.train()
    place = done.index("last receiver")
    assert done[place : place + 3] == ["last receiver", "first", "second"]


# Registering hooks


def test_register_hook_leaves_the_callers_dict(make_runner: MakeRunner) -> None:
    """MMEngine's takes the priority out of it; here the same dict can be used for the next run."""
    given = {"type": "EarlyStoppingHook", "monitor": "mse", "priority": "LOW"}
    runner = make_runner(val=True)
    handle = runner.register_hook(given)
    assert given == {"type": "EarlyStoppingHook", "monitor": "mse", "priority": "LOW"}
    assert handle.hook.priority == "LOW"


@pytest.mark.parametrize(
    ("in_dict", "argument", "expected"),
    [({}, None, 90), ({"priority": 20}, None, 20), ({"priority": 20}, "HIGH", 30), ({}, Priority.LOW, 70)],
)
def test_the_priority_is_the_argument_else_the_dicts_else_the_classs(
    make_runner: MakeRunner, in_dict: dict[str, Any], argument: Any, expected: int
) -> None:
    """Read off the plan, which is what runs."""
    runner = make_runner(default_hooks=NO_HOOKS)
    runner.register_hook({"type": "CheckpointHook", **in_dict}, argument)
    assert {row.priority for row in runner.bus.describe(runner)} == {expected}


def test_hooks_are_in_order_of_priority_and_then_of_registration(make_runner: MakeRunner) -> None:
    """runner.hooks shows the order in which they run; removing one takes it off."""
    runner = make_runner(default_hooks=NO_HOOKS)
    late, first, second = LateCounter(), Counter(), Counter()
    handles = [runner.register_hook(hook) for hook in (late, first, second)]
    assert runner.hooks == [first, second, late]
    handles[1].remove()
    assert runner.hooks == [second, late]
    runner.train()
    assert (late.count, first.count, second.count) == (204, 0, 204)


def test_registering_an_object_again_replaces_its_priority(make_runner: MakeRunner) -> None:
    """MMEngine calls such a hook twice."""
    runner = make_runner(default_hooks=NO_HOOKS)
    hook = Counter()
    runner.register_hook(hook)
    runner.register_hook(hook, 77)
    assert runner.hooks == [hook]
    runner.train()
    assert hook.count == 204
    assert {row.priority for row in runner.bus.describe(runner)} == {77}


def test_default_hooks_are_overridden_removed_and_added_by_name(make_runner: MakeRunner) -> None:
    """Options for one, an object for another, None for a third, and a new name."""
    mine = LoggerHook(interval=3)
    runner = make_runner(
        default_hooks={
            "checkpoint": {"interval": 2},
            "logger": mine,
            "timer": None,
            "extra": {"type": "EmptyCacheHook"},
            "sampler_seed": {"type": "SyncBuffersHook"},
        }
    )
    assert [type(hook).__name__ for hook in runner.hooks] == [
        "RuntimeInfoHook", "SyncBuffersHook", "EmptyCacheHook", "LoggerHook", "ParamSchedulerHook", "CheckpointHook",
    ]  # fmt: skip
    assert mine in runner.hooks
    assert next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook)).interval == 2


def test_a_registered_class_is_built_from_its_dict(make_runner: MakeRunner) -> None:
    """@HOOKS.register_module() makes a name for custom_hooks."""

    class Greeting(Hook):
        def __init__(self, word: str) -> None:
            self.word = word

    HOOKS.register_module(name="GreetingOfTestRunner", module=Greeting)
    runner = make_runner(custom_hooks=[{"type": "GreetingOfTestRunner", "word": "hello", "priority": 5}])
    assert runner.hooks[0].word == "hello"


def test_where_one_hook_is_refused_none_stays(bus: Bus) -> None:
    """A list with a bad third hook leaves nothing connected."""
    with pytest.raises(OptionError):
        Runner(**options(bus=bus, custom_hooks=[Counter(), Counter(), {"type": "CheckpointHook", "intervall": 2}]))
    assert len(bus.describe()) == 0


def test_get_hooks_info_is_the_plan_of_this_run(make_runner: MakeRunner) -> None:
    """By site, with priority and place; it goes to log.txt, and not to the terminal."""
    runner = make_runner(default_hooks={**NO_HOOKS, "checkpoint": {}})
    info = runner.get_hooks_info()
    assert re.search(r"^after_train_epoch\n   90 CheckpointHook  eventrunner/hooks/checkpoint\.py:\d+$", info, re.M)
    runner.train()
    assert "CheckpointHook" in (runner.work_dir / "log.txt").read_text()


def test_call_hook_passes_any_declared_site(make_runner: MakeRunner, bus: Bus) -> None:
    """A custom site of the bus, and one that a hook declares by implementing it."""

    class Own(Hook):
        def after_gradient_surgery(self, runner: Runner, what: str) -> None:
            heard.append(what)

    heard: list[str] = []
    bus.site("before_tea", payload=("cups",))
    runner = make_runner(custom_hooks=[Own()])
    runner.on("before_tea")(lambda cups: heard.append(f"{cups} cups"))
    runner.call_hook("before_tea", cups=2)
    runner.call_hook("after_gradient_surgery", what="cut")
    assert heard == ["2 cups", "cut"]


def test_call_hook_of_an_unknown_site_is_an_error(make_runner: MakeRunner) -> None:
    """MMEngine ignores a misspelt site; here the near one is named."""
    with pytest.raises(UnknownSiteError) as caught:
        make_runner().call_hook("after_train_itr")
    assert str(caught.value) == "call_hook('after_train_itr'): no such site; did you mean 'after_train_iter'?"


def test_watch_puts_modules_of_the_model_on_the_bus(make_runner: MakeRunner) -> None:
    """The sender is the run, so its receivers hear its own modules."""
    runner = make_runner(default_hooks=NO_HOOKS, epochs=1)
    seen: list[tuple[int, ...]] = []
    runner.on("after_forward")(lambda outputs: seen.append(tuple(outputs.shape)))
    with runner.watch(""):
        runner.train()
    assert seen == [(2, 1), (2, 1)]


# Several runs


def test_two_runners_on_one_bus_dont_hear_each_other(make_runner: MakeRunner) -> None:
    """Their hooks and their @runner.on receivers are their own."""
    heard: list[str] = []
    one = make_runner(work_dir="one", epochs=1, custom_hooks=[Counter()], default_hooks=QUIET)
    two = make_runner(work_dir="two", epochs=1, custom_hooks=[Counter()], default_hooks=QUIET)
    assert one.bus is two.bus
    one.on("before_train")(lambda: heard.append("one"))
    two.on("before_train")(lambda: heard.append("two"))
    two.train()
    assert heard == ["two"]
    assert [hook.count for runner in (one, two) for hook in runner.hooks if isinstance(hook, Counter)] == [0, 102]


def test_a_function_on_the_default_bus_hears_every_run_on_it() -> None:
    """@on connects to all runners that were not given a bus of their own."""
    heard: list[str] = []

    @on("before_train")
    def listen(runner: Runner) -> None:
        heard.append(runner.work_dir.name)

    try:
        for name in ("one", "two"):
            Runner(**options(work_dir=name, epochs=1)).train()
        Runner(**options(work_dir="three", epochs=1, bus=Bus())).train()
    finally:
        default_bus.before_train.disconnect(listen)
    assert heard == ["one", "two"]


def test_a_runner_that_is_gone_leaves_nothing_on_the_bus(bus: Bus) -> None:
    """Its hooks and receivers are freed with it, after a run as well as before one."""
    runner = Runner(**options(work_dir="run", bus=bus, val=True, custom_hooks=[Counter()]))
    runner.on("before_train")(lambda runner: None)
    runner.train()
    kept = [weakref.ref(runner), *(weakref.ref(hook) for hook in runner.hooks)]
    del runner
    gc.collect()  # the runner, whereupon the bus lets go of its hooks
    gc.collect()  # the hooks
    assert [reference() for reference in kept] == [None] * len(kept)
    assert len(bus.describe()) == 0


@pytest.mark.slow
def test_runs_that_are_gone_leave_as_many_objects_as_there_were(bus: Bus) -> None:
    """However many there have been: nothing is kept of each of them, on the bus or elsewhere."""

    def is_coverages(each: Any) -> bool:
        """Whether it is one of the methods that coverage.py keeps for each thread that there was."""
        return type(each) is types.MethodType and type(each.__self__).__module__.startswith("coverage.")

    def left_by(first: int, last: int) -> collections.Counter[type]:
        for number in range(first, last):
            runner = Runner(**options(work_dir=f"run{number}", bus=bus, val=True, epochs=1))
            runner.on("before_train")(lambda runner: None)
            runner.train()
        del runner
        gc.collect()
        gc.collect()
        caches = (weakref.ref, types.BuiltinFunctionType)  # of the checks of abstract classes, whoever makes them
        found = [each for each in gc.get_objects() if type(each) not in caches]
        return collections.Counter(type(each) for each in found if not is_coverages(each))

    before = left_by(0, 5)
    more = left_by(5, 10) - before
    assert {kind: count for kind, count in more.items() if count >= 5} == {}


def test_an_emission_that_is_replaced_before_its_first_use_needs_no_collection(bus: Bus) -> None:
    """Of which there is one for each connection that a run begins with."""
    emitters = bus.emitters("run")
    bus.before_run.connect(print)
    gc.collect()
    stand_in = weakref.ref(emitters.before_run)
    gc.disable()
    try:
        bus.before_run.disconnect(print)
        assert stand_in() is None
    finally:
        gc.enable()


def test_train_val_and_test_can_follow_each_other_in_any_number(make_runner: MakeRunner) -> None:
    """Each is a session of its own; nothing of one is in the way of the next."""
    runner = make_runner(val=True, test_dataloader=batches(1))
    order: list[str] = []
    runner.on("before_run")(lambda runner: order.append(runner.mode))
    first = runner.val()
    runner.train()
    assert runner.val()["mse"] < first["mse"]
    assert runner.test() == runner.test()
    runner.train()
    assert order == ["val", "train", "val", "test", "test", "train"]
    assert runner.mode is None


def test_a_validation_by_itself_is_no_part_of_the_training(make_runner: MakeRunner) -> None:
    """val() before train() doesn't stand in for the validation that the training begins with."""
    runner = make_runner(val=True, train_cfg={"max_epochs": 1, "val_begin": 0}, default_hooks=QUIET)
    runner.val()
    at: list[int] = []
    runner.on("before_val")(lambda runner: at.append(runner.epoch))
    runner.train()
    assert at == [0, 1]


def test_the_seed_makes_two_runs_equal_and_is_drawn_where_none_is_given(make_runner: MakeRunner) -> None:
    """Dropout and shuffling follow it; without one, two runs have two."""

    def trained(name: str, **chance: Any) -> Runner:
        loader = DataLoader(TensorDataset(*map(torch.cat, zip(*batches(3), strict=True))), 2, shuffle=True)
        model = nn.Sequential(linear(), nn.Dropout(0.5))
        runner = make_runner(model=model, train_dataloader=loader, work_dir=name, randomness=chance)
        runner.train()
        return runner

    one, two, three, four = trained("a", seed=5), trained("b", seed=5), trained("c"), trained("d", seed=0)
    assert same(weights(one.model), weights(two.model))
    assert not same(weights(one.model), weights(four.model))
    assert (one.seed, four.seed) == (5, 0)
    assert three.seed not in (0, 5)


def test_deterministic_asks_torch_for_it(make_runner: MakeRunner) -> None:
    """randomness=dict(deterministic=True) is torch's own setting."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        assert make_runner(randomness={"seed": 0, "deterministic": True}).deterministic is True
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark is False
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before


def test_a_runner_is_made_without_moving_a_generator_when_it_is_refused(make_runner: MakeRunner) -> None:
    """A refused argument leaves the caller's random numbers as they were."""
    before = torch.get_rng_state()
    with pytest.raises(OptionError):
        make_runner(randomness={"seed": 9}, train_cfg={"max_epoch": 3})
    assert same(torch.get_rng_state(), before)


def test_on_of_a_runner_says_where_it_stands(make_runner: MakeRunner) -> None:
    """A misspelt site names the line of the decorator, not one of ours."""
    runner = make_runner()
    with pytest.raises(
        UnknownSiteError, match=r"^@on\('after_train_epochs'\) in .*test_runner\.py:\d+: no such site; "
    ):
        runner.on("after_train_epochs")


def test_a_hook_is_an_instance_or_a_dict(make_runner: MakeRunner) -> None:
    """Anything else, a class among it, is an error that says so."""
    runner = make_runner()
    for wrong in (CheckpointHook, 3):
        with pytest.raises(HookError, match=r"a hook is an instance of Hook or a dict with its type and options\.$"):
            runner.register_hook(wrong)


@pytest.mark.parametrize("reason", ["completed", "exception", "interrupted", "preempted"])
def test_a_stop_can_not_pass_for_another_ending(make_runner: MakeRunner, reason: str) -> None:
    """These words say how a run ended by itself, and whether its last state may be saved."""
    runner = make_runner()
    with pytest.raises(OptionError) as caught:
        runner.stop(reason)
    assert str(caught.value) == (
        f"stop({reason!r}): completed, exception, interrupted, preempted say how a run ended by itself; give a "
        "reason of your own."
    )
    assert not runner.train_loop.stop_training


def test_an_optimizer_that_is_put_in_during_the_training_is_the_one_that_trains(make_runner: MakeRunner) -> None:
    """From the next iteration on; the log has its rate."""
    model = nn.Linear(2, 1)
    old, new = (OptimWrapper(torch.optim.SGD(model.parameters(), lr=lr)) for lr in (0.1, 0.2))
    runner = make_runner(model=model, optim_wrapper=old)

    @runner.on("after_train_iter")
    def put_in(runner: Runner) -> None:
        runner.optim_wrapper = new

    runner.train()
    assert (old.inner_count, new.inner_count) == (1, runner.iter - 1)
    assert runner.message_hub.get_scalar("train/lr").data[0] == (0.1, *[0.2] * (runner.iter - 1))

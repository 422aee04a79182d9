"""A run that was killed and resumed is the run that wasn't: to the bit of every weight, moment and logged number."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import MakeRunner
from tiny import MeanSquaredError, batches, forked, linear, rows, same, train_step, val_step, weights
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, find_newest, load_checkpoint
from eventrunner.checkpoint.manifest import read_manifest, write_manifest
from eventrunner.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, ResumeError
from eventrunner.hook import Hook
from eventrunner.hooks import EarlyStoppingHook, EMAHook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper


class Draws(Hook):
    """Draws from all global generators where an epoch begins, and counts its calls in its state."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def before_train_epoch(self, runner: Runner) -> None:
        torch.rand(2)
        random.random()
        numpy.random.rand()

    def after_train_iter(self, runner: Runner, batch_idx: int) -> None:
        self.calls.append(torch.rand(()).item() + random.random() + float(numpy.random.rand()))

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls = list(state_dict["calls"])


class Killed(BaseException):
    """Ends a run where a signal would; nothing is saved on the way out."""


def network() -> nn.Module:
    """With a buffer that training changes, and a layer that draws."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))


def make(
    folder: Path, *, by_epoch: bool = True, generator: bool = False, workers: int = 0, accumulate: int = 1, **more: Any
) -> Runner:
    """Three passes of four batches, with everything that has a state; each iteration is logged and saved."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    own = torch.Generator().manual_seed(11) if generator else None
    data = TensorDataset(*map(torch.cat, zip(*batches(4), strict=True)))
    noisy = DataLoader(data, 1, shuffle=True)  # a validation that draws
    schedules = [
        {"scheduler": ExponentialLR(optimizer, 0.99), "by_epoch": False},
        {"scheduler": MultiStepLR(optimizer, [1, 2]), "by_epoch": True},
        {"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": "mse"},
    ]
    options: dict[str, Any] = {
        "model": model,
        "work_dir": folder,
        "train_dataloader": DataLoader(data, 2, shuffle=True, generator=own, num_workers=workers),
        "train_cfg": {"max_epochs": 3} if by_epoch else {"max_iters": 12, "val_interval": 3},
        "train_step": train_step,
        "val_step": val_step,
        "val_dataloader": noisy,
        "val_evaluator": {"mse": MeanSquaredError()},
        "optim_wrapper": OptimWrapper(optimizer, accumulative_counts=accumulate, clip_grad={"max_norm": 1.0}),
        "param_scheduler": schedules,
        "default_hooks": {
            "logger": {"interval": 1},
            "checkpoint": {"by_epoch": False, "interval": 1, "save_best": "mse"},
        },
        "custom_hooks": [EMAHook(momentum=0.1, update_buffers=True), EarlyStoppingHook("mse", patience=9), Draws()],
        "bus": Bus(),
        "device": "cpu",
        "log_level": "ERROR",
        "progress": False,
        "randomness": {"seed": 1},
    }
    return Runner(**{**options, **more})


def final(folder: Path) -> dict[str, Any]:
    """The last checkpoint, without what the clock or the folder says."""
    newest = find_newest(folder).path
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    checkpoint["meta"].pop("time")
    checkpoint["meta"].pop("experiment_name")
    scalars = checkpoint.pop("message_hub")["log_scalars"]
    checkpoint["scalars"] = {key: value for key, value in scalars.items() if not key.endswith("time")}
    return checkpoint


def assert_equal(folder: Path, whole: Path, case: Any) -> None:
    """Everything saved at the end, and every row of the log."""
    ours, theirs = final(folder), final(whole)
    assert {key for key in theirs if not same(ours.get(key), theirs[key])} == set(), case
    assert rows(folder) == rows(whole), case


def killed_after(whole: Path, folder: Path, step: int) -> Path:
    """What is left of a run whose last save was that of iteration *step*, and which went on for a while."""
    shutil.copytree(whole, folder)
    for path in folder.iterdir():
        manifest = path / "MANIFEST.json"
        if manifest.is_file() and json.loads(manifest.read_text())["step"] > step:
            shutil.rmtree(path)
    return folder


VARIANTS = {
    "by epoch": {},
    "by epoch, own generator, accumulating": {"generator": True, "accumulate": 3},
    "by iteration": {"by_epoch": False},
    "by iteration, own generator, accumulating": {"by_epoch": False, "generator": True, "accumulate": 3},
}


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.long] * name.startswith("by iteration,")) for name in VARIANTS]
)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How the runs of a test differ."""
    return VARIANTS[request.param]


@pytest.mark.slow
def test_from_every_iteration_twice_the_resumed_run_is_the_whole_one(tmp_path: Path, variant: dict[str, Any]) -> None:
    """Killed after any save and resumed, killed again three iterations later and resumed again: nothing differs."""
    whole = tmp_path / "whole"
    make(whole, **variant).train()
    for step in range(1, 13):
        folder = killed_after(whole, tmp_path / f"killed_{step}", step)
        second = make(folder, **variant, resume=True)

        @second.on("before_optimizer_step", priority="LOWEST", when=lambda runner, step=step: runner.iter > step + 2)
        def kill() -> None:
            raise Killed

        try:
            second.train()
        except Killed:
            third = make(folder, **variant, resume=True)
            third.train()
            assert third.progress.step == 12
        assert_equal(folder, whole, (variant, step))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.slow
def test_with_worker_processes_it_is_the_same(tmp_path: Path, generator: bool, by_epoch: bool) -> None:
    """Two workers that prefetch; resumed midway in a pass."""
    options = {"generator": generator, "workers": 2, "by_epoch": by_epoch}
    make(tmp_path / "whole", **options).train()
    folder = killed_after(tmp_path / "whole", tmp_path / "killed", 6)
    make(folder, **options, resume=True).train()
    assert_equal(folder, tmp_path / "whole", options)


@pytest.mark.parametrize("epoch", [1, 2])
def test_saves_by_epoch_resume_as_exactly(tmp_path: Path, epoch: int) -> None:
    """At a boundary: saved before the validation that follows, which the resumed run makes up for."""
    hooks = {"logger": {"interval": 1}, "checkpoint": {"save_best": "mse"}}
    make(tmp_path / "whole", default_hooks=hooks, generator=True).train()
    folder = killed_after(tmp_path / "whole", tmp_path / "killed", 4 * epoch)
    resumed = make(folder, default_hooks=hooks, generator=True, resume=True)
    validated: list[int] = []
    resumed.on("before_val")(lambda runner: validated.append(runner.epoch))
    resumed.train()
    assert validated == list(range(epoch, 4))
    assert_equal(folder, tmp_path / "whole", epoch)


def test_the_best_checkpoint_resumes_as_exactly(tmp_path: Path) -> None:
    """A best that was saved on its own after its validation (no regular save at that step) is as good as any."""
    hooks = {"logger": {"interval": 1}, "checkpoint": {"interval": 3, "save_best": "mse", "rule": "greater"}}
    make(tmp_path / "whole", default_hooks=hooks, generator=True).train()
    best = next(path for path in (tmp_path / "whole").iterdir() if path.name.startswith("best_"))
    step = load_checkpoint(best)["meta"]["iter"]
    assert step < 12
    folder = killed_after(tmp_path / "whole", tmp_path / "killed", step)
    resumed = make(folder, default_hooks=hooks, generator=True, resume=True)
    resumed.train()
    assert_equal(folder, tmp_path / "whole", best)


def train_and_be_killed(folder: Path) -> None:
    """Train, and in the eighth iteration vanish without a word."""
    runner = make(folder)
    runner.on("after_train_iter", when=lambda runner: runner.iter == 7)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    runner.train()


def test_a_process_that_is_killed_goes_on_in_another(tmp_path: Path) -> None:
    """With SIGKILL, in mid-iteration: the log of both processes is that of one that was left alone."""
    process = forked(train_and_be_killed, tmp_path / "killed")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    make(tmp_path / "killed", resume=True).train()
    make(tmp_path / "whole").train()
    assert_equal(tmp_path / "killed", tmp_path / "whole", "killed")


# Small runs from here on


def test_a_save_by_a_receiver_resumes_as_exactly(make_runner: MakeRunner, tmp_path: Path) -> None:
    """runner.defer(save_checkpoint) in any receiver, without CheckpointHook's help."""
    whole = make_runner(work_dir="whole", count=3)
    whole.on("after_train_iter", when=lambda runner: runner.iter == 3)(
        lambda runner: runner.defer(lambda: runner.save_checkpoint("by_hand"))
    )
    whole.train()
    resumed = make_runner(count=3, resume="whole/by_hand", work_dir="resumed")
    resumed.train()
    assert same(weights(resumed.model), weights(whole.model))
    assert rows(tmp_path / "resumed") == [row for row in rows(tmp_path / "whole") if row["step"] > 4]


@pytest.mark.parametrize("scheduler", [lambda o: OneCycleLR(o, 0.1, 12), lambda o: StepLR(o, 2)])
def test_torchs_schedulers_are_saved_and_put_back(make_runner: MakeRunner, scheduler: Any) -> None:
    """The rates of the resumed run are those of the whole one."""

    def trained(name: str, epochs: int, **more: Any) -> list[float]:
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = {"scheduler": scheduler(optimizer), "by_epoch": False}
        runner = make_runner(
            model=model, optimizer=optimizer, param_scheduler=schedule, epochs=epochs, work_dir=name, **more
        )
        rates: list[float] = []
        runner.on("before_train_iter")(lambda runner: rates.append(runner.optim_wrapper.get_lr()["lr"][0]))
        runner.train()
        return rates

    whole = trained("whole", 4)
    assert trained("cut", 2) + trained("cut", 4, resume=True) == whole


def test_several_optimizers_and_their_schedules_are_put_back(make_runner: MakeRunner) -> None:
    """By name, each with its own moments."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear(3), linear(4)

    def step(model: Pair, batch: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        losses = {name: train_step(getattr(model, name), batch)["loss"] for name in ("first", "second")}
        for name, loss in losses.items():
            optim_wrapper[name].update_params(loss)
        return losses

    def trained(name: str, epochs: int, **more: Any) -> dict[str, Tensor]:
        model = Pair()
        optimizers = {part: torch.optim.Adam(getattr(model, part).parameters(), lr=0.1) for part in ("first", "second")}
        schedules = {part: [StepLR(optimizer, 1, 0.5)] for part, optimizer in optimizers.items()}
        runner = make_runner(
            model=model, train_step=step, optim_wrapper=optimizers, param_scheduler=schedules, epochs=epochs,
            work_dir=name, **more,
        )  # fmt: skip
        return weights(runner.train())

    whole = trained("whole", 4)
    trained("cut", 2)
    assert same(trained("cut", 4, resume=True), whole)


@pytest.mark.parametrize(
    ("first", "then"), [({"max_epochs": 1}, {"max_epochs": 3}), ({"max_iters": 3}, {"max_iters": 7})]
)
def test_a_run_resumed_with_a_later_end_goes_on_to_it(
    make_runner: MakeRunner, first: dict[str, int], then: dict[str, int]
) -> None:
    """As if the end had been there from the beginning."""
    whole = make_runner(work_dir="whole", count=3, train_cfg=then).train()
    make_runner(count=3, train_cfg=first).train()
    longer = make_runner(count=3, train_cfg=then, resume=True)
    seen: list[int] = []
    longer.on("before_train_iter")(lambda runner: seen.append(runner.epoch))
    longer.train()
    assert same(weights(longer.model), weights(whole))
    assert seen == ([1] * 3 + [2] * 3 if "max_epochs" in then else [0] * 4)


def test_by_iteration_the_epoch_is_one_even_after_a_former_end(make_runner: MakeRunner) -> None:
    """A checkpoint of the end counts an epoch; a training that goes further is in that one again."""
    first = make_runner(train_cfg={"max_iters": 3})
    first.on("after_train")(lambda runner: runner.save_checkpoint("the_end"))
    first.train()
    longer = make_runner(train_cfg={"max_iters": 5}, resume=first.work_dir / "the_end")
    seen: list[int] = []
    longer.on("before_train_iter")(lambda runner: seen.append(runner.epoch))
    longer.train()
    assert (seen, longer.epoch) == ([0, 0], 1)


def test_resume_with_nothing_there_is_a_fresh_start(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the same line of a script serves the first run and those that follow; it says so."""
    runner = make_runner(resume=True, log_level="INFO")
    runner.train()
    assert runner.iter == 4
    assert "nothing to resume in run: a fresh start" in capsys.readouterr().out


def test_resume_of_a_path_goes_on_from_that_one(make_runner: MakeRunner) -> None:
    """An older checkpoint, in the run that it belongs to."""
    first = make_runner(epochs=3)
    first.train()
    again = make_runner(epochs=3, resume=first.work_dir / "epoch_1", work_dir=None)
    began: list[int] = []
    again.on("before_train")(lambda runner: began.append(runner.iter))
    again.train()
    assert again.work_dir == first.work_dir
    assert began == [2]
    assert same(weights(again.model), weights(first.model))


def damage(path: Path) -> None:
    """Change one byte in the middle of a checkpoint's weights, as a bad disk does."""
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(content)


def test_a_damaged_newest_is_passed_over_with_a_warning(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next older one is resumed from, and the result is the same in the end."""
    whole = make_runner(epochs=3)
    whole.train()
    damage(whole.work_dir / "epoch_3")
    again = make_runner(epochs=3, resume=True, log_level="INFO")
    began: list[int] = []
    again.on("before_train")(lambda runner: began.append(runner.epoch))
    again.train()
    out = capsys.readouterr().out
    assert began == [2]
    assert 'level=warning event="checkpoint not used"' in out
    assert "epoch_3/model.safetensors has other bytes than were committed, by their xxh3 digest." in out
    assert same(weights(again.model), weights(whole.model))


def test_a_damaged_one_that_was_named_is_an_error(make_runner: MakeRunner) -> None:
    """Nobody asked for another."""
    runner = make_runner()
    runner.train()
    damage(runner.work_dir / "epoch_2")
    again = make_runner(resume=runner.work_dir / "epoch_2")
    before = weights(again.model)
    with pytest.raises(CorruptCheckpointError, match="has other bytes than were committed"):
        again.train()
    assert same(weights(again.model), before)


@pytest.mark.parametrize("form", ["folder", "safetensors", "pth"])
def test_load_from_takes_the_weights_alone(make_runner: MakeRunner, tmp_path: Path, form: str) -> None:
    """From a checkpoint's folder, its file, or a .pth file; the run begins at 0 with them."""
    from safetensors.torch import save_file

    source = make_runner(work_dir="source")
    source.train()
    path = tmp_path / "source" / "epoch_2"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(source.model.state_dict(), path)
    elif form == "pth":
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": source.model.state_dict()}, path)
    runner = make_runner(load_from=path)
    at: list[Any] = []

    @runner.on("before_train")
    def look(runner: Runner) -> None:
        at.append((runner.iter, weights(runner.model)))

    runner.train()
    assert same(at, [(0, weights(source.model))])
    assert runner.iter == 4


def test_what_after_load_checkpoint_changes_is_what_the_run_takes(make_runner: MakeRunner) -> None:
    """Of load_from and of a resume: a receiver may rename or replace weights first."""

    def zero(runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["bias"] = torch.zeros(1)

    source = make_runner(work_dir="source")
    source.train()
    for options in ({"load_from": "source/epoch_1"}, {"resume": "source/epoch_1"}):
        runner = make_runner(work_dir=next(iter(options)), **options)
        runner.on("after_load_checkpoint")(zero)
        seen: list[float] = []
        runner.on("before_train", once=True)(lambda runner, seen=seen: seen.append(runner.model.bias.item()))
        runner.train()
        assert seen == [0.0]


def test_weights_of_another_dtype_are_cast_by_load_from_and_refused_by_resume(make_runner: MakeRunner) -> None:
    """A half-precision copy is a fine beginning, but not the run that was."""
    make_runner(work_dir="source").train()
    model = linear().double()
    double = {"model": model, "train_dataloader": [(x.double(), y.double()) for x, y in batches(2)]}
    make_runner(**double, load_from="source/epoch_1", work_dir="other").train()
    runner = make_runner(**{**double, "model": linear().double()}, resume="source/epoch_1", work_dir="third")
    with pytest.raises(
        ResumeError, match=r"'bias'|'weight' has dtype torch.float32 in the checkpoint and torch.float64"
    ):
        runner.train()


def test_test_can_resume_too(make_runner: MakeRunner) -> None:
    """A script that only evaluates takes the newest weights by resume=True, or those of a path."""
    trained = make_runner(val=True, test_dataloader=batches(1))
    trained.train()
    expected = trained.test()
    parts = {"train_dataloader": None, "train_cfg": None, "optimizer": None, "test_dataloader": batches(1)}
    for resume in (True, trained.work_dir / "epoch_2"):
        runner = make_runner(**parts, val=True, resume=resume)
        assert runner.test() == expected
        assert runner.seed == 1


def test_a_run_is_loaded_once(make_runner: MakeRunner) -> None:
    """A resumed run that stops and goes on doesn't fall back to its checkpoint; nor does a test() after it."""
    make_runner(work_dir="source").train()
    runner = make_runner(resume="source/epoch_1", epochs=4, val=True)
    runner.on("after_train_epoch", once=True)(lambda runner: runner.stop())
    began: list[int] = []
    runner.on("before_train")(lambda runner: began.append(runner.iter))
    runner.train()
    trained = weights(runner.model)
    runner.val()
    assert same(weights(runner.model), trained)
    runner.train()
    assert began == [2, 4]


def test_val_before_train_in_a_resumed_run_changes_nothing(make_runner: MakeRunner) -> None:
    """The pending validation is still made in the training, and the generators wait for it."""

    def make_one(name: str, **more: Any) -> Runner:
        model = nn.Sequential(linear(), nn.Dropout(0.5))
        return make_runner(model=model, val=True, epochs=3, work_dir=name, **more)

    whole = make_one("whole")
    whole.train()
    again = make_one("again", resume="whole/epoch_1")
    again.val()
    torch.rand(5)
    at: list[int] = []
    again.on("before_val")(lambda runner: at.append(runner.epoch))
    again.train()
    assert at == [1, 2, 3]
    assert same(weights(again.model), weights(whole.model))


def test_a_save_before_the_first_resumed_iteration_is_as_good(make_runner: MakeRunner) -> None:
    """Saved in before_train, where the generators have not been put back yet, it has the resumed ones."""

    def make_one(name: str, **more: Any) -> Runner:
        return make_runner(model=nn.Sequential(linear(), nn.Dropout(0.5)), epochs=3, work_dir=name, **more)

    whole = make_one("whole")
    whole.train()
    second = make_one("second", resume="whole/epoch_1")

    @second.on("before_train")
    def save_and_leave(runner: Runner) -> None:
        runner.save_checkpoint("at_once")
        raise Killed

    torch.rand(5)
    with pytest.raises(Killed):
        second.train()
    third = make_one("third", resume="second/at_once")
    assert same(weights(third.train()), weights(whole.model))


def test_filters_go_on_counting(make_runner: MakeRunner) -> None:
    """once=True has been, and isn't again in the resumed run."""
    heard: list[int] = []

    def make_one(**more: Any) -> Runner:
        runner = make_runner(epochs=more.pop("epochs"), **more)
        runner.on("before_train_iter", once=True)(lambda runner: heard.append(runner.iter))
        return runner

    make_one(epochs=1).train()
    make_one(epochs=2, resume=True).train()
    assert heard == [0]


# What doesn't fit


def other_optimizer(kind: Any, **options: Any) -> dict[str, Any]:
    """Of another class than the saved one."""
    model = linear()
    return {"model": model, "optimizer": kind(model.parameters(), **options)}


def two_groups() -> dict[str, Any]:
    """The same parameters in two groups."""
    model = linear()
    return {"model": model, "optimizer": torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)}


def scaled() -> dict[str, Any]:
    """With a scaler that the saved run didn't have."""
    model = linear()
    return {"model": model, "optim_wrapper": OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), dtype="float16")}


SAME = "give this run the same, or take the weights alone with load_from=."
MISMATCHES: list[tuple[Any, str]] = [
    (
        lambda: {"model": nn.Sequential(linear())},
        f"the checkpoint's model and this run's differ: it lacks 0.bias, 0.weight and has bias, weight besides; {SAME}",
    ),
    (
        lambda: {"model": nn.Linear(2, 3)},
        "loading weights into Linear: 'weight' has shape [1, 2] in the checkpoint and [3, 2] in the model.",
    ),
    (
        lambda: {"train_cfg": {"max_iters": 9}},
        "the checkpoint is of a training by epoch and this one goes by iter; resume it as it was.",
    ),
    (
        lambda: other_optimizer(torch.optim.Adam),
        f"the checkpoint's optimizers are SGD and this run's Adam; {SAME}",
    ),
    (
        two_groups,
        "this run's optimizer has parameter groups of [1, 1] parameters, the saved one of [2].",
    ),
    (
        scaled,
        "this run's optimizer has the state optimizer, inner_count, scaler, the saved one is optimizer, inner_count.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), MISMATCHES, ids=range(len(MISMATCHES)))
def test_what_does_not_fit_is_an_error_and_changes_nothing(make_runner: MakeRunner, change: Any, said: str) -> None:
    """Another model, other shapes, another unit, optimizer or scaling."""
    make_runner(work_dir="source").train()
    runner = make_runner(**change(), resume="source/epoch_1")
    before, optimizer = weights(runner.model), runner.optim_wrapper.state_dict()
    with pytest.raises(ResumeError) as caught:
        runner.train()
    assert str(caught.value) == said
    assert same(weights(runner.model), before)
    assert same(runner.optim_wrapper.state_dict(), optimizer)
    assert (runner.epoch, runner.iter) == (0, 0)


@pytest.mark.parametrize("option", ["save_optimizer", "save_param_scheduler"])
def test_a_checkpoint_without_its_parts_is_not_resumed_from(make_runner: MakeRunner, option: str) -> None:
    """It was saved for its weights, and load_from takes them."""
    make_runner(work_dir="source", default_hooks={"checkpoint": {option: False}}).train()
    runner = make_runner(resume="source/epoch_1")
    with pytest.raises(ResumeError) as caught:
        runner.train()
    said = f"the checkpoint was saved with {option}=False and can't be resumed from; load_from= takes its weights."
    assert str(caught.value) == said
    make_runner(load_from="source/epoch_1", work_dir="third").train()


def test_a_checkpoint_of_an_evaluation_is_not_resumed_from(make_runner: MakeRunner) -> None:
    """It has no place in a training."""
    parts = {"train_dataloader": None, "train_cfg": None, "optimizer": None}
    evaluation = make_runner(val=True, work_dir="source", **parts)
    evaluation.save_checkpoint("by_hand")
    runner = make_runner(resume="source/by_hand")
    with pytest.raises(ResumeError) as caught:
        runner.train()
    said = "resuming needs a run that trains, and a checkpoint of one; load_from= takes weights alone."
    assert str(caught.value) == said


@pytest.mark.parametrize("names", [["first"], ["first", "third"]])
def test_other_optimizers_are_not_resumed_into(make_runner: MakeRunner, names: list[str]) -> None:
    """Several optimizers are compared by name."""

    def given(names: list[str]) -> dict[str, Any]:
        model = nn.ModuleDict({name: linear() for name in ("first", "second")})
        parts = zip(names, model.values(), strict=False)
        return {
            "model": model,
            "train_step": lambda model, batch, optim_wrapper: None,
            "optim_wrapper": {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in parts},
        }

    make_runner(work_dir="source", **given(["first", "second"])).train()
    runner = make_runner(resume="source/epoch_1", **given(names))
    with pytest.raises(ResumeError, match=r"^the checkpoint's optimizers (are SGD, SGD and|and this run's differ: it)"):
        runner.train()


def test_what_is_not_there_is_an_error_before_anything_is_written(make_runner: MakeRunner, tmp_path: Path) -> None:
    """A path without a checkpoint names those near it."""
    Store(tmp_path / "source").save("epoch_1", {"state_dict": {}}, step=1)
    for option in ("resume", "load_from"):
        with pytest.raises(CheckpointNotFoundError) as caught:
            make_runner(**{option: tmp_path / "source" / "epoch_2"})
        assert "the checkpoints in" in str(caught.value)
        assert "did you mean 'epoch_1'?" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_nothing_is_half_loaded_where_the_file_is_no_checkpoint(make_runner: MakeRunner, tmp_path: Path) -> None:
    """A .pth that holds more than tensors is refused when it is read."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a file of torch's")
    runner = make_runner(load_from=path)
    before = weights(runner.model)
    with pytest.raises(CheckpointError):
        runner.train()
    assert same(weights(runner.model), before)


@pytest.fixture(autouse=True)
def _numpy_is_left_alone() -> Iterator[None]:
    """These tests draw from numpy's global generator."""
    state = numpy.random.get_state()
    yield
    numpy.random.set_state(state)


@pytest.mark.parametrize("epoch", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.slow
def test_workers_that_persist_keep_the_order_of_the_data(tmp_path: Path, epoch: int) -> None:
    """Their loader draws a seed at its first pass alone: a new one, which joins at a later pass, must not shift it."""
    inputs = torch.arange(24.0).reshape(12, 2)

    def run(folder: Path, **options: Any) -> list[list[float]]:
        seen: list[list[float]] = []

        def step(model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor]:
            seen.append(batch[0][:, 0].tolist())
            return {"loss": model(batch[0]).square().mean()}

        model = linear()
        loader = DataLoader(TensorDataset(inputs), 4, shuffle=True, num_workers=1, persistent_workers=True)
        Runner(
            model=model,
            work_dir=folder,
            train_step=step,
            optimizer=torch.optim.SGD(model.parameters(), lr=1e-4),
            train_dataloader=loader,
            train_cfg={"max_epochs": 3},
            default_hooks={"logger": None},
            randomness={"seed": 1},
            device="cpu",
            bus=Bus(),
            **options,
        ).train()
        return seen

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "whole", resume=tmp_path / "whole" / f"epoch_{epoch}") == whole[3 * epoch :]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "the clock was put back"])
@pytest.mark.slow
def test_a_history_that_was_left_is_not_gone_on_with(make_runner: MakeRunner, tmp_path: Path, ahead: bool) -> None:
    """Taken back to an older checkpoint, the run that fails before its next save is resumed from there once more."""
    make_runner(epochs=4, default_hooks={}).train()
    for epoch in range(1, 5) if ahead else ():
        folder = tmp_path / f"run/epoch_{epoch}"
        manifest = dataclasses.replace(read_manifest(folder), created=f"2999-01-0{epoch}T00:00:00+00:00")
        (folder / "MANIFEST.json").unlink()
        write_manifest(folder, manifest)

    def fail(runner: Runner) -> None:
        raise RuntimeError("again")

    def resumed(epochs: int, resume: Any) -> Runner:
        runner = make_runner(epochs=epochs, default_hooks={}, resume=resume, bus=Bus())
        runner.on("before_train")(lambda runner: begun.append(runner.epoch))
        return runner

    begun: list[int] = []
    back = resumed(4, tmp_path / "run/epoch_2")
    back.on("after_train_iter")(fail)
    with pytest.raises(RuntimeError, match="again"):
        back.train()
    resumed(3, True).train()
    resumed(5, True).train()
    assert begun == [2, 2, 3]
    assert (tmp_path / "run/epoch_5").is_dir()


@pytest.mark.parametrize("resumes", [5, None, [3], [{}], [{"step": 1}], [{"step": "1", "newest": 2}]])
def test_a_run_json_that_somebody_edited_is_no_obstacle(
    make_runner: MakeRunner, tmp_path: Path, resumes: object
) -> None:
    """What it says of earlier resumes is used as far as it can be understood, and is added to."""
    make_runner(epochs=1, default_hooks={}).train()
    path = tmp_path / "run/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resumes": resumes}))

    make_runner(epochs=2, default_hooks={}, resume=True, bus=Bus()).train()

    assert [entry["step"] for entry in json.loads(path.read_text())["resumes"]] == [2]
    assert (tmp_path / "run/epoch_2").is_dir()


def test_a_fresh_start_under_resume_begins_the_log_anew(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Killed before its first save, a run leaves rows that the next start writes again: one history, not two."""
    hooks = {"logger": {"interval": 1}, "checkpoint": {"interval": -1, "save_last": False}}
    make_runner(epochs=1, default_hooks=hooks).train()
    make_runner(epochs=2, default_hooks=hooks, resume=True, bus=Bus()).train()
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]

"""What may differ between two sessions of a run, what of it is put back, and what of it is said."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from rich.console import Console
from tiny import batches, linear, same, train_step, weights
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from eventrunner.checkpoint import Store, load_checkpoint
from eventrunner.errors import OptionError, Preempted, ResumeError
from eventrunner.hook import Hook
from eventrunner.hooks import EMAHook
from eventrunner.report.terminal import Bar
from eventrunner.runner import Runner
from eventrunner.session import loops

Make = Callable[..., Runner]


def two_layers() -> nn.Sequential:
    """Two layers to freeze or to give groups of their own."""
    return nn.Sequential(linear(3), nn.Linear(1, 1, bias=False))


def fixed(model: nn.Module) -> nn.Module:
    """The same weights in every process."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / 2)
    return model


def stop_after(runner: Runner, step: int | None) -> None:
    """Stop the run when so many iterations are done."""
    if step is not None:
        runner.on("after_train_iter", when=lambda runner: runner.iter + 1 == step)(lambda runner: runner.stop())


# What receivers changed in the model


def freeze(runner: Runner) -> None:
    """Freeze a part."""
    runner.model[0].requires_grad_(False)


def thaw(runner: Runner) -> None:
    """Let it be trained again."""
    runner.model[0].requires_grad_(True)


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
@pytest.mark.parametrize(("first", "then"), [(freeze, None), (freeze, thaw), (thaw, freeze)])
@pytest.mark.slow
def test_what_requires_gradients_is_part_of_the_state(
    make_runner: MakeRunner, first: Any, then: Any, stop: int
) -> None:
    """Set by receivers that are called in one epoch only, with ``once`` or by a condition."""

    def run(name: str, until: int | None = None, **more: Any) -> dict[str, Tensor]:
        model = fixed(two_layers())
        if first is thaw:
            model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        runner = make_runner(model=model, optimizer=optimizer, epochs=4, work_dir=name, **more)
        runner.on("before_train_epoch", when=lambda runner: runner.epoch == 1)(first)
        if then is not None:
            runner.on("before_train_epoch", once=True, start=3)(then)
        stop_after(runner, until)
        return weights(runner.train())

    whole = run("whole")
    run("cut", stop)
    assert same(run("cut", resume=True), whole)


def test_a_checkpoint_of_before_the_flags_were_saved_leaves_them(make_runner: MakeRunner, tmp_path: Path) -> None:
    """They are as the script has them."""
    make_runner(epochs=1, work_dir="source").train()
    checkpoint = load_checkpoint(tmp_path / "source/epoch_1")
    del checkpoint["frozen"]
    Store(tmp_path / "older").save("epoch_1", checkpoint, step=2, epoch=1)
    model = linear()
    model.bias.requires_grad_(False)
    runner = make_runner(epochs=2, model=model, work_dir="run", resume=tmp_path / "older/epoch_1")
    runner.train()
    assert not model.bias.requires_grad
    assert torch.equal(model.bias, checkpoint["state_dict"]["bias"])


# Hooks and schedules that come and go


class Counts(Hook):
    """Counts iterations in its state."""

    def __init__(self) -> None:
        self.count = 0

    def after_train_iter(self, runner: Runner, batch_idx: int) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


def test_a_hook_that_was_added_begins_afresh_and_says_so(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others go on."""
    make_runner(epochs=1, custom_hooks=[Counts()]).train()
    hooks = [Counts(), Counts()]
    make_runner(epochs=2, custom_hooks=hooks, resume=True, log_level="WARNING").train()
    assert [hook.count for hook in hooks] == [4, 2]
    out = capsys.readouterr().out
    assert out.count("level=warning") == 1
    assert "the checkpoint has no state of the hook Counts#2: it begins afresh." in out


def test_the_state_of_a_hook_that_is_gone_is_dropped_and_said(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training goes on without it."""
    whole = make_runner(epochs=2, work_dir="whole").train()
    make_runner(epochs=1, custom_hooks=[Counts()]).train()
    again = make_runner(epochs=2, resume=True, log_level="WARNING")
    assert same(weights(again.train()), weights(whole))
    out = capsys.readouterr().out
    assert out.count("level=warning") == 1
    assert "the checkpoint's hook Counts isn't in this run: its state is dropped." in out


Schedulers = Callable[[torch.optim.Optimizer], list[Any]]
SCHEDULES: dict[str, tuple[Schedulers, Schedulers, list[float], str]] = {
    "added": (
        lambda o: [],
        lambda o: [StepLR(o, 1, 0.5)],
        [1.0, 1.0, 1.0, 0.5],
        "no state of the scheduler StepLR: it begins afresh",
    ),
    "added, warming up": (
        lambda o: [],
        lambda o: [LinearLR(o, 0.25, 1.0, 2)],
        [1.0, 1.0, 0.25, 0.625],
        "no state of the scheduler LinearLR: it begins afresh",
    ),
    "added, of one cycle": (
        lambda o: [],
        lambda o: [OneCycleLR(o, 1.0, 4, anneal_strategy="linear", pct_start=0.5, cycle_momentum=False)],
        [1.0, 1.0, 0.04, 1.0],
        "no state of the scheduler OneCycleLR: it begins afresh",
    ),
    "added to another": (
        lambda o: [ExponentialLR(o, 0.5)],
        lambda o: [ExponentialLR(o, 0.5), LinearLR(o, 0.5, 1.0, 1)],
        [1.0, 0.5, 0.125, 0.125],
        "no state of the scheduler LinearLR: it begins afresh",
    ),
    "removed": (
        lambda o: [ExponentialLR(o, 0.5)],
        lambda o: [],
        [1.0, 0.5, 0.25, 0.25],
        "scheduler ExponentialLR isn't in this run: its state is dropped, and the learning rate is what it left",
    ),
    "one of two removed": (
        lambda o: [StepLR(o, 3, 0.1), ExponentialLR(o, 0.5)],
        lambda o: [ExponentialLR(o, 0.5)],
        [1.0, 0.5, 0.25, 0.125],
        "scheduler StepLR isn't in this run",
    ),
    "replaced": (
        lambda o: [ExponentialLR(o, 0.5)],
        lambda o: [CosineAnnealingLR(o, 2)],
        [1.0, 0.5, 1.0, 0.5],
        "scheduler ExponentialLR isn't in this run",
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.filterwarnings("ignore:param_scheduler")
def test_a_schedule_may_come_or_go(make_runner: MakeRunner, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is new begins where the run is resumed, one that is gone leaves the rate, and others go on."""
    before, after, rates, said = SCHEDULES[kind]
    seen: list[float] = []

    def run(schedulers: Schedulers, epochs: int, **more: Any) -> None:
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        schedule = [{"scheduler": each, "by_epoch": True} for each in schedulers(optimizer)]
        runner = make_runner(
            model=model,
            optimizer=optimizer,
            param_scheduler=schedule,
            count=1,
            epochs=epochs,
            log_level="WARNING",
            **more,
        )
        runner.on("before_train_iter")(lambda runner: seen.append(runner.optim_wrapper.get_lr()["lr"][0]))
        runner.train()

    run(before, 2)
    capsys.readouterr()
    run(after, 4, resume=True)
    assert seen == pytest.approx(rates)
    assert said in capsys.readouterr().out


def test_schedules_of_several_optimizers_are_matched_by_name(make_runner: MakeRunner) -> None:
    """The one that stays keeps its count, though one before it in the list is gone."""

    def step(model: nn.ModuleDict, batch: Any, optim_wrapper: Any) -> None:
        for name in ("first", "second"):
            optim_wrapper[name].update_params(train_step(model[name], batch)["loss"])

    def run(epochs: int, names: list[str], **more: Any) -> list[int]:
        model = nn.ModuleDict({"first": linear(3), "second": linear(4)})
        optimizers = {name: torch.optim.SGD(part.parameters(), lr=0.1) for name, part in model.items()}
        schedules = {name: [StepLR(optimizers[name], 1)] for name in names}
        options = {"model": model, "train_step": step, "optim_wrapper": optimizers, "param_scheduler": schedules}
        make_runner(epochs=epochs, **options, **more).train()
        return [schedules[name][0].last_epoch for name in names]

    assert run(2, ["first", "second"]) == [2, 2]
    assert run(3, ["second"], resume=True) == [3]
    assert run(5, ["first", "second"], resume=True) == [2, 5]


def test_groups_that_were_added_midway_are_refused_with_what_to_write(make_runner: MakeRunner) -> None:
    """Two lines, which work as they stand but for the parameters."""

    def run(until: int | None = None, **more: Any) -> Runner:
        model = fixed(two_layers())
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
        runner = make_runner(model=model, optimizer=optimizer, epochs=3, **more)

        @runner.on("before_train_epoch", when=lambda runner: runner.epoch == 1 and len(optimizer.param_groups) == 1)
        def add(runner: Runner) -> None:
            optimizer.add_param_group({"params": list(model[1].parameters()), "lr": 0.01})

        stop_after(runner, until)
        return runner

    whole = run(work_dir="whole").train()
    run(4, work_dir="cut").train()
    refused = run(work_dir="cut", resume=True)
    with pytest.raises(ResumeError) as caught:
        refused.train()
    said, _, code = str(caught.value).partition("\n\n")
    assert said == (
        "this run's optimizer has parameter groups of [2] parameters, the saved one of [2, 1]; add those that were "
        "added while it trained before they are compared, in a receiver:"
    )
    assert len(code.splitlines()) == 2
    runner = run(work_dir="cut", resume=True)
    lines = "\n".join(line.strip() for line in code.splitlines()).replace(
        "params=…", "params=[*runner.model[1].parameters()]"
    )
    exec(lines, {"runner": runner})
    assert same(weights(runner.train()), weights(whole))


# Weights under other names


class Renames(nn.Module):
    """Once had its layer under another name, which its own loading still takes."""

    def __init__(self, old: bool) -> None:
        super().__init__()
        self.add_module("inner" if old else "layer", linear())
        self.log: list[str] = []

    def forward(self, inputs: Tensor) -> Tensor:
        return next(self.children())(inputs)  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}inner.")]:
            if hasattr(self, "layer"):
                state_dict[name.replace("inner.", "layer.")] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]


def strip(state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """A hook that takes what DataParallel saved."""
    for name in [name for name in state_dict if name.startswith("module.")]:
        state_dict[name.removeprefix("module.")] = state_dict.pop(name)


def wrapped(old: bool) -> nn.Module:
    """Once in a wrapper."""
    if old:
        return nn.Sequential(linear())
    model = linear()

    def first(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith("0.")]:
            state_dict[name.removeprefix("0.")] = state_dict.pop(name)

    model.register_load_state_dict_pre_hook(first)
    return model


def normed(old: bool) -> nn.Module:
    """Torch's weight norm of before and after it became a parametrization."""
    if old:
        with pytest.warns(FutureWarning):
            return nn.utils.weight_norm(linear())
    return parametrizations.weight_norm(linear())


def recurrent(old: bool) -> nn.Module:
    """An LSTM that also has pointers to its weights, below what renames."""

    class Net(Renames):
        def __init__(self) -> None:
            super().__init__(old)
            self.lstm = nn.LSTM(2, 2)
            fixed(self)

        def forward(self, inputs: Tensor) -> Tensor:
            return next(self.children())(self.lstm(inputs)[0])  # type: ignore[no-any-return]

    return Net()


RENAMED: dict[str, Callable[[bool], nn.Module]] = {
    "an override": Renames,
    "a hook": wrapped,
    "weight_norm": normed,
    "beside an LSTM": recurrent,
}


def trained(make_runner: MakeRunner, model: nn.Module, name: str, epochs: int = 1, **more: Any) -> nn.Module:
    """A model after so many epochs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return make_runner(model=model, optimizer=optimizer, epochs=epochs, work_dir=name, **more).train()


@pytest.mark.parametrize("kind", RENAMED)
@pytest.mark.parametrize("way", ["resume", "load_from", "load_from what fits"])
@pytest.mark.slow
def test_names_are_compared_behind_the_models_own_load_hooks(make_runner: MakeRunner, kind: str, way: str) -> None:
    """What torch would load is loaded, and the model is the one that was saved."""
    make = RENAMED[kind]
    old = trained(make_runner, make(True), "old")
    source: Any = "old/epoch_1" if "fits" not in way else {"path": "old/epoch_1", "strict": False}
    new = make(False)
    inputs = batches(1)[0][0]
    runner = make_runner(
        model=new,
        optimizer=torch.optim.SGD(new.parameters(), lr=0.05),
        epochs=2,
        work_dir="new",
        **{way.split()[0]: source},
    )
    seen: list[Tensor] = []
    runner.on("before_train")(lambda runner: seen.append(runner.model(inputs).detach()))
    runner.train()
    torch.testing.assert_close(seen[0], old(inputs).detach())


@pytest.mark.parametrize("kind", RENAMED)
def test_a_model_that_is_refused_behind_them_is_as_it_was(make_runner: MakeRunner, kind: str) -> None:
    """Comparing writes nothing, to no tensor that anybody holds."""
    trained(make_runner, RENAMED[kind](True), "old")
    new = RENAMED[kind](False)
    new.register_parameter("more", nn.Parameter(torch.ones(2)))
    inputs = batches(1)[0][0]
    before, output, held = weights(new), new(inputs).detach(), list(new.parameters())
    for options in ({"resume": "old/epoch_1"}, {"load_from": "old/epoch_1"}):
        with pytest.raises(ResumeError, match="it lacks more and has nothing besides"):
            trained(make_runner, new, next(iter(options)), **options)
    assert same(weights(new), before)
    assert torch.equal(new(inputs), output)
    assert all(one is other for one, other in zip(new.parameters(), held, strict=True))
    assert all(parameter.requires_grad for parameter in new.parameters())


# Weights that aren't there


def test_weights_that_a_receiver_left_out_are_the_models_own(
    make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frozen backbone, say, that every start loads from elsewhere; the rest goes on exactly."""

    def run(name: str, epochs: int, way: str = "del", **more: Any) -> dict[str, Tensor]:
        model = fixed(two_layers())
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9)
        hooks = {"custom_hooks": [EMAHook(momentum=0.25)]} if "ema" in way else {}
        runner = make_runner(
            model=model, optimizer=optimizer, epochs=epochs, work_dir=name, log_level="WARNING", **hooks, **more
        )

        @runner.on("before_save_checkpoint")
        def prune(checkpoint: dict[str, Any]) -> None:
            if "new" in way:
                checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k[0] != "0"}
            else:
                del checkpoint["state_dict"]["0.weight"], checkpoint["state_dict"]["0.bias"]

        return weights(runner.train())

    for way in ("del", "new", "ema del", "ema new"):
        whole = run(f"whole {way}", 3, way)
        run(f"cut {way}", 1, way)
        assert capsys.readouterr().out == ""
        assert same(run(f"cut {way}", 3, way, resume=True), whole)
        out = capsys.readouterr().out
        assert "the checkpoint was saved without 0.bias, 0.weight: the model keeps its own." in out


def test_weights_that_the_model_has_got_since_are_an_error(make_runner: MakeRunner) -> None:
    """They weren't left out: the model is another."""
    first = make_runner(epochs=1, model=fixed(two_layers()))
    first.on("before_save_checkpoint")(lambda checkpoint: checkpoint["state_dict"].__delitem__("0.bias"))
    first.train()
    model = fixed(two_layers().append(nn.Linear(1, 1)))
    with pytest.raises(ResumeError, match=r"it lacks 2\.bias, 2\.weight and has nothing besides"):
        make_runner(epochs=2, model=model, resume=True).train()


# load_from what fits


def test_load_from_takes_what_fits_and_lists_the_rest(
    make_runner: MakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new head on a known backbone; with an average, that begins with the same."""
    saved = {
        "0.weight": torch.full((1, 2), 0.5),
        "0.bias": torch.ones(1),
        "1.weight": torch.ones(3, 1),
        "x": torch.ones(1),
    }
    torch.save(saved, tmp_path / "weights.pth")
    for hooks in ([], [EMAHook()]):
        model = fixed(two_layers())
        head = model[1].weight.clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runner = make_runner(
            model=model, optimizer=optimizer, work_dir=f"run{len(hooks)}", custom_hooks=hooks, log_level="WARNING",
            load_from={"path": "weights.pth", "strict": False},
        )  # fmt: skip
        seen: list[dict[str, Tensor]] = []
        runner.on("before_train")(lambda runner, seen=seen: seen.append(weights(runner.model)))
        runner.train()
        assert same(seen, [{"0.weight": saved["0.weight"], "0.bias": saved["0.bias"], "1.weight": head}])
        out = capsys.readouterr().out
        assert "the model keeps its own: 1.weight" in out
        assert "not taken, as the model has none of that shape: 1.weight, x" in out


def test_load_from_of_all_says_nothing_more(make_runner: MakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all of it fits."""
    make_runner(epochs=1, work_dir="source").train()
    make_runner(load_from={"path": "source/epoch_1", "strict": False}, log_level="WARNING").train()
    assert capsys.readouterr().out == ""


def test_load_from_of_nothing_that_fits_is_an_error(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Else a misspelt prefix would train from scratch."""
    torch.save({"module.weight": torch.ones(1, 2)}, tmp_path / "weights.pth")
    with pytest.raises(ResumeError, match=r"none of module.weight … has the name and shape of one of weight, bias …"):
        make_runner(load_from={"path": "weights.pth", "strict": False}).train()


def test_load_from_names_the_way_to_take_what_fits(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Where something is missing."""
    torch.save({"weight": torch.ones(1, 2)}, tmp_path / "weights.pth")
    with pytest.raises(ResumeError, match=r"or what fits with load_from=dict\(path=…, strict=False\)\.$"):
        make_runner(load_from="weights.pth").train()


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"load_from": {"strict": False}}, "load_from={'strict': False} has no 'path' of a checkpoint or of a file with"),
    ({"load_from": {"path": "w.pth", "strict": 0}}, "load_from['strict']=0 must be True or False."),
    ({"load_from": {"path": "w.pth", "strickt": 0}}, "load_from has no key 'strickt'; it takes path, strict; did you"),
    ({"resume": {"data": "fast"}}, "resume['data']='fast' must be 'load', which is exact, or 'skip'."),
    ({"resume": {"dat": "skip"}}, "resume has no key 'dat'; it takes path, data; did you mean 'data'?"),
    ({"resume": {"path": 3}}, "resume=3 must be True, False or a checkpoint's path."),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=range(len(OPTIONS)))
def test_options_that_can_not_be_are_refused_at_once(
    make_runner: MakeRunner, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    """Before anything is written."""
    with pytest.raises(OptionError) as caught:
        make_runner(**options)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "run").exists()


# Used batches


class Noted(Dataset[Tensor]):
    """Twelve samples that are noted when they are loaded, in a file, as workers load them too."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        with open(self.file, "a") as file:
            file.write(f"{index}\n")
        return torch.full((2,), float(index))


class Stream(IterableDataset[Tensor]):
    """Twelve samples in order."""

    def __init__(self, file: Path) -> None:
        self.data = Noted(file)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.data[index] for index in range(12))


class SizedStream(Stream):
    """The same with a length."""

    def __len__(self) -> int:
        return 12


def rows_of(batch: Tensor) -> list[int]:
    """The samples of a batch."""
    return [int(row[0]) for row in batch]


def data_run(make_runner: MakeRunner, loader: Any, until: int | None = None, **more: Any) -> list[list[int]]:
    """The batches of a training."""
    seen: list[list[int]] = []
    model = linear()
    options: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-4),
        "train_step": lambda model, batch: {"loss": model(batch).sum()},
        "train_dataloader": loader,
    }
    runner = make_runner(**{**options, "epochs": 2, **more})
    runner.on("before_train_iter")(lambda data_batch: seen.append(rows_of(data_batch)))
    stop_after(runner, until)
    runner.train()
    return seen


INDEXED: dict[str, dict[str, Any]] = {
    "no workers": {},
    "workers": {"num_workers": 2},
    "workers that persist": {"num_workers": 2, "persistent_workers": True},
    "own generator": {"num_workers": 1, "generator": 7},
    "one by one": {"num_workers": 1, "batch_size": None},
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.long] * (kind in ("workers that persist", "own generator")))
        for kind in INDEXED
    ],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.slow
def test_data_skip_loads_no_used_batch_and_keeps_the_order(make_runner: MakeRunner, tmp_path: Path, kind: str) -> None:
    """In the pass that is gone on with, and in the one after it; twice in a row."""
    options = {"batch_size": 2, **INDEXED[kind]}

    def make(name: str) -> DataLoader[Any]:
        own = {"generator": torch.Generator().manual_seed(options["generator"])} if "generator" in options else {}
        collate = {"collate_fn": lambda sample: sample.view(1, 2)} if options["batch_size"] is None else {}
        return DataLoader(Noted(tmp_path / name), shuffle=True, **{**options, **own, **collate})

    whole = data_run(make_runner, make("whole"), work_dir="run whole")
    each = len(whole[0])
    first = data_run(make_runner, make("first"), 3, work_dir="run")
    second = data_run(make_runner, make("second"), 4, work_dir="run", resume={"data": "skip"})
    third = data_run(make_runner, make("third"), work_dir="run", resume={"data": "skip"})
    assert first + second + third == whole
    loaded = (tmp_path / "third").read_text().split()
    assert len(loaded) == 12 - 4 * each + 12


@pytest.mark.parametrize(("kind", "rest"), [(Stream, 4), (SizedStream, 1)])
def test_data_skip_begins_a_stream_anew_without_loading_what_was_used(
    make_runner: MakeRunner, tmp_path: Path, kind: Any, rest: int
) -> None:
    """It has no indices to leave behind; the pass has as many batches as it should, where that is known."""
    make = lambda name: DataLoader(kind(tmp_path / name), 3)  # noqa: E731
    data_run(make_runner, make("first"), 3, epochs=1)
    again = data_run(make_runner, make("second"), epochs=1, resume={"data": "skip"})
    assert again == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]][:rest]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda file: DataLoader(Noted(file), 3, num_workers=1),
            "2 batches that were used are left out unloaded, so what loading draws at random, if anything, is another.",
        ),
        (
            lambda file: DataLoader(Stream(file), 3),
            "2 batches that were used are not left behind, as that takes loading them, so its samples may come once "
            "more.",
        ),
        (lambda file: DataLoader(Noted(file), 3), None),
    ],
)
def test_data_skip_says_what_is_not_exact(
    make_runner: MakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, said: str | None
) -> None:
    """Nothing where used batches need no loading anyway."""
    data_run(make_runner, make(tmp_path / "a"), 2, epochs=1)
    data_run(make_runner, make(tmp_path / "a"), epochs=1, resume={"path": True, "data": "skip"}, log_level="WARNING")
    out = capsys.readouterr().out
    assert said in out if said else out == ""


def test_data_skip_of_a_named_checkpoint(make_runner: MakeRunner, tmp_path: Path) -> None:
    """With a path beside it."""
    hooks = {"checkpoint": {"by_epoch": False, "interval": 1}}
    whole = data_run(make_runner, DataLoader(Noted(tmp_path / "a"), 3), epochs=1, default_hooks=hooks)
    resume = {"path": "run/iter_2", "data": "skip"}
    assert data_run(make_runner, DataLoader(Noted(tmp_path / "a"), 3), epochs=1, resume=resume) == whole[2:]


class Watched(Stream):
    """Calls something with each sample."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.watch: Callable[[int], None] = lambda index: None

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(12):
            self.watch(index)
            yield self.data[index]


def test_it_says_how_far_loading_used_batches_again_is(
    make_runner: MakeRunner, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a line now and then, and on the bar while it lasts."""
    monkeypatch.setattr(loops, "_SAID_EVERY", 0.0)
    data_run(make_runner, DataLoader(Stream(tmp_path / "a"), 2), 4, epochs=1)
    dataset, drawn = Watched(tmp_path / "a"), []
    model = linear()
    runner = make_runner(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-4), epochs=1, resume=True, log_level="INFO",
        train_step=lambda model, batch: {"loss": model(batch).sum()}, train_dataloader=DataLoader(dataset, 2),
    )  # fmt: skip

    def draw(index: int) -> None:
        console = Console(file=io.StringIO(), width=100)
        console.print(Bar(runner)._draw())
        drawn.append(" ".join(console.file.getvalue().split()[1:]))  # type: ignore[attr-defined]

    dataset.watch = draw
    runner.train()
    out = capsys.readouterr().out
    assert [f"{done} of 4 batches loaded once more" in out for done in (2, 3, 4)] == [True, True, True]
    assert drawn[2:8:2] == [f"loading used batches once more {done}/4" for done in (1, 2, 3)]
    assert drawn[8].startswith("iter 4")


@pytest.mark.parametrize("error", [KeyboardInterrupt, Preempted(75, "SIGTERM")])
def test_a_run_that_ends_while_it_loads_used_batches_again_loses_nothing(
    make_runner: MakeRunner, tmp_path: Path, error: Any
) -> None:
    """What it saves on the way out is where it was: the next one gives the same numbers to the bit."""
    monitor: list[Any] = []

    def run(name: str, until: int | None = None, fail: bool = False, **more: Any) -> list[float]:
        dataset, drawn = Watched(tmp_path / "a"), []
        model = linear()
        runner = make_runner(
            model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-4), epochs=1, work_dir=name,
            train_step=lambda model, batch: {"loss": model(batch).sum()}, train_dataloader=DataLoader(dataset, 2),
            default_hooks={"logger": None, "checkpoint": {"by_epoch": False, "interval": 1}}, **more,
        )  # fmt: skip
        runner.on("before_train_iter")(lambda data_batch: drawn.append((rows_of(data_batch), torch.rand(()).item())))
        runner.on("on_exception")(lambda runner: runner.save_checkpoint("on_the_way_out"))
        stop_after(runner, until)

        def interrupt(index: int) -> None:
            torch.rand(3)
            random.random()
            if fail and index == 5:
                runner.session.request(lambda: (_ for _ in ()).throw(error))

        dataset.watch = interrupt
        monitor.append(runner)
        runner.train()
        return drawn

    whole = run("whole")
    first = run("cut", 4)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        run("cut", fail=True, resume=True)
    runner = monitor[-1]
    assert (runner.iter, runner.train_loop.position.consumed) == (4, 4)
    assert first + run("cut", resume=True) == whole
    if error is KeyboardInterrupt:
        assert first + run("other", resume="cut/on_the_way_out") == whole


def test_plateaus_are_matched_too(make_runner: MakeRunner) -> None:
    """A schedule that follows a metric, added to one by epoch."""

    def run(epochs: int, plateau: bool, **more: Any) -> list[Any]:
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule: list[Any] = [StepLR(optimizer, 5)]
        if plateau:
            schedule.insert(0, {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "mse", "rule": "less"})
        make_runner(model=model, optimizer=optimizer, param_scheduler=schedule, val=True, epochs=epochs, **more).train()
        return [each["scheduler"] if isinstance(each, dict) else each for each in schedule]

    run(1, False)
    plateau, step = run(2, True, resume=True)
    assert (plateau.last_epoch, step.last_epoch) == (2, 2)  # the first validation was still to come

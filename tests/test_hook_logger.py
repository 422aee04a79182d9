"""LoggerHook in real runs: which rows are written when, to which places, and what a resumed run makes of them."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TIMES, OnDevice, batches, linear, rows, same, train_step, weights
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eventrunner.bus.bus import Bus
from eventrunner.errors import OptionError, RunExistsError
from eventrunner.hook import Hook
from eventrunner.hooks import LoggerHook
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper

Row = dict[str, Any]


class Tracker(Hook):
    """Keeps what ``on_log`` hands out: all that an experiment tracker needs."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_log(self, runner: Runner, scalars: dict[str, float], step: int) -> None:
        assert all(type(value) is float for value in scalars.values()), scalars
        self.rows.append({"step": step, **scalars})


class Dies(Hook):
    """Raises at a site, the first time that so many iterations have been counted there."""

    priority = "LOWEST"

    def __init__(self, site: str, counted: int) -> None:
        self.counted = counted
        setattr(self, site, self.die)

    def die(self, runner: Runner) -> None:
        if runner.iter >= self.counted:
            raise SystemExit("killed")


class Stream:
    """A dataloader without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter(batches(self.count))


@pytest.fixture
def make(make_runner: MakeRunner) -> Callable[..., Runner]:
    """``make(interval=2, …)``: a tiny run with these options of LoggerHook; ``run=…`` has those of the Runner."""

    def make_with(*, run: dict[str, Any] | None = None, **hook: Any) -> Runner:
        return make_runner(**{"default_hooks": {"checkpoint": None, "logger": hook}, **(run or {})})

    return make_with


def steps(folder: Path, key: str = "train/loss") -> list[int]:
    """The steps of the rows that have a key."""
    return [row["step"] for row in rows(folder) if key in row]


def step_by_step(model: nn.Module, batch: Any) -> dict[str, Any]:
    """A loss of 1, 2, 3 … in successive iterations, whatever the weights, and a score that isn't smoothed."""
    model.taken = getattr(model, "taken", 0) + 1
    loss = 0 * train_step(model, batch)["loss"] + model.taken
    return {"loss": loss, "score": loss.detach() * 10, "whole": model.taken}


# Which rows


@pytest.mark.parametrize(
    ("hook", "count", "expected"),
    [
        (dict(interval=2), 4, [2, 4, 6, 8]),
        (dict(interval=3), 4, [3, 7]),
        (dict(interval=3, ignore_last=False), 4, [3, 4, 7, 8]),
        (dict(interval=4), 4, [4, 8]),
        (dict(interval=4, ignore_last=False), 4, [4, 8]),
        (dict(interval=10), 4, [4, 8]),
        (dict(interval=10, ignore_last=False), 4, [4, 8]),
        (dict(), 12, [10, 22]),
    ],
)
@pytest.mark.parametrize("length", [True, False], ids=["known length", "unknown length"])
def test_a_row_comes_at_each_interval_of_an_epoch(
    make: Callable[..., Runner], tmp_path: Path, hook: dict[str, Any], count: int, expected: list[int], length: bool
) -> None:
    """A last, incomplete one counts where it is asked for, or where it is all that the epoch has."""
    make(run={"train_dataloader": batches(count) if length else Stream(count)}, **hook).train()
    assert steps(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("hook", "maximum", "expected"),
    [
        (dict(interval=3), 7, [3, 6]),
        (dict(interval=3, ignore_last=False), 7, [3, 6, 7]),
        (dict(interval=3), 6, [3, 6]),
        (dict(interval=9), 7, [7]),
    ],
)
def test_by_iterations_intervals_go_over_the_whole_run(
    make: Callable[..., Runner], tmp_path: Path, hook: dict[str, Any], maximum: int, expected: list[int]
) -> None:
    """The data is passed over as often as that takes."""
    make(run={"train_cfg": {"max_iters": maximum}}, **hook).train()
    assert steps(tmp_path / "run") == expected


def test_rows_have_one_clock_and_the_same_keys_as_everything_else(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The step is that of completed iterations, the epoch is counted from 1; validations stand between."""
    make(run={"val": True, "count": 3}, interval=2).train()
    seen = [(row["step"], row["epoch"], sorted(row.keys() - {"step", "epoch"})) for row in rows(tmp_path / "run")]
    train = ["train/loss", "train/lr"]
    assert seen == [(2, 1, train), (3, 1, ["val/mse"]), (5, 2, train), (6, 2, ["val/mse"])]
    first = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert first.keys() == {"step", "epoch", "train/loss", "train/lr", "train/time", "train/data_time"}


def test_by_iterations_the_epoch_is_that_of_the_data(make: Callable[..., Runner], tmp_path: Path) -> None:
    """A validation belongs to the pass that it interrupts, and to none before the first batch."""
    run = {"val": True, "count": 3, "train_cfg": {"max_iters": 7, "val_interval": 2, "val_begin": 0}}
    make(run=run, interval=1).train()
    found = [(row["step"], row["epoch"], "val/mse" in row) for row in rows(tmp_path / "run")]
    assert [(step, epoch) for step, epoch, val in found if not val] == list(enumerate([1, 1, 1, 2, 2, 2, 3], start=1))
    assert [(step, epoch) for step, epoch, val in found if val] == [(0, 0), (2, 1), (4, 2), (6, 2), (7, 3)]


def test_losses_are_smoothed_and_the_rest_is_current(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Over the window, which may reach into the epoch before."""
    make(run={"train_step": step_by_step, "count": 4}, interval=2, window_size=3).train()
    found = [(row["train/loss"], row["train/score"], row["train/whole"]) for row in rows(tmp_path / "run")]
    assert found == [(1.5, 20, 2), (3, 40, 4), (5, 60, 6), (7, 80, 8)]


def test_times_and_norms_are_smoothed_too(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Their row has the mean that the message hub has at that moment."""
    means: list[dict[str, float]] = []

    def look(runner: Runner, scalars: dict[str, float], step: int) -> None:
        hub = runner.message_hub
        means.append({key: hub.get_scalar(key).mean(4) for key in ("train/time", "train/data_time", "train/grad_norm")})

    model = linear()
    clipped = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), clip_grad={"max_norm": 1.0})
    runner = make(run={"model": model, "optim_wrapper": clipped, "count": 6}, interval=3, window_size=4)
    runner.on("on_log")(look)
    runner.train()
    logged = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in means[0]} for row in logged] == means


def test_an_epoch_line_has_the_means_of_its_own_iterations(
    make: Callable[..., Runner], capsys: pytest.CaptureFixture[str]
) -> None:
    """However long the epoch is, and whether or not its dataloader knows that."""
    for loader in (batches(5), Stream(5)):
        make(run={"train_step": step_by_step, "train_dataloader": loader, "log_level": "INFO", "bus": Bus()}).train()
        epochs = [line for line in capsys.readouterr().out.splitlines() if 'event="epoch' in line]
        assert [line.partition("train/loss=")[2].partition(" ")[0] for line in epochs] == ["3", "8"]
        assert [line.partition("train/score=")[2].partition(" ")[0] for line in epochs] == ["30", "80"]
        (Path("run") / "run.json").unlink()  # the folder is free again


def test_the_learning_rate_is_the_one_that_was_used(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Not the next one, which the scheduler has set by the time that the row is written."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    halving = {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "by_epoch": False}
    make(run={"model": model, "optimizer": optimizer, "param_scheduler": halving}, interval=1).train()
    assert [row["train/lr"] for row in rows(tmp_path / "run")] == [1.0, 0.5, 0.25, 0.125]


def test_groups_of_parameters_have_numbered_rates(
    make: Callable[..., Runner], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One key each."""
    model = linear()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}]
    run = {"model": model, "optimizer": torch.optim.SGD(groups, lr=0.1), "log_level": "INFO"}
    make(run=run).train()
    last = rows(tmp_path / "run")[-1]
    assert (last["train/lr/0"], last["train/lr/1"]) == (0.1, 0.01)
    assert "train/lr/0=0.1 train/lr/1=0.01" in capsys.readouterr().out
    assert "   lr 1.0e-01 1.0e-02   " in (tmp_path / "run/log.txt").read_text(encoding="utf-8")


def test_several_optimizers_have_rates_and_norms_by_name(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Neither is taken for a loss in the epoch's line."""

    def both(model: nn.Module, batch: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        outputs = train_step(model, batch)
        optim_wrapper["w"].update_params(outputs["loss"])
        optim_wrapper["b"].update_params(train_step(model, batch)["loss"])
        return outputs

    model = linear()
    wrappers = {
        "w": OptimWrapper(torch.optim.SGD([model.weight], lr=0.1), clip_grad={"max_norm": 1.0}),
        "b": torch.optim.SGD([model.bias], lr=0.01),
    }
    make(run={"model": model, "optim_wrapper": wrappers, "train_step": both}).train()
    last = rows(tmp_path / "run")[-1]
    assert last.keys() == {"step", "epoch", "train/loss", "train/w.lr", "train/b.lr", "train/w.grad_norm"}
    assert (last["train/w.lr"], last["train/b.lr"]) == (0.1, 0.01)
    (line,) = (x for x in (tmp_path / "run/log.txt").read_text(encoding="utf-8").splitlines() if "epoch 2/2" in x)
    assert line.partition("train/loss")[2].split()[1:4] == ["lr", "1.0e-01", "1.0e-02"]


def test_a_loss_that_is_no_number_is_logged_as_it_is(make: Callable[..., Runner], tmp_path: Path) -> None:
    """The log is where one looks for it."""

    def broken(model: nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": train_step(model, batch)["loss"] * math.nan}

    make(run={"train_step": broken, "epochs": 1}).train()
    assert math.isnan(rows(tmp_path / "run")[0]["train/loss"])


def test_a_test_has_a_row_at_the_step_of_the_training(make: Callable[..., Runner], tmp_path: Path) -> None:
    """So has a validation on its own; without a training the step is 0."""
    run = {"val": True, "test_dataloader": batches(1)}
    runner = make(run=run)
    runner.val()
    runner.train()
    runner.test()
    found = [(row["step"], row["epoch"], "test/mse" in row) for row in rows(tmp_path / "run") if len(row) == 3]
    assert found == [(0, 0, False), (2, 1, False), (4, 2, False), (4, 2, True)]


def test_a_run_that_only_tests_has_its_rows(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Nothing of a training is asked for."""
    run = {"val": True, "test_dataloader": batches(1), "train_dataloader": None, "train_cfg": None, "optimizer": None}
    make(run=run).test()
    (row,) = rows(tmp_path / "run")
    assert (row["step"], row["epoch"]) == (0, 0)


def test_an_epoch_under_way_has_lines_where_nobody_sees_the_bar(
    make: Callable[..., Runner], capsys: pytest.CaptureFixture[str]
) -> None:
    """At the rows after so many seconds without one, headed by the iteration; the epoch's own line is as ever."""
    run = {"count": 4, "epochs": 1, "train_cfg": {"max_epochs": 1}, "log_level": "INFO"}
    make(run=run, interval=2, line_every=1e-9).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "train/loss" in line]
    headings = [heading for line in lines for heading in re.findall(r"[a-z]+ \d/\d", line)]
    assert headings == ["iter 2/4", "iter 4/4", "epoch 1/1"]


def test_thirty_seconds_of_an_epoch_are_silent(make: Callable[..., Runner], capsys: pytest.CaptureFixture[str]) -> None:
    """By default: a short one has its own line alone."""
    make(run={"count": 4, "epochs": 1, "train_cfg": {"max_epochs": 1}, "log_level": "INFO"}, interval=2).train()
    assert capsys.readouterr().out.count("train/loss") == 1


# Where they go


def test_receivers_of_on_log_get_the_same_rows_as_plain_floats(make: Callable[..., Runner], tmp_path: Path) -> None:
    """With them every tracker is a plain receiver."""
    tracker = Tracker()
    make(run={"val": True, "test_dataloader": batches(1), "custom_hooks": [tracker]}, interval=1).train()
    logged = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert tracker.rows == [{key: value for key, value in row.items() if key != "epoch"} for row in logged]


def test_another_folder_gets_one_named_like_the_run(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Not one within the other at a second session; the run's own folder has no rows then."""
    runner = make(run={"val": True, "test_dataloader": batches(1)}, out_dir=tmp_path / "logs", tensorboard=True)
    runner.train()
    runner.test()
    assert sorted(str(path.relative_to(tmp_path / "logs")) for path in (tmp_path / "logs").glob("*/*")) == [
        "run/log.jsonl",
        "run/tensorboard",
    ]
    assert "test/mse" in rows(tmp_path / "logs/run")[-1]
    assert not (tmp_path / "run/log.jsonl").exists()


def test_another_folder_is_not_shared_with_another_run(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Two runs whose folders have one name would write one log."""
    make(out_dir="logs").train()
    other = make(run={"work_dir": tmp_path / "elsewhere/run", "bus": Bus()}, out_dir="logs")
    for _ in range(2):
        with pytest.raises(RunExistsError) as caught:
            other.train()
        assert str(caught.value) == (
            "LoggerHook(out_dir='logs'): logs/run/log.jsonl is another run's; choose another out_dir or work_dir."
        )
    assert steps(tmp_path / "logs/run") == [2, 4]


def test_a_resumed_run_goes_on_in_the_other_folder(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Its own log is no other run's."""
    hooks = {"logger": {"out_dir": "logs"}}
    make_runner(default_hooks=hooks, epochs=1).train()
    make_runner(default_hooks=hooks, epochs=2, resume=True, bus=Bus()).train()
    assert steps(tmp_path / "logs/run") == [2, 4]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of event files as TensorBoard itself reads them."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def logged_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What event files should hold by ``log.jsonl``: the same in single precision."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key in row.keys() - {"step", "epoch"}:
            found.setdefault(key, []).append((row["step"], torch.tensor(row[key], dtype=torch.float32).item()))
    return found


def test_event_files_have_the_same_keys_steps_and_values(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Read back with TensorBoard's own reader, over two sessions of a run."""
    runner = make(run={"val": True, "test_dataloader": batches(1)}, interval=1, tensorboard=True)
    runner.train()
    runner.test()
    found = events(tmp_path / "run/tensorboard")
    assert found == logged_events(tmp_path / "run")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4]
    assert found["test/mse"][0][0] == 4


def test_without_tensorboard_there_are_no_event_files(make: Callable[..., Runner], tmp_path: Path) -> None:
    """Nor with it, where a run logs nothing."""
    make().train()
    assert not (tmp_path / "run/tensorboard").exists()
    runner = make(run={"work_dir": tmp_path / "b", "bus": Bus()}, tensorboard=True)
    runner.on("before_train")(lambda runner: runner.stop())
    runner.train()
    assert not (tmp_path / "b/tensorboard").exists()


@pytest.mark.slow
def test_a_missing_tensorboard_is_an_error_that_says_what_to_install(tmp_path: Path) -> None:
    """At construction, in an interpreter that has every package but that one."""
    site = Path(torch.__file__).parent.parent
    for entry in site.iterdir():
        if not entry.name.startswith("tensorboard"):
            (tmp_path / entry.name).symlink_to(entry)
    code = """
from eventrunner.errors import MissingExtraError
from eventrunner.hooks import LoggerHook

LoggerHook()
try:
    LoggerHook(tensorboard=True)
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{Path(__file__).parent.parent}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = "LoggerHook(tensorboard=True) needs tensorboard: pip install 'eventrunner[tensorboard]'.\n"
    assert (done.stdout, done.stderr) == (expected, "")


# A resumed run is one history


def interrupted(make_runner: MakeRunner, folder: Path, *hooks: Hook, **changes: Any) -> Runner:
    """A run in *folder*, begun or gone on with; one of *hooks* may end it."""
    chosen: dict[str, Any] = {
        "work_dir": folder,
        "bus": Bus(),
        "resume": True,
        "val": True,
        "count": 5,
        "epochs": 4,
        "custom_hooks": list(hooks),
        "default_hooks": {"logger": {"interval": 2, "ignore_last": False, "tensorboard": True}},
        **changes,
    }
    runner = make_runner(**chosen)
    if any(isinstance(hook, Dies) for hook in hooks):
        with pytest.raises(SystemExit):
            runner.train()
    else:
        runner.train()
    return runner


def killed(make_runner: MakeRunner, folder: Path, *hooks: Hook, **changes: Any) -> None:
    """The same in a process of its own, which ends without any farewell."""
    child = os.fork()
    if not child:
        try:
            interrupted(make_runner, folder, *hooks, **changes)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def age(folder: Path, seconds: int) -> None:
    """Make event files older: they are read in the order of the seconds in their names, and no run ends in one."""
    for path in (folder / "tensorboard").glob("events.out.tfevents.*"):
        began, _, rest = path.name.removeprefix("events.out.tfevents.").partition(".")
        path.rename(path.with_name(f"events.out.tfevents.{int(began) - seconds}.{rest}"))


class Kills(Dies):
    """Ends the process there and then."""

    def die(self, runner: Runner) -> None:
        if runner.iter >= self.counted:
            os._exit(9)


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """Scalars by key, but for those that differ from run to run."""
    return {key: value for key, value in found.items() if key not in TIMES}


@pytest.mark.parametrize("changes", [{}, {"train_cfg": {"max_iters": 20, "val_interval": 4}}], ids=["epochs", "iters"])
@pytest.mark.parametrize(
    "deaths",
    [
        [("after_train_iter", 7)],
        [("after_train_epoch", 10)],
        [("before_val", 10), ("after_val", 10)],
        [("after_val_epoch", 12), ("before_train_iter", 13), ("after_train_iter", 19)],
        [("on_log", 9)],
        [("after_run", 20), ("before_train", 20)],
    ],
    ids=["midway", "epoch's end", "around a validation", "thrice", "while logging", "after the end"],
)
@pytest.mark.parametrize("end", [interrupted, killed])
@pytest.mark.slow
def test_broken_off_and_resumed_the_log_is_that_of_one_run(
    make_runner: MakeRunner, tmp_path: Path, end: Any, deaths: list[tuple[str, int]], changes: dict[str, Any]
) -> None:
    """Line by line but for the clock's part, whatever was written after the last save; event files the same."""
    hooks = {"logger": {"interval": 2, "ignore_last": False, "tensorboard": True}}
    changes = {**changes, "default_hooks": {**hooks, "checkpoint": {"interval": 3, "by_epoch": False}}}
    straight = interrupted(make_runner, tmp_path / "straight", **changes)
    for site, counted in deaths:
        end(make_runner, tmp_path / "broken", (Kills if end is killed else Dies)(site, counted), **changes)
        age(tmp_path / "broken", 100)
    resumed = interrupted(make_runner, tmp_path / "broken", **changes)
    assert same(weights(resumed.model), weights(straight.model))
    assert rows(tmp_path / "broken") == rows(tmp_path / "straight")
    found = events(tmp_path / "broken/tensorboard")
    assert without_times(found) == without_times(events(tmp_path / "straight/tensorboard"))
    assert found == logged_events(tmp_path / "broken")


def test_a_torn_last_line_is_no_hindrance(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The disk may have got half of it."""
    straight = tmp_path / "straight"
    interrupted(make_runner, straight)
    interrupted(make_runner, tmp_path / "killed", Dies("after_train_iter", 12))
    with open(tmp_path / "killed/log.jsonl", "a") as file:
        file.write('{"step": 14, "epo')
    interrupted(make_runner, tmp_path / "killed")
    assert rows(tmp_path / "killed") == rows(straight)


def test_the_window_reaches_back_over_a_resume(make_runner: MakeRunner, tmp_path: Path) -> None:
    """The first row after it is smoothed with iterations before it."""
    hooks = {"logger": {"interval": 1, "window_size": 1_000}}
    interrupted(make_runner, tmp_path / "straight", default_hooks=hooks)
    interrupted(make_runner, tmp_path / "killed", Dies("before_train_iter", 12), default_hooks=hooks)
    interrupted(make_runner, tmp_path / "killed", default_hooks=hooks)
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")


@pytest.mark.slow
def test_training_on_in_one_process_repeats_no_row(make_runner: MakeRunner, tmp_path: Path) -> None:
    """A second train() after a stop appends; so it does where the first was itself resumed."""
    interrupted(make_runner, tmp_path / "straight")
    interrupted(make_runner, tmp_path / "stopped", Dies("before_train_iter", 6))

    class Pause(Hook):
        def after_train_iter(self, runner: Runner) -> None:
            if runner.iter in (7, 9, 14):
                runner.stop("pause")

    runner = interrupted(make_runner, tmp_path / "stopped", Pause())
    for _ in range(3):
        runner.train()
    found, expected = rows(tmp_path / "stopped"), rows(tmp_path / "straight")
    assert [row for row in found if "val/mse" not in row] == [row for row in expected if "val/mse" not in row]
    assert [row["step"] for row in found if "val/mse" in row] == [5, 10, 15, 20]


# What it costs


class Reads(TorchDispatchMode):
    """Notes what fetches numbers from tensors, which on a GPU is a wait: one by one, or stacked, as a history does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.stack, torch.ops.aten._to_copy):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_quiet_iteration_reads_no_tensor(make: Callable[..., Runner]) -> None:
    """All default hooks together fetch nothing from a device but where a row is due, and there the losses at once."""
    reads, quiet, loud = Reads(), [], []

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        loss = train_step(model, batch)["loss"]
        return {"loss": loss, "shown": loss.detach().as_subclass(OnDevice)}

    def before(runner: Runner, batch_idx: int) -> None:
        reads.seen.clear()

    def after(runner: Runner, batch_idx: int) -> None:
        (loud if (batch_idx + 1) % 4 == 0 else quiet).extend(reads.seen)

    runner = make(run={"default_hooks": {"logger": {"interval": 4}}, "train_step": step, "count": 8, "epochs": 1})
    runner.on("before_train_iter", priority="HIGHEST")(before)
    runner.on("after_train_iter", priority="LOWEST")(after)
    with reads:
        runner.train()
    on_the_cpu = "aten._local_scalar_dense.default"  # the loss itself, which is there already
    assert quiet == [on_the_cpu] * 6
    assert loud == [on_the_cpu, "aten.stack.default"] * 2


# Rows that come fast


def test_rows_that_come_fast_are_on_the_disk_before_a_save_of_theirs_is_committed(
    make: Callable[..., Runner], tmp_path: Path
) -> None:
    """They are written in the background, but never after a save of theirs: else a resumed run had a gap."""
    seen: dict[int, list[int]] = {}
    hooks = {"logger": {"interval": 1}, "checkpoint": {"interval": 4}}
    runner = make(run={"default_hooks": hooks, "count": 24, "train_cfg": {"max_iters": 24}})

    @runner.on("after_commit_checkpoint")
    def look(runner: Runner, path: Path, step: int) -> None:
        seen[step] = [found for found in steps(runner.work_dir) if found <= step]

    runner.train()
    assert seen == {step: list(range(1, step + 1)) for step in range(4, 25, 4)}


def test_rows_that_come_fast_survive_a_failure(make: Callable[..., Runner]) -> None:
    """All that were made before it are there, in order."""

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        if runner.iter == 17:
            raise ArithmeticError("boom")
        return train_step(model, batch)

    runner = make(interval=1, run={"train_step": step, "count": 24, "train_cfg": {"max_iters": 24}})
    with pytest.raises(ArithmeticError):
        runner.train()
    assert steps(runner.work_dir) == list(range(1, 18))


def test_a_row_that_no_other_comes_after_is_written_soon(make: Callable[..., Runner]) -> None:
    """However long the training then takes: who looks why it hangs finds the rows before."""
    done: list[list[int]] = []

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        if runner.iter == 3:
            until = time.monotonic() + 30
            while steps(runner.work_dir) != [1, 2, 3] and time.monotonic() < until:
                time.sleep(0.01)
            done.append(steps(runner.work_dir))
        return train_step(model, batch)

    runner = make(interval=1, run={"train_step": step, "count": 4, "epochs": 1})
    runner.train()
    assert done == [[1, 2, 3]]


def test_a_line_comes_before_what_the_script_prints_next(
    make: Callable[..., Runner], capsys: pytest.CaptureFixture[str]
) -> None:
    """However fast lines come: nothing waits for more of them."""

    def step(model: nn.Module, batch: Any) -> dict[str, Any]:
        print(f"step {runner.iter}")
        return train_step(model, batch)

    run = {"train_step": step, "count": 9, "train_cfg": {"max_iters": 9}, "log_level": "INFO"}
    runner = make(interval=1, run=run)
    runner.train()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step") or 'event="iter' in line]
    assert [line[:4] for line in said] == ["step", "time"] * 9


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "LoggerHook(interval=0): give an int of 1 or more."),
        (dict(interval=2.0), "LoggerHook(interval=2.0): give an int of 1 or more."),
        (dict(interval=True), "LoggerHook(interval=True): give an int of 1 or more."),
        (dict(window_size=0), "LoggerHook(window_size=0): give an int from 1 to 1,000."),
        (dict(window_size=1001), "LoggerHook(window_size=1001): give an int from 1 to 1,000."),
        (dict(ignore_last="no"), "LoggerHook(ignore_last='no'): give True or False."),
        (dict(log_metric_by_epoch=1), "LoggerHook(log_metric_by_epoch=1): give True or False."),
        (dict(tensorboard=None), "LoggerHook(tensorboard=None): give True or False."),
        (dict(out_dir=3), "LoggerHook(out_dir=3): give a folder's path."),
        (dict(out_dir=""), "LoggerHook(out_dir=''): give a folder's path."),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    """In one sentence that says what is allowed instead."""
    with pytest.raises(OptionError) as caught:
        LoggerHook(**options)
    assert str(caught.value) == message


def test_a_misspelt_option_is_refused_with_the_nearest(make: Callable[..., Runner]) -> None:
    """When the Runner is made."""
    with pytest.raises(OptionError) as caught:
        make(intervall=2)
    assert str(caught.value) == "LoggerHook has no option 'intervall'; did you mean 'interval'?"


def test_files_are_closed_when_the_run_is_over(make: Callable[..., Runner]) -> None:
    """After a failure too: an unclosed one would warn, which is an error here."""

    def broken(model: nn.Module, batch: Any) -> dict[str, Any]:
        raise RuntimeError("broken")

    runner = make(run={"train_step": broken, "val": True}, tensorboard=True)
    runner.val()
    with pytest.raises(RuntimeError, match="broken"):
        runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, LoggerHook))
    assert (hook._rows, hook._events, hook._bar) == (None, None, None)

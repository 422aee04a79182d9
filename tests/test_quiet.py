"""What a quiet iteration does: nothing is timed here, calls are counted and memory is, which repeat on any machine.

A quiet iteration is one at which no row is due, no save, and no validation. Whoever changes these numbers measures
before and after: ``python benchmarks/iteration.py --only bare runner``.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import batches, linear, train_step
from torch.optim.lr_scheduler import StepLR

import eventrunner
from eventrunner.bus.bus import Bus
from eventrunner.bus.ledger import TIMED, WHOLE, Ledger
from eventrunner.hook import Hook
from eventrunner.runner import Runner

PACKAGE = str(Path(eventrunner.__file__).parent)
FIRST, LAST = 40, 60
"""The iterations that are looked at: no first ones, and none at which the laps of an emission are added up."""

# By function, how often it is called in a quiet iteration with the six default hooks and a scheduler per iteration.
QUIET_CALLS = {
    "TrainLoop.run_iter": 1,
    "DataPosition.batches": 1,  # a generator that goes on
    "OptimWrapper.update_params": 1,
    "OptimWrapper.step": 1,
    "OptimWrapper.zero_grad": 1,
    "before_train_iter.emit": 1,
    "after_train_iter.emit": 1,
    "RuntimeInfoHook.before_train_iter": 1,
    "RuntimeInfoHook.after_train_iter": 1,
    "scalar_of": 1,  # the loss
    "IterTimerHook._before_iter": 1,  # and not Hook's method that would pass on to it
    "IterTimerHook._after_iter": 1,
    "LoggerHook.after_train_iter": 1,
    "ParamSchedulerHook.after_train_iter": 1,
    "CheckpointHook.after_train_iter": 1,
}
# What these call that is written in C: nothing that formats, looks something up by inspection, or copies a tensor.
QUIET_C_CALLS = {"perf_counter", "append", "len", "isinstance", "type", "id", "items", "get", "numel", "item"}
QUIET_C_CALLS |= {"_profiler_enabled", "vars"}  # whether gradients may be let go of without the optimizer's own way

_NOT_OURS = ("Runner.iter", "iter", "_before_step")
"""What the step here asks for, and the hook of torch's that stays in a process after its first save."""

TURN = TIMED + WHOLE
"""Iterations after which as much is held of them as before: some timed by receiver, the others as a whole."""


class Calls:
    """Counts the calls that the package makes, in Python and in C, while it is ``on``."""

    def __init__(self) -> None:
        self.python: Counter[str] = Counter()
        self.c: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.on = False

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.on or not _is_ours(frame):
            return
        if event == "call":
            code = frame.f_code
            self.python[_site(code.co_filename) + getattr(code, "co_qualname", code.co_name)] += 1
            self.files[code.co_filename] += 1
        elif event == "c_call":
            self.c[argument.__name__] += 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within the block, where ``on`` is set."""
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((PACKAGE, "<receivers of"))


def _site(filename: str) -> str:
    """``after_train_iter.`` for the generated function of that site."""
    return filename.removeprefix("<receivers of ").removesuffix(">") + "." if filename.startswith("<") else ""


def quiet_run(make_runner: MakeRunner, **options: Any) -> Runner:
    """A run of 80 iterations of one pass, whose rows and saves come at the end."""
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hooks = {"logger": {"interval": 80}, "checkpoint": {"interval": 80}}
    given = {
        "model": model,
        "optimizer": optimizer,
        "param_scheduler": {"scheduler": StepLR(optimizer, 1000), "by_epoch": False},
        "train_dataloader": batches(80),
        "train_cfg": {"max_iters": 80},
        "default_hooks": hooks,
    }
    return make_runner(**{**given, **options})


def counted(make_runner: MakeRunner, **options: Any) -> Calls:
    """The calls of the quiet iterations of such a run."""
    gc.collect()  # else what earlier runs have left may be cleared away while calls are counted
    calls = Calls()

    def step(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        done = runner.iter
        if done in (FIRST, LAST):
            calls.on = done == FIRST
            calls.python.clear() if calls.on else None
            calls.c.clear() if calls.on else None
        return train_step(model, batch)

    runner = quiet_run(make_runner, train_step=step, **options)
    with calls.counting():
        runner.train()
    return calls


def per_iteration(calls: Counter[str]) -> dict[str, float]:
    """Each count by the number of iterations."""
    return {name: count / (LAST - FIRST) for name, count in calls.items() if name not in _NOT_OURS}


def test_a_quiet_iteration_makes_these_calls_and_no_other(make_runner: MakeRunner) -> None:
    """Each is some microseconds of an iteration that may take fifty: one more has to be worth that."""
    assert per_iteration(counted(make_runner).python) == QUIET_CALLS


def test_a_quiet_iteration_formats_nothing_and_inspects_nothing(make_runner: MakeRunner) -> None:
    """No string is made, no attribute looked up by name, no tensor copied."""
    called = set(counted(make_runner).c)
    assert called <= QUIET_C_CALLS, called - QUIET_C_CALLS
    assert {"perf_counter", "append"} <= called  # it has looked at all


def test_a_loop_without_hooks_calls_five_functions(make_runner: MakeRunner) -> None:
    """The iteration, the batch, and the optimizer's three; no site is passed where nobody listens."""
    none = dict.fromkeys(("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"))
    calls = counted(make_runner, default_hooks=none)
    loop = ("TrainLoop.run_iter", "DataPosition.batches")
    optimizer = ("OptimWrapper.update_params", "OptimWrapper.step", "OptimWrapper.zero_grad")
    assert per_iteration(calls.python) == dict.fromkeys(loop + optimizer, 1)


def test_a_runner_is_made_without_reading_its_hooks_anew(make_runner: MakeRunner) -> None:
    """The classes of the default hooks have been read by the first one of a process; 1,500 calls are left."""
    first = quiet_run(make_runner)
    calls = Calls()
    gc.collect()  # else the connections of earlier runs may be cleared away meanwhile
    with calls.counting():
        calls.on = True
        quiet_run(make_runner)
        calls.on = False
    del first
    assert not any("_Reader" in name or "_is_slip" in name for name in calls.python)
    assert calls.python.total() < 2000


class Elsewhere(Hook):
    """Listens, but not to the sites of an iteration."""

    def before_train(self, runner: Runner) -> None:
        """Nothing."""


def test_a_hook_costs_nothing_at_a_site_that_it_does_not_implement(make_runner: MakeRunner) -> None:
    """It isn't called there to do nothing."""
    assert per_iteration(counted(make_runner, custom_hooks=[Elsewhere() for _ in range(10)]).python) == QUIET_CALLS


def test_receivers_of_other_sites_and_senders_cost_nothing(make_runner: MakeRunner) -> None:
    """A thousand of them change no call of an iteration."""
    bus = Bus()
    others = [site for site in bus if site.name not in ("before_train_iter", "after_train_iter")]
    senders = [Other(str(index)) for index in range(10)]
    for index in range(1000):
        bus.after_train_iter.connect(lambda index=index: None, senders[index % 10])
        others[index % len(others)].connect(lambda index=index: None, senders[index % 10])
    assert len(bus.after_train_iter.all_connections()) == 1000
    assert per_iteration(counted(make_runner, bus=bus).python) == QUIET_CALLS


class Other:
    """A sender that isn't the run."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("count", [1, 6, 32])
def test_an_emission_makes_one_call_per_receiver(count: int, timed: bool) -> None:
    """And its own; kept account of or not. Nothing is looked up or unpacked in between."""
    bus, sender, calls = Bus(), Other("me"), Calls()
    called: list[int] = []
    for index in range(count):
        bus.after_train_iter.connect(called.append if index == 0 else _do_nothing(), sender)
    emitters = bus.emitters(sender, Ledger() if timed else None)
    assert emitters.after_train_iter is not None
    emitters.after_train_iter(sender, 0, None, None)  # the first one compiles
    with calls.counting():
        calls.on = True
        emitters.after_train_iter(sender, 0, None, None)
        calls.on = False
    assert calls.python == {"after_train_iter.emit": 1}  # the receivers' own frames are not the package's
    clocks = {"perf_counter": count + 1, "append": 2} if timed else {"append": 1}
    assert {name: calls.c[name] for name in ("perf_counter", "append") if calls.c[name]} == clocks


def _do_nothing() -> Callable[..., None]:
    def receiver(runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Nothing."""

    return receiver


def test_a_row_of_the_log_takes_few_calls_through_few_files(make_runner: MakeRunner) -> None:
    """With its line, above a quiet iteration. Behind a step of a model, each of them is fetched anew."""
    row = Calls()

    def step(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        row.on = runner.iter == 59
        return train_step(model, batch)

    hooks = {"logger": {"interval": 20}, "checkpoint": {"interval": 80}}
    runner = quiet_run(make_runner, train_step=step, default_hooks=hooks)
    with row.counting():
        runner.train()
    assert (runner.work_dir / "log.txt").read_text().count("iter 60/80") == 1
    assert row.python["RunLog.write"] == 1  # it has looked at all
    assert row.python.total() - sum(QUIET_CALLS.values()) <= 120
    quiet = counted(make_runner, work_dir=runner.work_dir.with_name("quiet")).files
    more = {name for name, count in row.files.items() if count > quiet[name] / (LAST - FIRST) and name[0] != "<"}
    assert len(more) <= 10, more


def test_a_site_without_receivers_is_none_to_a_loop() -> None:
    """So that passing it is a look and no call."""
    emitters = Bus().emitters(Other("me"))
    assert emitters.after_train_iter is None


@pytest.mark.slow
def test_a_quiet_iteration_leaves_nothing_behind_but_its_numbers(make_runner: MakeRunner) -> None:
    """Four floats, their places, and the moments of a few emissions, which are aggregated every so often."""
    grown: list[int] = []
    mark = 0

    def step(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        nonlocal mark
        if runner.iter >= TURN and runner.iter % TURN == 0:
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
            grown.append(held - mark)
            mark = held
        return train_step(model, batch)

    count = 5 * TURN
    runner = quiet_run(
        make_runner,
        train_step=step,
        train_dataloader=batches(count),
        train_cfg={"max_iters": count},
        default_hooks={"logger": {"interval": count}, "checkpoint": {"interval": count}},
    )
    tracemalloc.start()
    try:
        runner.train()
    finally:
        tracemalloc.stop()
    each = [growth / TURN for growth in grown[1:]]
    assert 3 * 24 <= sum(each) / len(each) <= 4 * 24 + 4 * 8 + 40, each  # a rate that stays is one float


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_quiet_iteration_does_not_wait_for_the_device(make_runner: MakeRunner) -> None:
    """Nothing in it reads a tensor, so torch, asked to raise at whatever waits, doesn't."""

    def step(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        if runner.iter in (FIRST, LAST):
            torch.cuda.set_sync_debug_mode("error" if runner.iter == FIRST else "default")
        return train_step(model, batch)

    runner = quiet_run(
        make_runner,
        train_step=step,
        device="cuda",
        train_dataloader=[tuple(part.cuda() for part in batch) for batch in batches(80)],
    )
    try:
        runner.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")

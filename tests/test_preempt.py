"""Signals that ask a run to end: what they are to its children and its workers, and Ctrl-C."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MeanSquaredError, batches, same, val_step, weights
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eventrunner.checkpoint import Store, verify_checkpoint
from eventrunner.runner import Runner

MakeRunner = Callable[..., Runner]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C is Python's own to begin with: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A program with a tiny run at hand: what it has printed, and how it has ended."""
    start = f"""
        import multiprocessing, os, signal, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from tiny import *
        from eventrunner import Runner
        run = lambda **changes: Runner(**options(work_dir="run", default_hooks={{"logger": None}}, **changes))
        ask = lambda number: os.kill(os.getpid(), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    """
    command = [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(body)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


# Children


def terminate_a_child() -> int | None:
    """How a forked child ends that is terminated as it works."""
    child = FORK.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(50)
    return child.exitcode


def use_a_pool() -> list[int]:
    """What a pool computes that is ended by its ``with``."""
    with FORK.Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def terminate_a_program() -> int:
    """How another program ends that is terminated."""
    with subprocess.Popen(["sleep", "60"]) as program:
        program.terminate()
    return program.returncode


CHILDREN = {terminate_a_child: -signal.SIGTERM, use_a_pool: [1, 2], terminate_a_program: -signal.SIGTERM}


class Calls(Dataset[Tensor]):
    """Data that has children of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([[1.0, 2.0], [float(self.call() == CHILDREN[self.call]), 3.0]])


def first_output(model: torch.nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """A step that trains on next to nothing."""
    return {"loss": model(batch).sum()}


class ForkingError(MeanSquaredError):
    """A metric that has children of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call, self.found = call, []

    def compute(self) -> Tensor:
        self.found.append(self.call())
        return super().compute()


@pytest.mark.parametrize("call", CHILDREN, ids=lambda call: call.__name__)
@pytest.mark.parametrize("offload", [False, True], ids=["inline", "offloaded"])
def test_a_child_of_a_receiver_has_the_default_handlers(
    make_runner: MakeRunner, call: Callable[[], Any], offload: bool
) -> None:
    """terminate() ends it, whichever thread has made it."""
    runner, found = make_runner(epochs=1), []
    runner.on("before_train_epoch", offload=offload)(lambda: found.append(call()))
    runner.train()
    assert found == [CHILDREN[call]]


@pytest.mark.parametrize("call", CHILDREN, ids=lambda call: call.__name__)
def test_a_child_of_a_metric_has_the_default_handlers(make_runner: MakeRunner, call: Callable[[], Any]) -> None:
    """terminate() ends it."""
    metric = ForkingError(call)
    make_runner(epochs=1, val_dataloader=batches(1), val_step=val_step, val_evaluator={"mse": metric}).train()
    assert metric.found == [CHILDREN[call]]


@pytest.mark.parametrize(
    ("call", "workers", "method"),
    [
        (terminate_a_child, 0, None),
        (use_a_pool, 0, None),
        (terminate_a_program, 0, None),
        (terminate_a_program, 1, "fork"),
        (terminate_a_program, 1, "spawn"),
    ],
)
@pytest.mark.slow
def test_a_child_of_a_dataset_has_the_default_handlers(
    make_runner: MakeRunner, call: Callable[[], Any], workers: int, method: str | None
) -> None:
    """terminate() ends it, in a worker as well: a worker outlasts the run's signals, and hands that on to nobody."""
    loader = DataLoader(Calls(call), None, num_workers=workers, multiprocessing_context=method)
    runner, seen = (
        make_runner(epochs=1, train_dataloader=loader, train_step=first_output),
        [],
    )
    runner.on("after_train_iter")(lambda data_batch: seen.append(float(data_batch[1, 0])))
    runner.train()
    assert seen == [1.0, 1.0]


@pytest.mark.slow
def test_a_daemonic_child_doesnt_keep_the_interpreter(tmp_path: Path) -> None:
    """It is terminated at exit, after a signal to its parent as well."""
    done = script(
        tmp_path,
        """
        runner = run()
        @runner.on("before_train_epoch", once=True)
        def begin():
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True).start()
            ask(signal.SIGUSR1)
        runner.train()
        """,
    )
    assert done.returncode == 75, done.stderr


@pytest.mark.parametrize("apart", [0.0, 0.4], ids=["at once", "when the run has ended"])
@pytest.mark.parametrize("second", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.long)])
@pytest.mark.slow
def test_what_comes_within_a_second_is_one_request_until_the_process_exits(
    tmp_path: Path, second: str, apart: float
) -> None:
    """Whichever of the signals it is; systemd, for one, sends two."""
    done = script(
        tmp_path,
        f"""
        import threading
        runner = run()
        @runner.on("before_train_iter", once=True)
        def twice():
            ask(signal.SIGTERM)
            threading.Timer({apart}, ask, [signal.{second}]).start()
        runner.train()
        """,
    )
    assert done.returncode == 75, done.stderr
    assert Store(tmp_path / "run").names() == ["iter_1"]


@pytest.mark.slow
def test_a_signal_after_the_run_has_ended_is_the_programs(tmp_path: Path) -> None:
    """It may have gone on, and a second later it isn't that request any more."""
    done = script(
        tmp_path,
        """
        runner = run()
        runner.on("before_train_iter", once=True)(lambda: ask(signal.SIGTERM))
        try:
            runner.train()
        except SystemExit:
            time.sleep(1.1)
        ask(signal.SIGTERM)
        time.sleep(60)
        """,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_a_run_after_one_that_was_asked_to_end_can_be_asked_again(make_runner: MakeRunner) -> None:
    """And when it ends unasked, the handlers are the default ones."""
    for asked in (True, True, False):
        runner = make_runner(epochs=1, work_dir="again", resume=True)
        if asked:
            runner.on("before_train")(lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(SystemExit):
                runner.train()
    runner.train()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
@pytest.mark.slow
def test_workers_that_are_left_end_with_the_interpreter(tmp_path: Path, method: str, persistent: bool) -> None:
    """In silence, though they outlast SIGTERM: also those of a pass that a failure has left, and one that hangs."""
    code = f"""
        import multiprocessing, time
        import torch
        from torch.utils.data import DataLoader, Dataset
        from tiny import *
        from eventrunner import Runner

        class Hanging(Dataset):
            def __len__(self):
                return 9
            def __getitem__(self, index):
                return time.sleep(60 * (index == 8)) or index

        def step(model, batch):
            if batch[0] == 4:
                print(*(each.pid for each in multiprocessing.active_children()))
                raise SystemExit(3)
            return {{"loss": model(torch.zeros(1, 2)).sum()}}

        if __name__ == "__main__":
            loader = DataLoader(
                Hanging(), 1, num_workers=2, multiprocessing_context={method!r}, persistent_workers={persistent}
            )
            Runner(**options(train_dataloader=loader, train_step=step, default_hooks=QUIET, work_dir="run")).train()
    """
    (tmp_path / "fit.py").write_text(textwrap.dedent(code))
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "fit.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, "")
    for pid in done.stdout.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


# Ctrl-C


@pytest.mark.parametrize("site", ["before_train_iter", "before_optimizer_step", "after_train_iter", "after_val_iter"])
def test_the_first_ctrl_c_finishes_the_iteration_and_saves(make_runner: MakeRunner, tmp_path: Path, site: str) -> None:
    """Then it is a KeyboardInterrupt, and every leaving site is passed."""
    runner = make_runner(count=3, epochs=9, val=True, default_hooks={"logger": None})
    passed: list[str] = []
    for each in ("on_exception", "after_train", "after_run"):
        runner.on(each)(lambda each=each: passed.append(each))
    done: list[int] = []
    runner.on("after_train_iter")(lambda runner: done.append(runner.iter + 1))
    start = 2 if site == "after_val_iter" else 5
    runner.on(site, start=start, once=True)(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        runner.train()
    assert type(caught.value) is KeyboardInterrupt  # else the shell doesn't learn of the signal
    assert passed == ["on_exception", "after_train", "after_run"]
    assert runner.stop_reason == "interrupted"
    steps = [verify_checkpoint(tmp_path / "run" / name).step for name in Store(tmp_path / "run").names()]
    assert max(steps) == done[-1] == runner.iter


def noisy(make_runner: MakeRunner, **changes: Any) -> Runner:
    """A run whose training and validation draw."""
    torch.manual_seed(0)
    x, y = map(torch.cat, zip(*batches(6), strict=True))
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    data = torch.utils.data.TensorDataset(x, y)
    evaluation = {"val_dataloader": DataLoader(data, 3, shuffle=True), "val_step": val_step}
    return make_runner(
        model=model,
        train_dataloader=DataLoader(data, 2, shuffle=True),
        epochs=3,
        val_evaluator={"mse": MeanSquaredError()},
        default_hooks={"logger": None},
        **evaluation,
        **changes,
    )


@pytest.mark.parametrize("site", ["before_train_epoch", "before_train_iter", "after_train_iter", "after_val_iter"])
def test_train_called_again_after_ctrl_c_goes_on_exactly(make_runner: MakeRunner, site: str) -> None:
    """As in a notebook, in a training and in a validation."""
    whole = noisy(make_runner, work_dir="whole").train()
    runner = noisy(make_runner)
    runner.on(site, start=2, once=True)(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert same(weights(runner.train()), weights(whole))
    assert runner.stop_reason == "completed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_asked_to_end_can_be_forgotten(make_runner: MakeRunner, number: signal.Signals) -> None:
    """A notebook that makes another needs its memory."""
    runner = make_runner()
    runner.on("before_train_iter", once=True)(lambda: signal.raise_signal(number))
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        runner.train()
    left = weakref.ref(runner)
    del runner
    gc.collect()
    assert left() is None


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path: Path) -> None:
    """Whatever it waits for: here a save that hangs, for which nobody waits ten minutes."""
    done = script(
        tmp_path,
        """
        import threading
        runner = run(epochs=9)
        @runner.on("after_train_iter", once=True)
        def ask_twice():
            ask(signal.SIGINT)
            threading.Timer(1.1, ask, [signal.SIGINT]).start()
        runner.on("after_train", offload=True)(lambda: time.sleep(60))
        began = time.monotonic()
        try:
            runner.train()
        finally:
            print(time.monotonic() - began < 30, runner.stop_reason)
        """,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "True interrupted\n"), done.stderr


def test_a_keyboard_interrupt_amid_an_iteration_saves_nothing(make_runner: MakeRunner, tmp_path: Path) -> None:
    """One that somebody raises: weights may have been half-way."""
    runner = make_runner(default_hooks={"logger": None})

    @runner.on("before_optimizer_step", start=2)
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert Store(tmp_path / "run").names() == []


def test_ctrl_c_that_the_program_handles_itself_is_left_to_it(make_runner: MakeRunner) -> None:
    """And is its own again after the run."""
    came: list[int] = []
    own = lambda number, frame: came.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, own)
    runner = make_runner(epochs=1)
    runner.on("before_train_iter", once=True)(lambda: signal.raise_signal(signal.SIGINT))
    runner.train()
    assert came == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own


def test_ctrl_c_ends_a_validation_and_a_test_at_their_next_batch(make_runner: MakeRunner) -> None:
    """There is nothing to save."""
    runner = make_runner(val=True, test_dataloader=batches(3), test_evaluator={"mse": MeanSquaredError()})
    seen: list[int] = []
    runner.on("after_test_iter")(lambda batch_idx: seen.append(batch_idx))
    runner.on("before_test_iter", once=True)(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        runner.test()
    assert seen == [0]

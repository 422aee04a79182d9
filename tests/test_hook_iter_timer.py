"""IterTimerHook in real runs, whose parts take times that are known from below."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MakeRunner
from tiny import QUIET, MeanSquaredError, batches, train_step, val_step

from eventrunner.errors import OptionError
from eventrunner.hook import Hook
from eventrunner.hooks import IterTimerHook
from eventrunner.runner import Runner

PAUSE = 0.005  # seconds; a sleep takes at least as long, so only lower bounds follow from it


class Slow:
    """A dataloader that takes a while for each batch."""

    def __init__(self, count: int, pause: float = PAUSE) -> None:
        self.count, self.pause = count, pause

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        for batch in batches(self.count):
            time.sleep(self.pause)
            yield batch


def values(runner: Runner, key: str) -> tuple[float, ...]:
    """The whole history of a scalar."""
    return runner.message_hub.get_scalar(key).data[0]


def slowly(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, and a pause."""

    def slow(model: Any, batch: Any) -> Any:
        time.sleep(PAUSE)
        return step(model, batch)

    return slow


@pytest.mark.parametrize("mode", ["val", "test"])
@pytest.mark.parametrize("name", ["time", "data_time"])
def test_a_metric_that_is_called_like_a_time_is_refused(make_runner: MakeRunner, mode: str, name: str) -> None:
    """When the Runner is made: both would be kept as one series."""
    given = {f"{mode}_dataloader": batches(1), f"{mode}_evaluator": {name: MeanSquaredError()}, "val_step": val_step}
    with pytest.raises(OptionError) as caught:
        make_runner(**given)
    assert str(caught.value) == (
        f"{mode}_evaluator has a metric {name!r}, but the run itself logs '{mode}/{name}', and would mix the two; give "
        "it another name."
    )


def test_data_time_is_the_wait_for_the_batch(make_runner: MakeRunner) -> None:
    """One value per iteration, and the whole iteration takes at least as long."""
    runner = make_runner(train_dataloader=Slow(3), default_hooks=QUIET)
    runner.train()
    waits, wholes = values(runner, "train/data_time"), values(runner, "train/time")
    assert len(waits) == len(wholes) == 6
    assert all(PAUSE <= wait <= whole for wait, whole in zip(waits, wholes, strict=True))


def test_time_is_the_whole_iteration(make_runner: MakeRunner) -> None:
    """The step's time is in it and not in the wait."""
    runner = make_runner(train_step=slowly(train_step), default_hooks=QUIET)
    runner.train()
    waits, wholes = values(runner, "train/data_time"), values(runner, "train/time")
    assert all(whole - wait >= PAUSE for wait, whole in zip(waits, wholes, strict=True))


@pytest.mark.parametrize("mode", ["val", "test"])
def test_evaluations_have_times_of_their_own(make_runner: MakeRunner, mode: str) -> None:
    """Under their own keys."""
    runner = make_runner(
        val=True, val_dataloader=Slow(2), test_dataloader=Slow(2), val_step=slowly(val_step), default_hooks=QUIET
    )
    getattr(runner, mode)()
    waits, wholes = values(runner, f"{mode}/data_time"), values(runner, f"{mode}/time")
    assert len(waits) == 2
    assert all(PAUSE <= wait <= whole - PAUSE for wait, whole in zip(waits, wholes, strict=True))
    assert "train/time" not in runner.message_hub.log_scalars


class Saves(Hook):
    """Saves at each iteration, and takes its time over it."""

    def after_train_iter(self, runner: Runner) -> None:
        runner.defer(lambda: runner.save_checkpoint(f"at_{runner.progress.step}"))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        time.sleep(20 * PAUSE)


class SlowError(MeanSquaredError):
    """Takes its time to compute."""

    def compute(self) -> Any:
        time.sleep(20 * PAUSE)
        return super().compute()


@pytest.mark.parametrize(
    "changes",
    [
        {"val": True, "val_dataloader": Slow(1, pause=20 * PAUSE)},
        {"val": True, "val_evaluator": {"mse": SlowError()}},
        {"custom_hooks": [Saves()]},
    ],
    ids=["validation", "its metrics", "saving"],
)
@pytest.mark.slow
def test_neither_validation_nor_saving_is_part_of_an_iteration(
    make_runner: MakeRunner, changes: dict[str, Any]
) -> None:
    """They come between two: what the iterations took and what those took fit into the whole, side by side."""
    runner = make_runner(train_cfg={"max_iters": 5, "val_interval": 1}, default_hooks=QUIET, **changes)
    began = time.perf_counter()
    runner.train()
    took = time.perf_counter() - began
    assert len(values(runner, "train/time")) == 5
    for key in ("train/time", "train/data_time"):
        assert sum(values(runner, key)) <= took - 5 * 20 * PAUSE


def etas(runner: Runner) -> list[float]:
    """What is left after each iteration, when the run is over."""
    found: list[float] = []

    def look(runner: Runner) -> None:
        found.append(runner.message_hub.get_info("eta"))

    runner.on("after_train_iter")(look)
    runner.train()
    return found


def test_the_remaining_time_is_reckoned_from_the_mean(make_runner: MakeRunner) -> None:
    """By the iterations done so far: at least what the pauses to come will take, and nothing at the end."""
    found = etas(make_runner(train_dataloader=Slow(3), default_hooks=QUIET))
    assert all(eta >= PAUSE * left for left, eta in zip(range(5, -1, -1), found, strict=True))
    assert found[-1] == 0


def test_a_resumed_run_reckons_with_its_own_iterations(make_runner: MakeRunner) -> None:
    """Those of the process before took their time in that one, and the first here is the first that was timed."""
    hooks = {"logger": None}
    make_runner(train_dataloader=Slow(3, pause=20 * PAUSE), epochs=1, default_hooks=hooks).train()
    runner = make_runner(train_dataloader=Slow(3, pause=PAUSE), epochs=2, resume=True, default_hooks=hooks)
    began = time.perf_counter()
    found = etas(runner)
    took = time.perf_counter() - began
    assert len(found) == 3
    assert 2 * PAUSE <= found[0] <= 2 * took


def test_without_a_length_no_remaining_time_is_told(make_runner: MakeRunner) -> None:
    """Nobody can know it."""

    class Stream:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches(2))

    runner = make_runner(train_dataloader=Stream(), default_hooks=QUIET)
    runner.train()
    assert runner.message_hub.get_info("eta") is None
    assert len(values(runner, "train/time")) == 4


def test_the_remaining_time_is_not_saved(make_runner: MakeRunner) -> None:
    """It says nothing about another process."""
    runner = make_runner(default_hooks=QUIET)
    runner.train()
    assert "eta" not in runner.message_hub.state_dict()["runtime_info"]


@pytest.mark.parametrize("mode", ["val", "test"])
def test_within_an_evaluation_the_remaining_time_is_the_evaluations(make_runner: MakeRunner, mode: str) -> None:
    """By its own batches; when it is over, within a training, it is the training's again."""
    loader = {"val_dataloader": Slow(3), "test_dataloader": Slow(3)}
    runner = make_runner(val=True, **loader, default_hooks=QUIET, train_dataloader=Slow(2, pause=20 * PAUSE))
    found: list[float | None] = []
    runner.on(f"after_{mode}_iter")(lambda runner: found.append(runner.message_hub.get_info("eta")))
    getattr(runner, mode)()
    assert found[0] is not None
    assert found[0] >= 2 * PAUSE
    assert found[2] == 0
    trainings: list[float] = []
    runner.on("after_val_epoch")(lambda runner: trainings.append(runner.message_hub.get_info("eta")))
    runner.train()
    assert trainings[0] >= 2 * 20 * PAUSE


def test_an_evaluation_of_unknown_length_leaves_an_unknown_time(make_runner: MakeRunner) -> None:
    """Nobody can know it, and before the first batch nobody can guess."""
    runner = make_runner(val=True, default_hooks=QUIET)
    found: list[float | None] = []
    runner.on("before_val_iter")(lambda runner: found.append(runner.message_hub.get_info("eta")))
    runner.val()
    assert found == [None]


def test_the_timers_own_names_are_mmengines(make_runner: MakeRunner) -> None:
    """``t`` on the clock of time.time, ``time_sec_tot`` and ``start_iter``, also for a subclass that writes to them."""
    seen: list[tuple[float, float]] = []

    class Timer(IterTimerHook):
        def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train") -> None:  # type: ignore[no-untyped-def]
            seen.append((time.time() - self.t, self.time_sec_tot))
            super()._after_iter(runner, batch_idx, data_batch, outputs, mode)

        def before_train_epoch(self, runner) -> None:  # type: ignore[no-untyped-def]
            super().before_train_epoch(runner)
            self.t = time.time()

    hook = Timer()
    make_runner(train_dataloader=Slow(2), epochs=1, default_hooks={"timer": hook, "logger": None}).train()
    assert all(PAUSE * 0.9 <= waited < 100 for waited, _ in seen)
    assert hook.start_iter == 0
    resumed = make_runner(train_dataloader=Slow(2), resume=True, default_hooks={"timer": hook, "logger": None})
    resumed.train()
    assert hook.start_iter == 2
    assert [total for _, total in seen[2:]] == [0, values(resumed, "train/time")[2]]
    assert hook.time_sec_tot == sum(values(resumed, "train/time")[2:])

"""The order of things in time: which sites a run passes, at which epoch and iteration, to the last of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import QUIET, Tracer, linear

from eventrunner.bus.bus import Bus
from eventrunner.training.optim import OptimWrapper


def lines(text: str) -> list[str]:
    """The sites of a written-out order."""
    return [line.strip() for line in text.strip().splitlines()]


def test_training_by_epoch_with_validation_and_the_best_saved(make_runner: MakeRunner) -> None:
    """Counters advance after the after-sites; each save is one before_save, the best being a twin of it."""
    tracer = Tracer()
    hooks = {"logger": {"interval": 1}, "checkpoint": {"save_best": "mse", "mode": "sync"}}
    make_runner(val=True, default_hooks=hooks, custom_hooks=[tracer]).train()
    assert tracer.seen == lines("""
        before_run 0,0
        before_train 0,0
        before_train_epoch 0,0
        before_train_iter 0,0
        before_optimizer_step 0,0
        after_optimizer_step 0,0
        after_train_iter 0,0
        on_log 0,0
        before_train_iter 0,1
        before_optimizer_step 0,1
        after_optimizer_step 0,1
        after_train_iter 0,1
        on_log 0,1
        after_train_epoch 0,2
        before_save_checkpoint 0,2
        after_commit_checkpoint 0,2
        before_val 1,2
        before_val_epoch 1,2
        before_val_iter 1,2
        after_val_iter 1,2
        after_val_epoch 1,2
        on_log 1,2
        after_commit_checkpoint 1,2
        after_val 1,2
        before_train_epoch 1,2
        before_train_iter 1,2
        before_optimizer_step 1,2
        after_optimizer_step 1,2
        after_train_iter 1,2
        on_log 1,2
        before_train_iter 1,3
        before_optimizer_step 1,3
        after_optimizer_step 1,3
        after_train_iter 1,3
        on_log 1,3
        after_train_epoch 1,4
        before_save_checkpoint 1,4
        after_commit_checkpoint 1,4
        before_val 2,4
        before_val_epoch 2,4
        before_val_iter 2,4
        after_val_iter 2,4
        after_val_epoch 2,4
        on_log 2,4
        after_commit_checkpoint 2,4
        after_val 2,4
        after_train 2,4
        after_run 2,4
    """)


def test_training_by_iteration_with_nested_validation(make_runner: MakeRunner) -> None:
    """The epoch's sites come once, around everything, and a save comes before the validation of its iteration."""
    tracer = Tracer("on_log")
    cfg = {"max_iters": 3, "val_interval": 2}
    hooks = {"checkpoint": {"mode": "sync"}}
    make_runner(val=True, train_cfg=cfg, default_hooks=hooks, custom_hooks=[tracer]).train()
    assert tracer.seen == lines("""
        before_run 0,0
        before_train 0,0
        before_train_epoch 0,0
        before_train_iter 0,0
        before_optimizer_step 0,0
        after_optimizer_step 0,0
        after_train_iter 0,0
        before_train_iter 0,1
        before_optimizer_step 0,1
        after_optimizer_step 0,1
        after_train_iter 0,1
        before_save_checkpoint 0,1
        after_commit_checkpoint 0,1
        before_val 0,2
        before_val_epoch 0,2
        before_val_iter 0,2
        after_val_iter 0,2
        after_val_epoch 0,2
        after_val 0,2
        before_train_iter 0,2
        before_optimizer_step 0,2
        after_optimizer_step 0,2
        after_train_iter 0,2
        before_save_checkpoint 0,2
        after_commit_checkpoint 0,2
        before_val 0,3
        before_val_epoch 0,3
        before_val_iter 0,3
        after_val_iter 0,3
        after_val_epoch 0,3
        after_val 0,3
        after_train_epoch 0,3
        after_train 1,3
        after_run 1,3
    """)


@pytest.mark.parametrize("mode", ["val", "test"])
def test_an_evaluation_by_itself(make_runner: MakeRunner, mode: str) -> None:
    """val() and test() pass the sites of their mode within before_run and after_run, and mark no best."""
    tracer = Tracer()
    runner = make_runner(
        val=True,
        test_dataloader=[(torch.ones(1, 2), torch.ones(1, 1))],
        custom_hooks=[tracer],
        default_hooks={"checkpoint": {"save_best": "auto"}},
    )
    metrics = getattr(runner, mode)()
    assert list(metrics) == ["mse"]
    assert tracer.seen == lines(f"""
        before_run 0,0
        before_{mode} 0,0
        before_{mode}_epoch 0,0
        before_{mode}_iter 0,0
        after_{mode}_iter 0,0
        after_{mode}_epoch 0,0
        on_log 0,0
        after_{mode} 0,0
        after_run 0,0
    """)


@pytest.mark.parametrize("cfg", [{"max_epochs": 2}, {"max_iters": 4}])
def test_a_finished_run_that_is_resumed_trains_nothing(make_runner: MakeRunner, cfg: dict[str, int]) -> None:
    """Only the run's and the training's own sites are passed, by iterations as well as by epochs."""
    make_runner(train_cfg=cfg).train()
    tracer = Tracer()
    make_runner(train_cfg=cfg, resume=True, custom_hooks=[tracer]).train()
    assert [site.split()[0] for site in tracer.seen] == [
        "before_run", "after_load_checkpoint", "before_train", "after_train", "after_run",
    ]  # fmt: skip


def test_a_stop_midway_in_an_epoch(make_runner: MakeRunner) -> None:
    """The iteration under way is finished, after_train_epoch is not passed, and the last state is saved."""
    tracer = Tracer("on_log", "before_optimizer_step", "after_optimizer_step")
    runner = make_runner(count=3, val=True, custom_hooks=[tracer])
    runner.on("before_train_iter", when=lambda runner: runner.iter == 1)(lambda runner: runner.stop("enough"))
    runner.train()
    assert runner.stop_reason == "enough"
    assert tracer.seen == lines("""
        before_run 0,0
        before_train 0,0
        before_train_epoch 0,0
        before_train_iter 0,0
        after_train_iter 0,0
        before_train_iter 0,1
        after_train_iter 0,1
        after_train 0,2
        before_save_checkpoint 0,2
        after_commit_checkpoint 0,2
        after_run 0,2
    """)


def test_a_stop_midway_by_iteration(make_runner: MakeRunner) -> None:
    """The one epoch isn't complete: after_train_epoch is not passed, and the epoch isn't counted."""
    tracer = Tracer("on_log", "before_optimizer_step", "after_optimizer_step")
    runner = make_runner(train_cfg={"max_iters": 3}, default_hooks=QUIET, custom_hooks=[tracer])
    runner.on("after_train_iter")(lambda runner: runner.stop("enough"))
    runner.train()
    assert tracer.seen[-3:] == ["after_train_iter 0,0", "after_train 0,1", "after_run 0,1"]


def test_a_stop_at_the_last_batch_completes_the_epoch(make_runner: MakeRunner) -> None:
    """Nothing of it is left to do but its ending, its validation included."""
    tracer = Tracer("on_log", "before_optimizer_step", "after_optimizer_step", "before_train_iter", "after_val_iter")
    runner = make_runner(val=True, epochs=3, default_hooks=QUIET, custom_hooks=[tracer])
    runner.on("after_train_iter", when=lambda runner: runner.iter == 1)(lambda runner: runner.stop("enough"))
    runner.train()
    assert tracer.seen == lines("""
        before_run 0,0
        before_train 0,0
        before_train_epoch 0,0
        after_train_iter 0,0
        after_train_iter 0,1
        after_train_epoch 0,2
        before_val 1,2
        before_val_epoch 1,2
        before_val_iter 1,2
        after_val_epoch 1,2
        after_val 1,2
        after_train 1,2
        after_run 1,2
    """)


def test_a_stop_before_the_first_validation_makes_none(make_runner: MakeRunner) -> None:
    """Asked for at before_train, where val_begin=0 would validate next, the training ends at once."""
    tracer = Tracer()
    cfg = {"max_epochs": 2, "val_begin": 0}
    runner = make_runner(val=True, train_cfg=cfg, default_hooks=QUIET, custom_hooks=[tracer])
    runner.on("before_train", once=True)(lambda runner: runner.stop("not today"))
    runner.train()
    assert tracer.seen == ["before_run 0,0", "before_train 0,0", "after_train 0,0", "after_run 0,0"]
    runner.train()
    assert sum(site.startswith("before_val ") for site in tracer.seen) == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ZeroDivisionError, "exception"), (KeyboardInterrupt, "interrupted"), (SystemExit, "exception")],
)
def test_a_failing_step(make_runner: MakeRunner, error: type[BaseException], reason: str) -> None:
    """Whatever ends a run, the leaving sites are passed, and the error comes out as it was raised."""
    tracer = Tracer()
    thrown = error("on purpose")

    def step(model: Any, batch: Any) -> Any:
        raise thrown

    runner = make_runner(train_step=step, custom_hooks=[tracer])
    with pytest.raises(error) as caught:
        runner.train()
    assert caught.value is thrown
    assert runner.stop_reason == reason
    assert tracer.seen == lines("""
        before_run 0,0
        before_train 0,0
        before_train_epoch 0,0
        before_train_iter 0,0
        on_exception 0,0
        after_train 0,0
        after_run 0,0
    """)


def test_a_failure_before_the_training_began(make_runner: MakeRunner) -> None:
    """Where before_train was not passed, after_train isn't either."""
    tracer = Tracer()
    runner = make_runner(default_hooks=QUIET, custom_hooks=[tracer])

    @runner.on("before_run", priority="LOWEST")
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert tracer.seen == ["before_run 0,0", "on_exception 0,0", "after_run 0,0"]


@pytest.mark.parametrize(
    "cfg", [{"max_epochs": 1, "val_begin": 0}, {"max_iters": 2, "val_begin": 0, "val_interval": 2}]
)
def test_val_begin_0_validates_before_the_training(make_runner: MakeRunner, cfg: dict[str, int]) -> None:
    """The first validation comes between before_train and the first epoch, the second at the end."""
    tracer = Tracer("before_optimizer_step", "after_optimizer_step")
    make_runner(val=True, train_cfg={**cfg, "val_begin": 0}, default_hooks=QUIET, custom_hooks=[tracer]).train()
    sites = [site.split()[0] for site in tracer.seen]
    assert sites[:4] == ["before_run", "before_train", "before_val", "before_val_epoch"]
    assert sites[6:9] == ["after_val_epoch", "after_val", "before_train_epoch"]
    assert sites.count("before_val") == 2


def test_val_begin_and_interval_choose_the_validations(make_runner: MakeRunner) -> None:
    """From val_begin on, at multiples of val_interval, and at the end."""
    runner = make_runner(val=True, epochs=7, train_cfg={"max_epochs": 7, "val_begin": 3, "val_interval": 2})
    at: list[int] = []
    runner.on("after_val")(lambda runner: at.append(runner.epoch))
    runner.train()
    assert at == [4, 6, 7]


def test_an_accumulating_iteration_passes_no_optimizer_site(make_runner: MakeRunner) -> None:
    """Five batches in groups of two: the optimizer steps at the second, the fourth, and the last one."""
    model = linear()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    tracer = Tracer()
    make_runner(
        model=model, count=5, epochs=1, optim_wrapper=wrapper, default_hooks=QUIET, custom_hooks=[tracer]
    ).train()
    assert tracer.seen == lines("""
        before_run 0,0
        before_train 0,0
        before_train_epoch 0,0
        before_train_iter 0,0
        after_train_iter 0,0
        before_train_iter 0,1
        before_optimizer_step 0,1
        after_optimizer_step 0,1
        after_train_iter 0,1
        before_train_iter 0,2
        after_train_iter 0,2
        before_train_iter 0,3
        before_optimizer_step 0,3
        after_optimizer_step 0,3
        after_train_iter 0,3
        before_train_iter 0,4
        before_optimizer_step 0,4
        after_optimizer_step 0,4
        after_train_iter 0,4
        after_train_epoch 0,5
        after_train 1,5
        after_run 1,5
    """)


@pytest.mark.parametrize(("cfg", "expected"), [({"max_epochs": 2}, [0, 1, 0, 1]), ({"max_iters": 4}, [0, 1, 2, 3])])
def test_batch_idx_counts_in_the_epoch_or_over_the_run(
    make_runner: MakeRunner, cfg: dict[str, int], expected: list[int]
) -> None:
    """By epoch it begins anew with each; by iteration it is the iteration, over all passes."""
    runner = make_runner(train_cfg=cfg, default_hooks=QUIET)
    before: list[int] = []
    after: list[int] = []
    runner.on("before_train_iter")(lambda batch_idx: before.append(batch_idx))
    runner.on("after_train_iter")(lambda batch_idx: after.append(batch_idx))
    runner.train()
    assert before == after == expected


def test_the_payload_of_an_iteration(make_runner: MakeRunner) -> None:
    """before_ has the batch, after_ also what the step returned, in training, validation and test."""
    x, y = torch.ones(1, 2), torch.ones(1, 1)
    loader = [(x, y)]
    runner = make_runner(
        val=True, epochs=1, train_dataloader=loader, val_dataloader=loader, test_dataloader=loader, default_hooks=QUIET
    )
    seen: dict[str, Any] = {}
    for mode in ("train", "val", "test"):
        runner.on(f"before_{mode}_iter")(lambda data_batch, mode=mode: seen.update({f"before {mode}": data_batch}))
        runner.on(f"after_{mode}_iter")(
            lambda data_batch, outputs, mode=mode: seen.update({f"after {mode}": (data_batch, outputs)})
        )
    runner.train()
    runner.test()
    for mode in ("train", "val", "test"):
        assert seen[f"before {mode}"] is loader[0]
        assert seen[f"after {mode}"][0] is loader[0]
    assert list(seen["after train"][1]) == ["loss"]
    assert seen["after val"][1][1] is y
    assert seen["after test"][1][1] is y


def test_two_buses_know_nothing_of_each_other(make_runner: MakeRunner, bus: Bus) -> None:
    """A receiver on one bus, for any sender, isn't called by a run on another."""
    heard: list[str] = []
    bus.before_run.connect(lambda: heard.append("mine"))
    other = Bus()
    other.before_run.connect(lambda: heard.append("other"))
    make_runner(default_hooks=QUIET).train()
    assert heard == ["mine"]

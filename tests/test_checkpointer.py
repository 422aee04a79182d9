"""Checkpointer: overlapped saves and exact resume in a loop that isn't ours."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import forked, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from eventrunner.checkpoint import Store, load_checkpoint, verify_checkpoint
from eventrunner.checkpointer import Checkpointer
from eventrunner.errors import (
    ArgumentError,
    CheckpointError,
    LockedError,
    OptionError,
    Preempted,
    ResumeError,
    RunExistsError,
)
from eventrunner.lanes.lanes import Task


class Loop:
    """A loop written by hand: a model with dropout and BatchNorm, a schedule, and data in random order."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 300), nn.BatchNorm1d(300), nn.Dropout(0.3), nn.Linear(300, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5)
        generator = torch.Generator().manual_seed(5)
        data = TensorDataset(torch.randn(20, 2, generator=generator), torch.randn(20, 1, generator=generator))
        self.loader: Any = DataLoader(data, 4, shuffle=True)
        self.losses: list[float] = []

    def step(self, batch: list[Tensor]) -> None:
        loss = (self.model(batch[0]) - batch[1]).square().mean() * (1 + random.random())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.losses.append(loss.item())

    def checkpointer(self, folder: Path, **options: Any) -> Checkpointer:
        own = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return Checkpointer(folder, **{**own, **options})

    def run(self, folder: Path, *, epochs: int = 3, stop: int = 0, every: int = 1, **options: Any) -> Loop:
        with self.checkpointer(folder, **options) as ckpt:
            for _ in range(ckpt.epoch, epochs):
                for batch in ckpt.batches(self.loader):
                    self.step(batch)
                    ckpt.save(every=every)
                    if ckpt.step == stop:
                        return self
        return self


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(3)


@pytest.mark.parametrize("stop", range(1, 15))
@pytest.mark.slow
def test_a_loop_that_is_resumed_at_any_step_ends_as_if_it_had_gone_on(tmp_path: Path, stop: int) -> None:
    """Losses and weights to the bit, twice broken off, once with a save a step before the end."""
    whole = Loop().run(tmp_path / "whole")
    random.seed(3)
    first = Loop().run(tmp_path / "run", stop=stop)
    second = Loop(seed=1).run(tmp_path / "run", stop=min(stop + 1, 15), resume=True)
    third = Loop(seed=2).run(tmp_path / "run", resume=True)
    assert first.losses + second.losses + third.losses == whole.losses
    assert same(dict(third.model.state_dict()), dict(whole.model.state_dict()))
    assert same(third.optimizer.state_dict(), whole.optimizer.state_dict())
    assert same(third.scheduler.state_dict(), whole.scheduler.state_dict())


@pytest.mark.parametrize("mode", ["auto", "lazy", "eager", "sync"])
def test_what_is_committed_is_what_was_there_at_the_call(tmp_path: Path, mode: str) -> None:
    """Though the next step comes at once."""
    loop, states = Loop(), {}
    with loop.checkpointer(tmp_path / "run", mode=mode) as ckpt:
        for batch in ckpt.batches(loop.loader):
            loop.step(batch)
            ckpt.save()
            states[ckpt.step] = {key: value.clone() for key, value in loop.model.state_dict().items()}
    for step, state in states.items():
        assert same(dict(load_checkpoint(tmp_path / "run" / f"step_{step}")["state_dict"]), state)


def test_the_step_waits_for_the_copy_and_the_loop_doesnt_wait_for_the_disk(tmp_path: Path) -> None:
    """The writer is held up until the loop has taken all its steps."""
    loop, gate = Loop(), threading.Event()
    with loop.checkpointer(tmp_path / "run", mode="lazy") as ckpt:
        ckpt._lanes.submit(Task(gate.wait, "checkpoint"), (60,))
        saves = []
        for batch in ckpt.batches(loop.loader):
            loop.step(batch)
            saves.append(ckpt.save(every=3))
        assert [save.path if save else None for save in saves] == [None] * 5
        gate.set()
        ckpt.wait()
        assert ckpt.saves[0].path == tmp_path / "run" / "step_3"
        assert ckpt.saves[0].mode == "lazy"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Those that this loop has saved, over a resume too; another's folder isn't touched."""
    (tmp_path / "run" / "step_0.mine").mkdir(parents=True)
    Loop().run(tmp_path / "run", keep=2, stop=7)
    assert Store(tmp_path / "run").names() == ["step_6", "step_7"]
    Loop().run(tmp_path / "run", keep=2, resume=True)
    assert Store(tmp_path / "run").names() == ["step_14", "step_15"]
    assert (tmp_path / "run" / "step_0.mine").is_dir()


def test_steps_may_be_counted_by_the_loop_itself(tmp_path: Path) -> None:
    """Without ``batches``, and with anything noted in the manifest."""
    loop = Loop()
    with loop.checkpointer(tmp_path / "run") as ckpt:
        ckpt.save(40, score=0.5)
    assert dict(verify_checkpoint(tmp_path / "run/step_40").meta) == {"score": 0.5}
    with loop.checkpointer(tmp_path / "run", resume=True) as ckpt:
        assert (ckpt.step, ckpt.epoch) == (40, 0)


def test_gradients_of_an_accumulation_are_saved_if_asked_for(tmp_path: Path) -> None:
    """And put back."""
    loop = Loop()
    loop.model(torch.ones(2, 2)).sum().backward()
    with loop.checkpointer(tmp_path / "run", gradients=True) as ckpt:
        ckpt.save(1)
    again = Loop(seed=1)
    with again.checkpointer(tmp_path / "run", gradients=True, resume=True):
        pass
    pairs = zip(loop.model.parameters(), again.model.parameters(), strict=True)
    assert all(same(ours.grad, theirs.grad) for ours, theirs in pairs)


def test_several_optimizers_are_saved_by_name(tmp_path: Path) -> None:
    """And must be the same ones on resume."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})

    def optimizers(kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> dict[str, torch.optim.Optimizer]:
        return {"a": torch.optim.SGD(model["a"].parameters()), "b": kind(model["b"].parameters())}

    with Checkpointer(tmp_path / "run", model=model, optimizer=optimizers()) as ckpt:
        ckpt.save(1)
    with Checkpointer(tmp_path / "run", model=model, optimizer=optimizers(), resume=True) as ckpt:
        assert ckpt.step == 1
    message = "was saved with SGD, AdamW and is to be loaded into SGD, SGD; give the same optimizers"
    with (
        pytest.raises(ResumeError, match=message),
        Checkpointer(tmp_path / "run", model=model, optimizer=optimizers(torch.optim.SGD), resume=True),
    ):
        pass


def test_a_failed_save_is_raised_at_the_next_step_of_an_optimizer(tmp_path: Path) -> None:
    """Not a whole interval later, and not in silence."""
    loop = Loop()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/step_2").write_text("in the way")

    def train() -> None:
        with loop.checkpointer(tmp_path / "run") as ckpt:
            for batch in ckpt.batches(loop.loader):
                loop.step(batch)
                if ckpt.save(every=2):
                    ckpt._lanes.wait("checkpoint")

    with pytest.raises(RuntimeError, match="can't save checkpoint 'step_2'"):
        train()
    assert len(loop.losses) == 2


def test_leaving_the_block_by_an_exception_commits_what_is_pending(tmp_path: Path) -> None:
    """The exception is the loop's own."""
    loop, gate = Loop(), threading.Event()

    def train() -> None:
        with loop.checkpointer(tmp_path / "run") as ckpt:
            ckpt._lanes.submit(Task(gate.wait, "checkpoint"), (60,))
            for batch in ckpt.batches(loop.loader):
                loop.step(batch)
                ckpt.save()
                threading.Timer(0.05, gate.set).start()
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train()
    assert Store(tmp_path / "run").names() == ["step_1"]


def test_a_signal_ends_the_loop_at_the_next_batch_with_a_save(tmp_path: Path) -> None:
    """By SystemExit with code 75; resumed, the loop goes on there."""
    whole = Loop().run(tmp_path / "whole", every=100)
    random.seed(3)
    loop = Loop()

    def train() -> None:
        with loop.checkpointer(tmp_path / "run") as ckpt:
            for batch in ckpt.batches(loop.loader):
                loop.step(batch)
                if ckpt.step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted) as caught:
        train()
    assert (caught.value.code, caught.value.signal) == (75, "SIGTERM")
    resumed = Loop().run(tmp_path / "run", every=100, resume=True)
    assert loop.losses + resumed.losses == whole.losses


def test_ctrl_c_ends_the_loop_at_the_next_batch_with_a_save(tmp_path: Path) -> None:
    """Resumed, the loop goes on there."""
    whole = Loop().run(tmp_path / "whole", every=100)
    random.seed(3)
    loop = Loop()

    def train() -> None:
        with loop.checkpointer(tmp_path / "run") as ckpt:
            for batch in ckpt.batches(loop.loader):
                if ckpt.step == 2:
                    signal.raise_signal(signal.SIGINT)
                loop.step(batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train()
    finally:
        signal.signal(signal.SIGINT, before)
    resumed = Loop().run(tmp_path / "run", every=100, resume=True)
    assert loop.losses + resumed.losses == whole.losses


def test_a_signal_after_the_last_batch_isnt_lost(tmp_path: Path) -> None:
    """The state is saved, and what was asked to end does."""
    loop = Loop()

    def train() -> None:
        with loop.checkpointer(tmp_path / "run") as ckpt:
            for batch in ckpt.batches(loop.loader):
                loop.step(batch)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        train()
    assert Store(tmp_path / "run").names() == [f"step_{len(loop.losses)}"]


def test_a_signal_ends_a_loop_that_counts_its_own_steps_at_its_next_save(tmp_path: Path) -> None:
    """Whether or not one was due then."""
    loop = Loop()

    def train() -> None:
        with loop.checkpointer(tmp_path / "run") as ckpt:
            for step in range(1, 9):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                ckpt.save(step, every=100)

    with pytest.raises(Preempted):
        train()
    assert Store(tmp_path / "run").names() == ["step_3"]


def test_a_pass_that_was_left_by_break_is_gone_on_with(tmp_path: Path) -> None:
    """The batch at which it was left is counted, and none is trained on twice."""
    loop, seen = Loop(), []
    loop.loader = list(range(4))
    with loop.checkpointer(tmp_path / "run") as ckpt:
        while ckpt.epoch < 2:
            for batch in ckpt.batches(loop.loader):
                seen.append(batch)
                if len(seen) % 3 == 0:
                    break
        assert (ckpt.step, ckpt.epoch) == (8, 2)
    assert seen == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_checkpoint_that_is_damaged_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    """Falling back in silence would hide what was lost."""
    Loop().run(tmp_path / "run", stop=3)
    (tmp_path / "run/step_3/model.safetensors").write_bytes(b"rot")
    loop = Loop()
    with (
        pytest.warns(RuntimeWarning, match=r"checkpoint .*step_3 is not used: "),
        loop.checkpointer(tmp_path / "run", resume=True) as ckpt,
    ):
        assert ckpt.step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, "Checkpointer.save(step=-1): give an int of 0 or more."),
        ({"step": "a"}, "Checkpointer.save(step='a'): give an int of 0 or more."),
        ({"every": 0}, "Checkpointer.save(every=0): give an int of 1 or more."),
    ],
)
def test_a_bad_number_of_a_save_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Nothing is counted by it."""
    with Loop().checkpointer(tmp_path / "run") as ckpt:
        with pytest.raises(OptionError) as caught:
            ckpt.save(**options)
        assert (str(caught.value), ckpt.step) == (message, 0)


def test_a_call_outside_of_the_block_is_refused(tmp_path: Path) -> None:
    """It would write without the lock, and beside what is to be resumed; and a block is entered once."""
    checkpointer = Loop().checkpointer(tmp_path / "run")
    with pytest.raises(
        OptionError, match=r"^Checkpointer\.save\(\) was called outside of its with block; do so within"
    ):
        checkpointer.save(1)
    with checkpointer:
        checkpointer.save(1)
    with pytest.raises(OptionError, match=r"^a Checkpointer's with block was entered a second time; make a new one"):
        checkpointer.__enter__()


def test_a_save_that_cant_be_taken_leaves_what_is_kept(tmp_path: Path) -> None:
    """The next ones are counted as if it had not been asked for."""
    loop = Loop()

    class Odd:
        value: Any = 0

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            """Take nothing."""

    odd = Odd()
    with loop.checkpointer(tmp_path / "run", keep=2, odd=odd) as ckpt:
        for step in range(1, 9):
            odd.value = object() if step % 2 else step
            if step % 2:
                with pytest.raises(CheckpointError, match="odd"):
                    ckpt.save(step)
            else:
                ckpt.save(step)
    assert Store(tmp_path / "run").names() == ["step_6", "step_8"]


def test_a_note_that_no_manifest_holds_is_refused_by_the_save_it_is_given_to(tmp_path: Path) -> None:
    """And not by a later one, when it is to be written."""
    with Loop().checkpointer(tmp_path / "run", keep=1) as ckpt:
        ckpt.save(1, score=0.5)
        with pytest.raises(OptionError, match=r"^meta=.* can't be put in a manifest, which is JSON"):
            ckpt.save(2, score=torch.tensor(0.5))
    assert Store(tmp_path / "run").names() == ["step_1"]


def hold(folder: Path, begun: Any, end: Any) -> None:
    """Hold the folder until told to let go."""
    with Loop().checkpointer(folder):
        begun.set()
        end.wait(60)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """With the number of the one that holds the folder."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()
    process = forked(hold, tmp_path / "run", begun, end)
    assert begun.wait(60)
    with pytest.raises(LockedError, match=str(process.pid)), Loop().checkpointer(tmp_path / "run"):
        pass
    end.set()
    process.join(60)
    with Loop().checkpointer(tmp_path / "run"):
        pass


def test_a_folder_with_checkpoints_is_refused_unless_resumed(tmp_path: Path) -> None:
    """A new loop would mix its steps with those of another."""
    Loop().run(tmp_path / "run", stop=1)
    with (
        pytest.raises(RunExistsError, match="has checkpoints; pass resume=True"),
        Loop().checkpointer(tmp_path / "run"),
    ):
        pass


def test_resuming_from_nothing_is_a_fresh_start(tmp_path: Path) -> None:
    """The same line serves a first start and a restart."""
    assert len(Loop().run(tmp_path / "run", resume=True, epochs=1).losses) == 5


def test_parts_must_be_the_same_on_resume(tmp_path: Path) -> None:
    """Compared both ways before anything is loaded."""
    Loop().run(tmp_path / "run", stop=1)
    other = Loop(seed=9)
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    checkpointer = Checkpointer(tmp_path / "run", model=other.model, optimizer=other.optimizer, resume=True)
    with pytest.raises(ResumeError, match="scheduler"), checkpointer:
        pass
    assert same(dict(other.model.state_dict()), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 0}, OptionError, "Checkpointer(keep=0): give an int of 1 or more, or -1 for all."),
        ({"mode": "lasy"}, OptionError, "mode='lasy': give one of auto, lazy, eager, sync; did you mean 'lazy'?"),
        ({"grace": 0}, OptionError, "Checkpointer(grace=0): give a number of seconds above 0."),
        ({"format": "pt"}, OptionError, "format='pt': give one of safetensors, pth; did you mean 'pth'?"),
        ({"model": {}}, ArgumentError, "Checkpointer(model=…) takes a torch.nn.Module, not a dict."),
        (
            {"optimizer": "adam"},
            ArgumentError,
            "Checkpointer(optimizer=…) takes a torch.optim.Optimizer or a dict of them, not a str.",
        ),
        (
            {"meta": nn.Linear(1, 1)},
            ArgumentError,
            "Checkpointer(meta=…): meta, rng, rng_of_ranks, data, gradients, state_dict are its own; choose another "
            "keyword.",
        ),
        (
            {"shceduler": 3},
            ArgumentError,
            "Checkpointer(shceduler=int(…)): a part has state_dict() and load_state_dict(); it takes folder, model, "
            "optimizer, resume, keep, gradients, mode, format, deadline and grace besides.",
        ),
    ],
)
def test_a_bad_argument_is_refused_at_once(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Nothing is written."""
    with pytest.raises(error) as caught:
        Loop().checkpointer(tmp_path / "run", **options)
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()


def test_it_works_inside_a_loop_of_accelerate(tmp_path: Path) -> None:
    """Prepared model, optimizer, scheduler and loader; killed and resumed to the bit."""
    from accelerate import Accelerator

    def run(folder: Path, stop: int = 0, resume: bool = False) -> tuple[list[float], nn.Module]:
        loop, accelerator = Loop(), Accelerator(cpu=True)
        prepared = accelerator.prepare(loop.model, loop.optimizer, loop.loader, loop.scheduler)
        model, optimizer, loader, scheduler = prepared
        with Checkpointer(folder, model=model, optimizer=optimizer, scheduler=scheduler, resume=resume) as ckpt:
            for _ in range(ckpt.epoch, 3):
                for x, y in ckpt.batches(loader):
                    loss = (model(x) - y).square().mean()
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                    loop.losses.append(loss.item())
                    ckpt.save()
                    if ckpt.step == stop:
                        return loop.losses, model
        return loop.losses, model

    losses, model = run(tmp_path / "whole")
    first, _ = run(tmp_path / "run", stop=7)
    second, resumed = run(tmp_path / "run", resume=True)
    assert first + second == losses
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))

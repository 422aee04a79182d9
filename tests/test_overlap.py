"""Saves that are copied while training goes on: what is committed is what was there at the site, whoever writes next.

Lightning's asynchronous saves mixed weights of two steps for years, as DCP's did on the CPU, and those of
torch_checkpointing do unless one remembers its lock. Each run here holds its copies back until somebody is about to
write: without the barrier, every weight would be copied late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import Batch, same, train_step
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from tree import Tree

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, load_checkpoint
from eventrunner.checkpoint.saver import Saver
from eventrunner.errors import CheckpointError, OptionError
from eventrunner.hook import Hook, options
from eventrunner.hooks import CheckpointHook, EMAHook
from eventrunner.lanes.lanes import Lanes, Task
from eventrunner.runner import Runner
from eventrunner.training.optim import OptimWrapper

COUNT = 6


def net() -> nn.Module:
    """Weights that are large enough to be copied beside the training, and a BatchNorm, whose buffers aren't."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 1))


def copied(tree: Any) -> Any:
    """The tree with its tensors copied."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return type(tree)(map(copied, tree)) if isinstance(tree, list | tuple) else tree


def hold_up(lanes: Lanes, gate: threading.Event) -> None:
    """Have no lane copy before the gate opens: neither the one for it nor the writer, who does what nobody began."""
    for lane in ("snapshot", "checkpoint"):
        lanes.submit(Task(gate.wait, lane), (60,))


class Holds(Hook):
    """Remembers each save's state at its site, and lets nothing be copied before somebody is about to write."""

    mutates = ()

    def __init__(self, stays_at: Any = None) -> None:
        self.states: dict[int, Any] = {}
        self.held = 0
        self.gate = threading.Event()
        self.stays_at = stays_at

    def open(self, *before: Any) -> None:
        if not before or before[0] is not self.stays_at:
            self.gate.set()

    @options(priority="LOWEST")
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.states[runner.progress.step] = copied(checkpoint)
        if runner.progress.step < COUNT and runner.session.lanes is not None:  # after the last nobody writes
            self.gate.set()  # the one before has been waited for
            self.gate = threading.Event()
            runner.bus.guards.insert(0, self.open)
            self.held += 1
            hold_up(runner.session.lanes, self.gate)


@pytest.fixture
def overlapped(make_runner: MakeRunner, tmp_path: Path) -> Callable[..., Runner]:
    """``overlapped(**changes)``: train with a lazy save at each iteration, and compare every one with its site.

    At the step of the optimizer *stays_at*, nobody else copies: who steps has to.
    """

    def train(**changes: Any) -> Runner:
        holds = Holds(changes.pop("stays_at", None))
        hook = {"mode": "lazy", "by_epoch": False, "interval": 1, "verify": True, **changes.pop("hook", {})}
        chosen: dict[str, Any] = {"model": net(), "count": COUNT, "epochs": 1, **changes}
        chosen["custom_hooks"] = [holds, *changes.get("custom_hooks", [])]
        runner = make_runner(default_hooks={"logger": None, "checkpoint": hook}, **chosen)
        handle = register_optimizer_step_pre_hook(holds.open)
        try:
            runner.train()
        finally:
            handle.remove()
        assert sorted(holds.states) == list(range(1, COUNT + 1))
        for step, state in holds.states.items():
            assert same(load_checkpoint(tmp_path / "run" / f"iter_{step}"), state), step
        assert holds.held == COUNT - 1
        return runner

    return train


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
        lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
        lambda params: torch.optim.Adam(params, lr=0.1, foreach=False),
    ],
    ids=["fused AdamW", "fused SGD", "foreach AdamW", "for-loop Adam"],
)
def test_an_optimizers_step_waits_for_the_copy(
    overlapped: Callable[..., Runner], make: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """Fused ones change weights without their version counter, so nothing could notice it afterwards."""
    model = net()
    runner = overlapped(model=model, optimizer=make(model.parameters()))
    assert runner.session.saver is not None
    assert {save.mode for save in runner.session.saver.saves} == {"lazy"}


def test_an_average_is_copied_before_it_is_updated(overlapped: Callable[..., Runner]) -> None:
    """EMAHook says that it writes to it; the checkpoint has both, exchanged."""
    overlapped(custom_hooks=[EMAHook(momentum=0.1)])


@pytest.mark.parametrize("mutates", [("model",), None], ids=["says so", "says nothing"])
def test_a_hook_that_clips_weights_waits_for_the_copy(
    overlapped: Callable[..., Runner], mutates: tuple[str, ...] | None
) -> None:
    """One that says nothing is taken to write."""

    class Clip(Hook):
        def __init__(self) -> None:
            self.mutates = mutates

        @torch.no_grad()
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            for parameter in runner.model.parameters():
                parameter.clamp_(-0.01 * (batch_idx + 1), 0.01 * (batch_idx + 1))

    overlapped(custom_hooks=[Clip()])


def test_weights_that_a_hook_loads_wait_for_the_copy(overlapped: Callable[..., Runner]) -> None:
    """``load_state_dict`` writes in place."""

    class Reload(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            runner.model.load_state_dict({key: value * 0 + 1 for key, value in runner.model.state_dict().items()})

    overlapped(custom_hooks=[Reload()])


class TwoNets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.generator, self.critic = nn.Linear(2, 600), nn.Linear(600, 1)

    def train_step(self, batch: Batch, optim_wrapper: Any) -> dict[str, Tensor]:
        made = self.generator(batch[0])
        optim_wrapper["critic"].update_params(self.critic(made.detach()).mean())
        loss = -self.critic(made).mean()
        optim_wrapper["generator"].update_params(loss)
        return {"loss": loss}


def test_two_optimizers_wait_each_before_its_own_step(overlapped: Callable[..., Runner]) -> None:
    """As in the training of a GAN."""
    model = TwoNets()
    wrappers = {
        name: OptimWrapper(torch.optim.AdamW(getattr(model, name).parameters(), lr=0.1))
        for name in ("generator", "critic")
    }
    overlapped(model=model, train_step=None, optim_wrapper=wrappers)


def test_an_optimizer_that_is_stepped_by_hand_waits_too(overlapped: Callable[..., Runner]) -> None:
    """The barrier stands before every optimizer's step, not in the wrapper alone."""

    def by_hand(model: nn.Module, batch: Batch, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        loss = train_step(model, batch)["loss"]
        optim_wrapper.optimizer.zero_grad()
        loss.backward()
        optim_wrapper.optimizer.step()
        return {"loss": loss.detach()}

    overlapped(train_step=by_hand)


def test_an_optimizer_that_the_run_doesnt_know_waits_too(overlapped: Callable[..., Runner]) -> None:
    """One of the step's own, for the weights that the run's optimizer has as well."""
    model = net()
    another = torch.optim.SGD(model.parameters(), lr=0.1)

    def with_another(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        train_step(model, batch)["loss"].backward()
        another.step()
        another.zero_grad()
        return train_step(model, batch)

    overlapped(model=model, train_step=with_another, stays_at=another)


def test_weights_that_no_optimizer_holds_are_copied_at_the_site(overlapped: Callable[..., Runner]) -> None:
    """A target network is written to in the step itself, where nobody could wait."""

    class Target(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online, self.target = net(), net().requires_grad_(False)

        def train_step(self, batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                for ours, theirs in zip(self.target.parameters(), self.online.parameters(), strict=True):
                    ours.lerp_(theirs, 0.5).add_(1)
            return train_step(self.online, batch)

    model = Target()
    optimizer = torch.optim.SGD(model.online.parameters(), lr=0.1)
    overlapped(model=model, train_step=None, optimizer=optimizer)


def test_gradients_that_accumulate_are_copied_at_the_site(overlapped: Callable[..., Runner]) -> None:
    """The next backward adds to them long before a step."""
    model = net()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=3)
    overlapped(model=model, optim_wrapper=wrapper)


def test_weights_that_a_forward_writes_to_are_copied_at_the_site(overlapped: Callable[..., Runner]) -> None:
    """An Embedding with ``max_norm`` renormalises its rows each time that it looks them up."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.words, self.head = nn.Embedding(500, 4, max_norm=0.5), nn.Linear(4, 1)

        def train_step(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": self.head(self.words(torch.arange(500))).square().mean()}

    overlapped(model=Words(), train_step=None)


def clamping(waits: bool) -> Callable[[nn.Module, Batch], dict[str, Tensor]]:
    """A step that writes to the weights before the optimizer does, having asked for leave or not."""

    def step(model: Any, batch: Batch) -> dict[str, Tensor]:
        if waits:
            model.runner[0].wait_for_copies()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.1, 0.1)
        return train_step(model, batch)

    return step


def test_a_step_that_writes_to_weights_asks_for_leave(overlapped: Callable[..., Runner]) -> None:
    """``runner.wait_for_copies()`` waits for the copy."""
    model = net()
    owner: list[Runner] = []
    model.runner = owner
    grab = Hook()
    grab.before_run = lambda runner: owner.append(runner)  # type: ignore[method-assign]
    overlapped(model=model, train_step=clamping(waits=True), custom_hooks=[grab])


def test_a_step_that_writes_to_weights_without_asking_fails_the_save(overlapped: Callable[..., Runner]) -> None:
    """Better no checkpoint than a torn one; the message says what to do."""
    with pytest.raises(CheckpointError, match="was written to while a save was copying it; write to weights in an opt"):
        overlapped(train_step=clamping(waits=False), hook={"verify": False})


def test_nobody_may_write_before_the_copy_is_done_whoever_else_waits_for_it(tmp_path: Path) -> None:
    """The guard stays up while one thread waits, and is gone when that is over."""
    guards: list[Callable[[], Any]] = []
    weight, gate, waiting = torch.ones(5000), threading.Event(), threading.Event()
    with Lanes() as lanes:
        source = Tree({"state_dict": {"w": weight}}, step=1, late=[weight])
        saver = Saver(Store(tmp_path), source, mode="lazy", guards=guards)
        saver.open(lanes)
        hold_up(lanes, gate)
        saver.save("a")
        (copying,) = [saver._copying]
        assert copying is not None
        inner = copying[1]._copies.late._work

        def slowly() -> None:
            waiting.set()
            assert gate.wait(60)
            inner()

        copying[1]._copies.late._work = slowly
        thread = threading.Thread(target=saver.wait_for_copies)
        thread.start()
        assert waiting.wait(60)
        assert guards == [saver.wait_for_copies]
        gate.set()
        thread.join(60)
        assert guards == []
        saver.close()


def test_runs_in_threads_step_without_disturbing_each_other(make_runner: MakeRunner) -> None:
    """One hook of torch's stands before all optimizers, and stays; ones that came and went made a step fail."""
    errors: list[BaseException] = []

    def train(number: int) -> None:
        hook = {"mode": "lazy", "by_epoch": False, "interval": 1, "max_keep_ckpts": 1}
        hooks = {"logger": None, "checkpoint": hook}
        try:
            make_runner(work_dir=str(number), model=net(), count=25, epochs=1, default_hooks=hooks, bus=Bus()).train()
        except BaseException as error:  # noqa: BLE001  # looked at below
            errors.append(error)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert errors == []


@pytest.mark.parametrize("mode", ["auto", "eager", "sync"])
def test_other_modes_save_the_same(make_runner: MakeRunner, tmp_path: Path, mode: str) -> None:
    """What is committed doesn't depend on how it was copied."""
    holds = Holds()
    holds.states = {}
    seen: dict[int, Any] = {}
    hook = {"mode": mode, "by_epoch": False, "interval": 1, "verify": True}
    runner = make_runner(model=net(), count=8, epochs=1, default_hooks={"logger": None, "checkpoint": hook})

    @runner.on("before_save_checkpoint", mutates=())
    def remember(runner: Runner, checkpoint: dict[str, Any]) -> None:
        seen[runner.progress.step] = copied(checkpoint)

    runner.train()
    assert runner.session.saver is not None
    modes = {save.mode for save in runner.session.saver.saves}
    assert modes == ({"eager"} if mode == "auto" else {mode})  # of so little
    for step, state in seen.items():
        assert same(load_checkpoint(tmp_path / "run" / f"iter_{step}"), state)


def test_verify_finds_a_write_that_nobody_announced(make_runner: MakeRunner) -> None:
    """A receiver that says ``mutates=()`` and writes all the same is named by what it tore."""
    runner = make_runner(
        model=net(),
        count=COUNT,
        epochs=1,
        default_hooks={
            "logger": None,
            "checkpoint": {"mode": "lazy", "by_epoch": False, "interval": 1, "verify": True, "save_last": False},
        },
    )
    gate = threading.Event()

    @runner.on("before_save_checkpoint", mutates=(), once=True)
    def hold(runner: Runner) -> None:
        hold_up(runner.session.lanes, gate)

    @runner.on("before_train_iter", mutates=(), when=lambda batch_idx: batch_idx == 1)
    def tear(runner: Runner) -> None:
        with torch.no_grad():
            runner.model[3].weight.add_(1)
        gate.set()

    with pytest.raises(CheckpointError, match=r"3\.weight"):
        runner.train()


@pytest.mark.parametrize(("width", "mode"), [(400, "eager"), (700, "lazy")])
def test_auto_copies_late_what_is_large(make_runner: MakeRunner, width: int, mode: str) -> None:
    """By the size of what only a step changes, not by the clock: two runs of one script do the same."""
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 1))
    runner = make_runner(model=model, optimizer=torch.optim.Adam(model.parameters()), epochs=2)
    runner.train()
    assert runner.session.saver is not None
    assert [save.mode for save in runner.session.saver.saves] == [mode] * 2


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    """By the hook at construction, and by the saver."""
    with pytest.raises(OptionError, match=r"^CheckpointHook\(mode='lasy'\): give one of .*; did you mean 'lazy'\?$"):
        CheckpointHook(mode="lasy")
    with pytest.raises(OptionError, match=r"^mode='lasy': give one of auto, lazy, eager, sync; did you mean 'lazy'"):
        Saver(Store("x"), Tree({}), mode="lasy")

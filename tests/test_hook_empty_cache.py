"""EmptyCacheHook: which methods it has, and that a run on a CPU is as without it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventrunner.bus.bus import Bus
from eventrunner.errors import OptionError
from eventrunner.hooks import EmptyCacheHook
from eventrunner.runner import Runner

MODES = ("train", "val", "test")


class Total:
    """The sum of what it was given."""

    def update(self, value: Tensor) -> None:
        self.value += value.sum()

    def compute(self) -> Tensor:
        return self.value

    def reset(self) -> None:
        self.value = torch.zeros(())


def train_step(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Anything that can be trained."""
    return {"loss": model(batch).square().mean()}


def make(folder: Path, *hooks: Any, device: str = "cpu") -> Runner:
    """Two epochs, each with a validation, and a test; two batches in each."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    data = [torch.ones(1, 2)] * 2
    return Runner(
        model=model,
        work_dir=folder,
        train_dataloader=data,
        val_dataloader=data,
        test_dataloader=data,
        train_cfg={"max_epochs": 2},
        train_step=train_step,
        val_step=lambda model, batch: model(batch),
        val_evaluator={"total": Total()},
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        custom_hooks=list(hooks),
        default_hooks={"logger": None, "checkpoint": None},
        bus=Bus(),
        device=device,
        log_level="ERROR",
    )


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({}, ["after_{}_epoch"]),
        ({"before_epoch": True, "after_epoch": False}, ["before_{}_epoch"]),
        ({"after_iter": True, "after_epoch": False}, ["after_{}_iter"]),
        ({"before_epoch": True, "after_iter": True}, ["before_{}_epoch", "after_{}_epoch", "after_{}_iter"]),
        ({"after_epoch": False}, []),
    ],
)
def test_only_what_is_switched_on_is_connected(tmp_path: Path, options: dict[str, bool], sites: list[str]) -> None:
    """In training, validation and test alike; the rest costs nothing."""
    expected = {site.format(mode) for site in sites for mode in MODES}
    hook = EmptyCacheHook(**options)
    assert set(hook.get_triggered_stages()) == expected
    handle = make(tmp_path / "run").register_hook(hook)
    assert {site.name for site in handle.sites} == expected


def test_on_a_cpu_the_run_is_as_without_it(tmp_path: Path) -> None:
    """There is nothing to empty."""
    hook = EmptyCacheHook(before_epoch=True, after_epoch=True, after_iter=True)
    runner, plain = make(tmp_path / "a", hook), make(tmp_path / "b")
    runner.train()
    plain.train()
    for ours, theirs in zip(runner.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert runner.test() == plain.test()


def test_where_nothing_was_allocated_emptying_does_no_harm() -> None:
    """Torch's own call is made for the run's device; without a GPU it returns at once."""
    runner: Any = SimpleNamespace(device=torch.device("cuda"))
    EmptyCacheHook().after_train_epoch(runner)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_unused_memory_goes_back(tmp_path: Path) -> None:
    """What a batch left in the allocator's cache is gone after the epoch."""
    runner = make(tmp_path / "run", EmptyCacheHook(), device="cuda")
    size, reserved = 2**28, []

    @runner.on("before_train_iter")
    def allocate() -> None:
        torch.empty(size, dtype=torch.uint8, device="cuda")

    runner.on("after_train_iter")(lambda: reserved.append(torch.cuda.memory_reserved()))
    runner.train()
    assert reserved[-1] >= size > torch.cuda.memory_reserved()


@pytest.mark.parametrize("name", ["before_epoch", "after_epoch", "after_iter"])
def test_an_option_that_is_no_bool_is_refused(name: str) -> None:
    """When the hook is made."""
    options: dict[str, Any] = {name: "yes"}
    with pytest.raises(OptionError) as caught:
        EmptyCacheHook(**options)
    assert str(caught.value) == f"EmptyCacheHook({name}='yes'): give True or False."

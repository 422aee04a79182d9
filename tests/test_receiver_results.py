"""Receivers that can't be meant: of which nothing would run, whose result nobody takes, or that ask in vain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeRunner
from tiny import batches, val_step

from eventrunner.bus.bus import Bus
from eventrunner.bus.signature import where
from eventrunner.errors import HookError, OptionError, SignatureError
from eventrunner.hook import Hook, connect_hook

ME = "the sender"


def generator(runner: Any) -> Any:
    """Would run nothing."""
    yield runner


async def async_generator(runner: Any) -> Any:
    """Would run nothing either."""
    yield runner


class Yields:
    """Is called as a generator function."""

    def __call__(self, runner: Any) -> Any:
        yield runner

    def method(self, runner: Any) -> Any:
        yield runner

    async def later(self, runner: Any) -> Any:
        yield runner


class YieldsHook(Hook):
    """Has such a method beside a good one."""

    def after_run(self, runner: Any) -> None:
        raise AssertionError

    def before_run(self, runner: Any) -> Any:
        yield runner


@pytest.mark.parametrize(
    ("receiver", "kind"),
    [
        (generator, "generator"),
        (async_generator, "async generator"),
        (functools.partial(generator), "generator"),
        (functools.partial(functools.partial(async_generator)), "async generator"),
        (Yields(), "generator"),
        (Yields().method, "generator"),
        (Yields().later, "async generator"),
        (torch.no_grad()(generator), "generator"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"offload": True}], ids=str)
def test_a_receiver_with_a_yield_is_refused_when_it_connects(
    bus: Bus, receiver: Any, kind: str, options: dict[str, Any]
) -> None:
    """A call of it makes a generator and runs nothing, in a lane neither."""
    with pytest.raises(HookError) as caught:
        bus.after_run.connect(receiver, **options)
    assert str(caught.value).startswith("connecting ")
    assert str(caught.value).endswith(
        f" to 'after_run': of a call of this {kind} function nothing runs; write it without yield."
    )
    assert len(bus.describe()) == 0


def test_a_hook_with_a_yield_in_a_method_is_refused_whole(bus: Bus) -> None:
    """None of its methods is connected."""
    with pytest.raises(
        HookError, match=r"^connecting YieldsHook\.before_run in .* to 'before_run': of a call of this ge"
    ):
        connect_hook(bus, YieldsHook(), ME)
    assert len(bus.describe()) == 0


async def always(runner: Any) -> bool:
    """A predicate whose result would be true, whatever it returned."""
    return False


@pytest.mark.parametrize("when", [always, generator, async_generator])
def test_a_predicate_that_would_always_be_true_is_refused(bus: Bus, when: Any) -> None:
    """A coroutine that nobody awaits, or a generator, is no False."""
    with pytest.raises(OptionError, match=r": give a plain function that returns True where it should run\.$"):
        bus.after_run.connect(print, when=when)


async def waits(runner: Any) -> None:
    """Something to be awaited."""
    await asyncio.sleep(0)


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of async functions, and hides them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def returns(runner: Any) -> Any:
    """Is plain itself."""
    return waits(runner)


def raised(bus: Bus, way: str) -> BaseException:
    """What is raised by an emission of after_run."""
    emit: Any = {"emit": bus.after_run.emit, "emitters": bus.emitters(ME).after_run}.get(way)
    if emit is None:
        (error,) = bus.after_run.emit_all(ME)
        return error
    with pytest.raises(HookError) as caught:
        emit(ME)
    return caught.value


AWAITABLE = [
    plain(waits),
    torch.no_grad()(waits),
    returns,
    lambda runner: waits(runner),
    functools.partial(plain(waits)),
]


@pytest.mark.parametrize("receiver", AWAITABLE)
@pytest.mark.parametrize("way", ["emit", "emitters", "emit_all"])
def test_a_coroutine_that_nobody_awaits_is_an_error(bus: Bus, receiver: Any, way: str) -> None:
    """At the first emission, from whatever the emission is compiled; Python would only warn, when it is collected."""
    bus.after_run.connect(receiver, sender=ME)
    error = raised(bus, way)
    (name,) = [row.receiver for row in bus.describe(ME)]
    assert str(error) == (
        f"{name} in {where(receiver)} returned a coroutine at 'after_run', which nobody awaits; make it an async def "
        "itself, without a plain function around it, or connect it with offload=True."
    )
    assert error.__notes__ == [f"raised by receiver {name} ({where(receiver)}) at 'after_run'"]


def test_offloaded_a_coroutine_is_awaited(bus: Bus) -> None:
    """As the error says."""
    done: list[Any] = []

    @plain
    async def receiver(runner: Any) -> None:
        await asyncio.sleep(0)
        done.append(runner)

    bus.after_run.connect(receiver, offload=True)
    with bus.open_lanes(ME):
        bus.after_run.emit(ME)
    assert done == [ME]


@contextlib.contextmanager
def manager(runner: Any) -> Any:
    """Is entered by nobody."""
    yield runner


@pytest.mark.parametrize(
    "receiver", [plain(generator), plain(async_generator), manager, lambda runner: (1 for _ in "a")]
)
def test_a_generator_that_is_returned_is_an_error(bus: Bus, receiver: Any) -> None:
    """Where it couldn't be told when the receiver was connected."""
    bus.after_run.connect(receiver)
    with pytest.raises(
        HookError, match=r" returned a generator at 'after_run', of which nothing runs; write it without"
    ):
        bus.after_run.emit(ME)


def test_other_results_are_nobodys_concern(bus: Bus) -> None:
    """A function that does something may well say something of it."""
    for result in (1, "text", [1], {"a": 1}, torch.ones(1), contextlib.nullcontext(), iter([1])):
        bus.after_run.connect(lambda result=result: result)
    bus.after_run.emit(ME)
    bus.before_train_iter.connect(lambda: 3)
    bus.before_train_iter.emit(ME, batch_idx=0, data_batch=[1])
    bus.after_train_iter.connect(lambda outputs: outputs)
    bus.after_train_iter.emit(ME, batch_idx=0, data_batch=[1], outputs={"loss": 1})


def test_send_gives_every_result_to_who_asks(bus: Bus) -> None:
    """That is what it is for."""
    bus.before_train_iter.connect(lambda data_batch: [*data_batch, 2])
    ((_, result),) = bus.before_train_iter.send(ME, batch_idx=0, data_batch=[1])
    assert result == [1, 2]


class Scales(Hook):
    """Gives the batch back, as callbacks of another framework do."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> Any:  # type: ignore[override]
        return data_batch[0] * 2, data_batch[1]


@pytest.mark.parametrize(
    "make", [lambda batch: batch, lambda batch: list(batch), lambda batch: batch[0], lambda batch: {"x": batch[0]}]
)
@pytest.mark.parametrize("mode", ["train", "val", "test"])
def test_a_batch_that_a_receiver_returns_is_an_error(make_runner: MakeRunner, mode: str, make: Any) -> None:
    """The run would go on with the old one; nothing has been trained by then."""
    other = {"test_dataloader": batches(1), "test_evaluator": {"mse": Nothing()}, "val_step": val_step}
    runner = make_runner(val=True, **(other if mode == "test" else {}))
    site = f"before_{mode}_iter"

    @runner.on(site)
    def changes(runner: Any, data_batch: Any) -> Any:
        return make(data_batch)

    kind = type(make((1, 2))).__name__ if not isinstance(make((1, 2)), int) else "Tensor"
    with pytest.raises(HookError) as caught:
        getattr(runner, mode)()
    assert str(caught.value) == (
        f"changes in {where(changes)} returned a {kind} at {site!r}, which nobody takes; change data_batch in place "
        "and return nothing, or do it in the step."
    )
    assert runner.iter == 0


def test_a_batch_that_a_hook_returns_is_an_error_too(make_runner: MakeRunner) -> None:
    """Its methods are receivers."""
    runner = make_runner(custom_hooks=[Scales()])
    with pytest.raises(HookError, match=r"^Scales in .* returned a tuple at 'before_train_iter', which nobody takes"):
        runner.train()


def test_a_checkpoint_that_a_receiver_returns_is_an_error(make_runner: MakeRunner, tmp_path: Path) -> None:
    """Else what it left out would be saved all the same; no checkpoint is there."""
    runner = make_runner(default_hooks={"logger": None})
    runner.on("before_save_checkpoint")(lambda checkpoint: {"state_dict": checkpoint["state_dict"]})
    with pytest.raises(
        HookError, match=r"returned a dict at 'before_save_checkpoint', which nobody takes; change checkpo"
    ):
        runner.train()
    assert not list((tmp_path / "run").glob("*/MANIFEST.json"))


class Nothing:
    """A metric of nothing."""

    def update(self, *outputs: Any) -> None:
        """Nothing."""

    def compute(self) -> float:
        return 0.0

    def reset(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("site", "receiver", "name"),
    [
        ("after_train_iter", lambda metrics: None, "metrics"),
        ("after_train_iter", lambda metrics, **rest: None, "metrics"),
        ("after_train_iter", lambda scalars, /: None, "scalars"),
        ("after_val_epoch", lambda outputs: None, "outputs"),
        ("before_train_epoch", lambda data_batch: None, "data_batch"),
        ("after_train", lambda checkpoint: None, "checkpoint"),
        ("after_run", lambda exception: None, "exception"),
        ("before_train_iter", lambda outputs: None, "outputs"),
        ("before_train_iter", lambda batch: None, "batch"),
        ("after_train_iter", lambda loss: None, "loss"),
        ("after_train_epoch", lambda epoch: None, "epoch"),
        ("before_train", lambda model: None, "model"),
    ],
)
def test_the_runner_is_given_to_no_parameter_that_asks_for_something_else(
    bus: Bus, site: str, receiver: Any, name: str
) -> None:
    """By the name of what another site carries, or of what isn't carried anywhere."""
    for asks in (receiver, functools.partial(receiver)):
        with pytest.raises(SignatureError) as caught:
            bus.find(site, "").connect(asks)
        assert f" asks for {name!r}; {site!r} offers runner" in str(caught.value)
        with pytest.raises(SignatureError):
            bus.find(site, "").connect(lambda: None, when=asks)
    assert len(bus.describe()) == 0


def test_a_payload_of_a_site_of_ones_own_is_no_name_of_the_runner(bus: Bus) -> None:
    """Wherever it is asked for in vain; at its site it is given."""
    bus.site("before_lunch", payload=("dish",))
    with pytest.raises(SignatureError, match=r"asks for 'dish'; 'after_train' offers runner"):
        bus.after_train.connect(lambda dish: None)
    eaten: list[Any] = []
    bus.before_lunch.connect(lambda dish: eaten.append(dish))
    bus.before_lunch.emit(ME, dish="soup")
    assert eaten == ["soup"]


@pytest.mark.parametrize("name", ["runner", "sender", "trainer", "engine", "r", "_", "self", "app"])
def test_the_runner_is_given_to_a_parameter_of_its_own_name(bus: Bus, name: str) -> None:
    """Whatever one calls it."""
    given: list[Any] = []
    receiver = eval(f"lambda {name}: given.append({name})", {"given": given})
    bus.after_train_iter.connect(receiver)
    bus.after_train_iter.emit(ME, batch_idx=0, data_batch=1, outputs=2)
    assert given == [ME]


def test_at_a_site_of_ones_own_the_sender_may_be_a_model(bus: Bus) -> None:
    """Whoever declares it knows who emits."""
    given: list[Any] = []
    bus.site("saved")
    bus.saved.connect(lambda model: given.append(model))
    bus.saved.emit("a model")
    assert given == ["a model"]


def test_a_hook_that_asks_for_another_sites_payload_is_refused(make_runner: MakeRunner) -> None:
    """When it is registered."""

    class Asks(Hook):
        def after_val_epoch(self, outputs: Mapping[str, float]) -> None:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(
        SignatureError, match=r"Asks\.after_val_epoch in .* asks for 'outputs'; 'after_val_epoch' offers"
    ):
        make_runner(custom_hooks=[Asks()])

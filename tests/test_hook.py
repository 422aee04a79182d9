"""Hooks: objects whose methods are named after sites."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eventrunner.bus.bus import Bus
from eventrunner.bus.describe import PlanRow
from eventrunner.bus.priority import Priority
from eventrunner.bus.sites import RUN_SITES
from eventrunner.errors import HookError, OptionError, SignatureError
from eventrunner.hook import Hook, connect_hook, options

Calls = list[Any]
RUN = "run"
"""Stands for a runner: any object can be a sender."""


def connected(bus: Bus) -> list[str]:
    """The sites at which anything is connected."""
    return [row.site for row in bus.describe()]


def payload_of(bus: Bus, site: str) -> dict[str, Any]:
    """A payload for a declared site: each name with itself."""
    return {name: name for name in bus.find(site, site).payload or ()}


class Recorder(Hook):
    """Writes down where it was called."""

    def __init__(self) -> None:
        self.calls: Calls = []


def overriding(name: str) -> Recorder:
    """A hook that overrides one method and records its arguments."""

    def method(self: Recorder, runner: Any, **payload: Any) -> None:
        self.calls.append((name, runner, payload))

    made: Recorder = type("Recording", (Recorder,), {name: method})()
    return made


# Which methods are connected


@pytest.mark.parametrize("name", Hook.stages)
def test_an_overridden_method_is_connected_and_no_other(name: str) -> None:
    """For each site of a run: a hook costs nothing where it does nothing."""
    bus, hook = Bus(), overriding(name)
    handle = connect_hook(bus, hook, RUN)
    assert connected(bus) == [name] == hook.get_triggered_stages()
    assert handle.sites == (bus.find(name, name),)
    bus.find(name, name).emit(RUN, **payload_of(bus, name))
    assert hook.calls == [(name, RUN, payload_of(bus, name))]


def test_the_base_class_has_a_method_for_each_site_of_a_run_in_their_order() -> None:
    """``stages`` names them."""
    assert Hook.stages == tuple(spec.name for spec in RUN_SITES)
    assert all(callable(getattr(Hook, name)) for name in Hook.stages)


def test_the_methods_of_the_base_class_take_what_their_sites_offer() -> None:
    """So that an override may call ``super()`` with all of it, and so does a plain hook connect."""
    bus, hook = Bus(), Hook()
    for name in Hook.stages:
        site = bus.find(name, name)
        site.connect(getattr(hook, name), RUN)
        site.emit(RUN, **payload_of(bus, name))


def test_a_hook_that_overrides_nothing_is_connected_nowhere() -> None:
    """And has no stages."""
    bus = Bus()
    assert connect_hook(bus, Hook(), RUN).sites == ()
    assert connected(bus) == []
    assert Hook().get_triggered_stages() == []


def test_a_hook_hears_only_its_own_run() -> None:
    """Two runs on one bus don't mix."""
    bus, hook = Bus(), overriding("after_run")
    connect_hook(bus, hook, RUN)
    bus.after_run.emit("another run")
    assert hook.calls == []


def test_an_inherited_override_is_connected() -> None:
    """What a class between has overridden counts."""

    class Parent(Recorder):
        def after_run(self, runner: Any) -> None:
            self.calls.append("parent")

    class Child(Parent):
        def before_run(self, runner: Any) -> None:
            """Do nothing."""

    bus = Bus()
    connect_hook(bus, Child(), RUN)
    assert connected(bus) == ["before_run", "after_run"]


def test_a_method_that_a_subclass_sets_to_none_is_not_connected() -> None:
    """The way to take a parent's method away."""

    class Child(type(overriding("after_run"))):  # type: ignore[misc]
        after_run = None

    assert connect_hook(Bus(), Child(), RUN).sites == ()
    assert Child().get_triggered_stages() == []


def test_a_method_patched_onto_an_instance_is_connected() -> None:
    """Pitfall: MMEngine compares classes and doesn't see it."""
    hook, bus, calls = Hook(), Bus(), Calls()
    hook.after_run = calls.append  # type: ignore[method-assign]
    connect_hook(bus, hook, RUN)
    bus.after_run.emit(RUN)
    assert calls == [RUN]
    assert hook.get_triggered_stages() == ["after_run"]


def test_a_hook_whose_class_was_changed_is_connected_as_that_is_now() -> None:
    """Classes are read once, and again when a method was added, exchanged or taken away."""
    bus, calls = Bus(), Calls()

    class Changing(Hook):
        def before_run(self, runner: Any) -> None:
            """To be taken away."""

        def after_run(self) -> None:
            """Take nothing, as yet."""

    connect_hook(bus, Changing(), "another run")
    Changing.after_run = lambda self, runner: calls.append(runner)  # type: ignore[assignment,misc]
    Changing.before_train = lambda self, runner: None  # type: ignore[assignment,method-assign]
    del Changing.before_run
    handle = connect_hook(bus, Changing(), RUN)
    assert [site.name for site in handle.sites] == ["after_run", "before_train"]
    bus.after_run.emit(RUN)
    assert calls == [RUN]


def test_hooks_of_one_class_have_each_their_own_priority_and_counts() -> None:
    """What is read once is neither an object's nor a connection's."""
    bus, calls = Bus(), Calls()

    class Named(Hook):
        def __init__(self, name: str) -> None:
            self.name = name

        def before_run(self, runner: Any) -> None:
            calls.append(self.name)

        @options(once=True)
        def after_run(self, runner: Any) -> None:
            calls.append(self.name)

    for name, priority in (("late", 60), ("early", 40), ("later", 60)):
        connect_hook(bus, Named(name), RUN, priority)
    for site in (bus.before_run, bus.after_run, bus.after_run):
        site.emit(RUN)
    assert calls == ["early", "late", "later"] * 2


def test_a_property_is_neither_connected_nor_evaluated() -> None:
    """It may be costly, or not ready yet."""

    class Lazy(Hook):
        @property
        def on_whim(self) -> Callable[..., None]:
            raise RuntimeError("evaluated")

        @functools.cached_property
        def before_long(self) -> Callable[..., None]:
            raise RuntimeError("evaluated")

    assert connect_hook(Bus(), Lazy(), RUN).sites == ()


@pytest.mark.parametrize("value", [True, 3, "text", [1], None])
def test_an_attribute_that_isnt_a_function_is_not_connected(value: Any) -> None:
    """``EmptyCacheHook(after_epoch=True)`` keeps what it was given."""
    hook = Hook()
    hook.after_run = value
    assert connect_hook(Bus(), hook, RUN).sites == ()


def test_the_kinds_of_methods_that_a_class_can_have_are_all_connected() -> None:
    """Static, of the class, partial, decorated."""
    calls = Calls()

    class Kinds(Hook):
        @staticmethod
        def before_run(runner: Any) -> None:
            calls.append("static")

        @classmethod
        def before_train(cls, runner: Any) -> None:
            calls.append(cls.__name__)

        def record(self, what: str, runner: Any) -> None:
            calls.append(what)

        after_train = functools.partialmethod(record, "partial")

        @torch.no_grad()
        def after_run(self, runner: Any) -> None:
            calls.append(torch.is_grad_enabled())

    bus = Bus()
    handle = connect_hook(bus, Kinds(), RUN)
    for site in (bus.before_run, bus.before_train, bus.after_train, bus.after_run):
        site.emit(RUN)
    assert calls == ["static", "Kinds", "partial", False]
    handle.remove()
    assert connected(bus) == []


def test_a_plain_object_with_methods_named_after_sites_is_a_hook() -> None:
    """With slots, too: it needs neither the base class nor a ``__dict__``."""

    class Slotted:
        __slots__ = ("calls",)

        def __init__(self) -> None:
            self.calls = Calls()

        def after_run(self, runner: Any) -> None:
            self.calls.append(runner)

        def helper(self) -> None:
            """Not named after a site."""

    bus, hook = Bus(), Slotted()
    connect_hook(bus, hook, RUN)
    bus.after_run.emit(RUN)
    assert hook.calls == [RUN]
    assert connected(bus) == ["after_run"]


def test_a_hook_with_slots_is_connected() -> None:
    """A subclass of the base class may have them."""

    class Slotted(Hook):
        __slots__ = ("last",)

        def after_run(self, runner: Any) -> None:
            self.last = runner

    bus, hook = Bus(), Slotted()
    connect_hook(bus, hook, RUN)
    bus.after_run.emit(RUN)
    assert hook.last == RUN


def test_an_override_gets_the_arguments_that_it_names() -> None:
    """In any order, and fewer than the site has."""
    calls = Calls()

    class Choosy(Hook):
        def after_train_iter(self, outputs: Any, *, runner: Any) -> None:  # type: ignore[override]
            calls.append((outputs, runner))

        def after_val_epoch(self) -> None:  # type: ignore[override]
            calls.append("val")

    bus = Bus()
    connect_hook(bus, Choosy(), RUN)
    bus.after_train_iter.emit(RUN, batch_idx=0, data_batch=None, outputs="out")
    bus.after_val_epoch.emit(RUN, metrics={})
    assert calls == [("out", RUN), "val"]


def test_the_stages_of_a_hook_are_in_the_order_of_a_run() -> None:
    """Pitfall: MMEngine builds them from a set, in any order."""
    hook = Hook()
    for name in reversed(Hook.stages):
        setattr(hook, name, print)
    assert tuple(hook.get_triggered_stages()) == Hook.stages


# Fan-in methods


class AllEpochs(Recorder):
    """Has one method for the ends of all epochs."""

    def _after_epoch(self, runner: Any, mode: str = "train") -> None:
        self.calls.append((runner, mode))


class AllIterations(Recorder):
    """Has one method for the ends of all iterations."""

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        self.calls.append((runner, batch_idx, data_batch, outputs, mode))


FANS = {
    "_before_epoch": ["before_train_epoch", "before_val_epoch", "before_test_epoch"],
    "_after_epoch": ["after_train_epoch", "after_val_epoch", "after_test_epoch"],
    "_before_iter": ["before_train_iter", "before_val_iter", "before_test_iter"],
    "_after_iter": ["after_train_iter", "after_val_iter", "after_test_iter"],
}


@pytest.mark.parametrize(("private", "sites"), FANS.items())
def test_a_fan_in_method_is_called_at_its_three_sites_with_their_mode(private: str, sites: list[str]) -> None:
    """And with the payload that iteration sites have."""
    bus, hook = Bus(), overriding(private)
    connect_hook(bus, hook, RUN)
    assert connected(bus) == hook.get_triggered_stages() == sites
    for site in sites:
        bus.find(site, site).emit(RUN, **payload_of(bus, site))
    payloads = [{name: name for name in payload_of(bus, site) if name != "metrics"} for site in sites]
    modes = ("train", "val", "test")
    expected = [(private, RUN, {**carried, "mode": mode}) for carried, mode in zip(payloads, modes, strict=True)]
    assert hook.calls == expected


def test_a_fan_in_method_patched_onto_an_instance_is_called() -> None:
    """As one of the class."""
    bus, hook, calls = Bus(), Hook(), Calls()
    hook._after_epoch = lambda runner, mode: calls.append(mode)  # type: ignore[method-assign,assignment,misc]
    connect_hook(bus, hook, RUN)
    bus.after_test_epoch.emit(RUN, metrics={})
    assert calls == ["test"]


def test_a_method_of_its_own_goes_before_the_fan_in_one() -> None:
    """MMEngine's rule: the fan-in method is what the base class's method calls."""

    class Mixed(AllEpochs):
        def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
            self.calls.append(metrics)

    bus, hook = Bus(), Mixed()
    connect_hook(bus, hook, RUN)
    bus.after_train_epoch.emit(RUN)
    bus.after_val_epoch.emit(RUN, metrics="metrics")
    assert hook.calls == [(RUN, "train"), "metrics"]


# Options


def test_the_priority_is_the_arguments_else_the_hooks_else_normal() -> None:
    """As numbers in the plan."""

    class Low(Hook):
        priority = "LOW"

        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    class Plain:
        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    bus = Bus()
    connect_hook(bus, Low(), RUN, priority=Priority.HIGH)
    connect_hook(bus, Plain(), RUN)
    connect_hook(bus, Low(), RUN)
    assert [(row.receiver, row.priority) for row in bus.describe(RUN)] == [("Low", 30), ("Plain", 50), ("Low", 70)]


def test_a_method_may_have_options_of_its_own() -> None:
    """Its priority goes before the hook's, given or not; the others keep that."""

    class Optioned(Recorder):
        @options(priority="VERY_HIGH", every=2, label="mine")
        def after_train_epoch(self, runner: Any) -> None:
            self.calls.append(runner.epoch)

        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    bus, hook, run = Bus(), Optioned(), SimpleNamespace(epoch=0)
    connect_hook(bus, hook, run, priority="LOW")
    for run.epoch in range(4):
        bus.after_train_epoch.emit(run)
    assert hook.calls == [1, 3]
    rows = {row.site: (row.receiver, row.priority, row.filters) for row in bus.describe(run)}
    assert rows == {"after_train_epoch": ("mine", 10, "every 2 epochs"), "after_run": ("Optioned", 70, "")}


def test_options_stack_and_pass_through_decorators() -> None:
    """The outer one goes before the inner one."""

    class Stacked(Hook):
        @options(priority="LOW", start=3)
        @torch.no_grad()
        @options(priority="HIGH", once=True)
        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    bus = Bus()
    connect_hook(bus, Stacked(), RUN)
    (row,) = bus.describe()
    assert (row.priority, row.filters) == (70, "from emission 3, once")


def test_options_hold_for_static_methods_and_methods_of_the_class() -> None:
    """Written inside or outside of their decorators."""

    class Kinds(Hook):
        @options(priority=1)
        @staticmethod
        def before_run(runner: Any) -> None:
            """Do nothing."""

        @staticmethod
        @options(priority=2)
        def before_train(runner: Any) -> None:
            """Do nothing."""

        @options(priority=3)
        @classmethod
        def after_train(cls, runner: Any) -> None:
            """Do nothing."""

        @classmethod
        @options(priority=4)
        def after_run(cls, runner: Any) -> None:
            """Do nothing."""

    bus = Bus()
    connect_hook(bus, Kinds(), RUN)
    assert [row.priority for row in bus.describe()] == [1, 2, 3, 4]


def test_options_of_a_fan_in_method_hold_for_its_sites() -> None:
    """Except where the hook has the site's own method."""

    class Fan(Hook):
        @options(every=5)
        def _after_epoch(self, runner: Any, mode: str = "train") -> None:
            """Do nothing."""

        def after_test_epoch(self, runner: Any, metrics: Any = None) -> None:
            """Do nothing."""

    bus = Bus()
    connect_hook(bus, Fan(), RUN)
    rows = {row.site: row.filters for row in bus.describe()}
    assert rows == {
        "after_train_epoch": "every 5 epochs",
        "after_val_epoch": "every 5 emissions",
        "after_test_epoch": "",
    }


def test_an_override_doesnt_inherit_the_options_of_what_it_overrides() -> None:
    """It is another method; a class that adds none does."""

    class Parent(Hook):
        @options(every=2)
        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    class Same(Parent):
        """Nothing new."""

    class Other(Parent):
        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    bus = Bus()
    connect_hook(bus, Same(), RUN)
    connect_hook(bus, Other(), RUN)
    assert [row.filters for row in bus.describe()] == ["every 2 emissions", ""]


def test_a_hook_is_shown_by_its_class_and_the_place_of_its_method() -> None:
    """In the plan."""
    bus, hook = Bus(), AllEpochs()
    hook.after_run = hook.every_n_epochs  # type: ignore[method-assign,assignment]
    connect_hook(bus, overriding("after_run"), RUN)
    place = f"tests/test_hook.py:{overriding('after_run').after_run.__func__.__code__.co_firstlineno}"  # type: ignore[attr-defined]
    assert list(bus.describe()) == [PlanRow("after_run", 50, "Recording", place, "")]


# Custom sites


def test_a_hook_declares_a_site_by_a_method_that_resembles_none() -> None:
    """Anyone may then emit it, with any payload."""

    class Day(Recorder):
        def after_finish_work(self, runner: Any, are_you_busy: bool = False) -> None:
            self.calls.append((runner, are_you_busy))

    bus, hook = Bus(()), Day()
    connect_hook(bus, hook, RUN)
    assert (bus.after_finish_work.payload, bus.after_finish_work.__doc__) == (None, "Declared by Day.")
    bus.after_finish_work.emit(RUN, are_you_busy=True)
    bus.after_finish_work.emit(RUN)
    bus.after_finish_work.emit(RUN, are_you_busy=True, weather="fine")
    assert hook.calls == [(RUN, True), (RUN, False), (RUN, True)]


def test_a_second_hook_joins_the_site_that_the_first_declared() -> None:
    """One site, in the order of registration."""
    bus, calls = Bus(()), Calls()
    for name in ("one", "two"):
        method = functools.partialmethod(lambda self, name, runner: calls.append(name), name)
        connect_hook(bus, type("Eater", (Hook,), {"before_lunch": method})(), RUN)
    bus.before_lunch.emit(RUN)
    assert calls == ["one", "two"]


def test_a_function_that_a_hook_keeps_is_no_method_of_it() -> None:
    """Whatever the attribute is called, its owner calls it, not a site."""
    bus, hook = Bus(), Hook()
    hook.on_done = hook.on_epoch_end = print  # type: ignore[attr-defined]
    connect_hook(bus, hook, RUN)
    assert "on_done" not in bus
    assert len(bus.describe(RUN)) == 0


def test_a_fan_in_method_takes_all_that_is_passed_on() -> None:
    """One that names less is refused when it is registered, by its own place, not at the first iteration."""

    class Short(Hook):
        def _after_iter(self, runner: Any, batch_idx: int) -> None:  # type: ignore[override]
            """Lack the rest."""

    with pytest.raises(SignatureError) as caught:
        connect_hook(Bus(), Short(), RUN)
    assert re.fullmatch(
        r"Short\._after_iter in \S*test_hook\.py:\d+ must take runner, batch_idx, data_batch, outputs, mode: "
        r"got an unexpected keyword argument 'data_batch'\.",
        str(caught.value),
    )


def test_a_plan_and_an_error_point_at_a_fan_in_methods_own_code() -> None:
    """Not at the method of Hook that calls it, which is no news to anybody."""

    class Failing(Hook):
        def _after_epoch(self, runner: Any, mode: str = "train") -> None:
            raise ValueError(mode)

    bus = Bus()
    connect_hook(bus, Failing(), RUN)
    place = f"test_hook.py:{Failing._after_epoch.__code__.co_firstlineno}"
    assert {row.location.rpartition("/")[2] for row in bus.describe(RUN)} == {place}
    with pytest.raises(ValueError, match="val") as caught:
        bus.after_val_epoch.emit(RUN, metrics={})
    assert place in caught.value.__notes__[0]


@pytest.mark.parametrize("name", ["_after_itr", "_before_epochs", "_afer_epoch"])
def test_a_fan_in_method_misspelt_is_refused(name: str) -> None:
    """One letter off, nothing would call it."""
    hook = type("Slip", (Hook,), {name: lambda self, runner, mode="train": None})()
    with pytest.raises(HookError, match=r"that nothing calls; did you mean '_(after_iter|before_epoch|after_epoch)'"):
        connect_hook(Bus(), hook, RUN)


def test_an_older_handle_leaves_a_newer_registration_alone() -> None:
    """Removing the first handle of a hook that was registered again since takes nothing away."""
    bus, calls = Bus(), Calls()
    hook = type("Counter", (Hook,), {"after_run": lambda self, runner: calls.append(1)})()
    first, second = connect_hook(bus, hook, RUN), connect_hook(bus, hook, RUN)
    first.remove()
    bus.after_run.emit(RUN)
    assert calls == [1]
    second.remove()
    bus.after_run.emit(RUN)
    assert calls == [1]


def test_a_method_named_after_a_declared_site_is_connected_whatever_its_beginning() -> None:
    """``lunch`` is a site if someone said so, and a helper otherwise."""

    class Eater(Recorder):
        def lunch(self, runner: Any, dish: str) -> None:
            self.calls.append(dish)

    bus, hook = Bus(()), Eater()
    connect_hook(Bus(()), hook, RUN)
    bus.site("lunch", ("dish",))
    connect_hook(bus, hook, RUN)
    bus.lunch.emit(RUN, dish="soup")
    assert hook.calls == ["soup"]


def test_a_hook_is_called_at_the_sites_of_modules() -> None:
    """They are on the bus, though not among a run's."""
    bus, hook = Bus(), overriding("after_forward")
    connect_hook(bus, hook, RUN)
    assert connected(bus) == ["after_forward"]
    assert hook.get_triggered_stages() == []


# Taking back


def test_a_handle_removes_all_of_the_hook_and_nothing_else() -> None:
    """A second time does nothing."""
    bus, hook = Bus(), AllIterations()
    connect_hook(bus, AllEpochs(), RUN)
    handle = connect_hook(bus, hook, RUN)
    connect_hook(bus, hook, "another run")
    handle.remove()
    handle.remove()
    assert handle.removed
    assert handle.sites == ()
    assert connected(bus) == FANS["_after_iter"][:1] + FANS["_after_epoch"][:1] + [
        "after_val_iter",
        "after_val_epoch",
        "after_test_iter",
        "after_test_epoch",
    ]
    assert [row.receiver for row in bus.describe(RUN)] == ["AllEpochs"] * 3


def test_a_handle_is_a_context_manager() -> None:
    """For a part of a run."""
    bus = Bus()
    with connect_hook(bus, overriding("after_run"), RUN) as handle:
        assert connected(bus) == ["after_run"]
        assert not handle.removed
    assert connected(bus) == []


def test_a_handle_removes_what_it_connected_though_the_hook_has_changed_since() -> None:
    """It remembers the methods, not their names."""
    bus, hook, calls = Bus(), Hook(), Calls()
    hook.after_run = lambda runner: calls.append("old")  # type: ignore[method-assign,assignment]
    handle = connect_hook(bus, hook, RUN)
    hook.after_run = lambda runner: calls.append("new")  # type: ignore[method-assign,assignment]
    handle.remove()
    bus.after_run.emit(RUN)
    assert calls == []


def test_registering_again_replaces_the_priority() -> None:
    """The same object is the same hook."""
    bus, hook = Bus(), overriding("after_run")
    connect_hook(bus, hook, RUN)
    connect_hook(bus, hook, RUN, priority="LOW")
    assert [row.priority for row in bus.describe()] == [70]


# Refusals


def at(function: Callable[..., Any]) -> str:
    """``file:line`` of a function of this file."""
    return f"tests/test_hook.py:{function.__code__.co_firstlineno}"


class Half(Hook):
    """Right at its first sites, wrong at the last."""

    def after_breakfast(self, runner: Any) -> None:
        """A site of its own."""

    def before_run(self, runner: Any) -> None:
        """Right."""

    def on_log(self, runner: Any, scalar: Any) -> None:  # type: ignore[override]
        """Wrong."""


def test_a_hook_that_is_refused_leaves_nothing_behind() -> None:
    """No connection, no declared site, though other methods were right."""
    bus = Bus()
    before = [site.name for site in bus]
    message = (
        f"Half.on_log in {at(Half.on_log)} asks for 'scalar'; 'on_log' offers runner, scalars, step; did you mean "
    )
    with pytest.raises(SignatureError, match=f"^{re.escape(message)}'scalars'\\?$"):
        connect_hook(bus, Half(), RUN)
    assert connected(bus) == []
    assert [site.name for site in bus] == before


def test_a_hook_that_is_refused_anew_keeps_its_older_registration() -> None:
    """Nothing has changed for it."""
    bus, hook = Bus(), overriding("before_run")
    connect_hook(bus, hook, RUN, priority="LOW")
    hook.after_run = lambda runner, nothing: None  # type: ignore[method-assign,assignment,misc]
    with pytest.raises(SignatureError, match="asks for 'nothing'"):
        connect_hook(bus, hook, RUN, priority="HIGH")
    assert [(row.site, row.priority) for row in bus.describe()] == [("before_run", 70)]


def test_a_hook_whose_connecting_fails_midway_is_disconnected() -> None:
    """Someone who watches connections may refuse one."""
    bus, hook = Bus(), AllEpochs()

    def refuse() -> None:
        raise PermissionError("not here")

    bus.after_val_epoch.receiver_connected.connect(refuse)
    with pytest.raises(PermissionError, match="not here"):
        connect_hook(bus, hook, RUN)
    assert connected(bus) == []


def test_a_class_isnt_a_hook() -> None:
    """Its functions have no object to be called on."""
    with pytest.raises(
        HookError, match=r"^connecting AllEpochs: give an object, as in AllEpochs\(\), not the class\.$"
    ):
        connect_hook(Bus(), AllEpochs, RUN)


@pytest.mark.parametrize("given", [True, False])
def test_a_priority_that_cant_be_is_refused_with_the_hooks_name(given: bool) -> None:
    """Given with the hook or by its class."""
    hook = overriding("after_run")
    hook.priority = "NORMAL" if given else "URGENT"
    with pytest.raises(OptionError, match=r"^connecting Recording: priority 'URGENT' is not one of HIGHEST, "):
        connect_hook(Bus(), hook, RUN, priority="URGENT" if given else None)


NAMES = (
    "priority, every, start, once, when, label, offload, lane, barrier, max_pending, on_full, on_error, retries, "
    "worker, mutates, ranks, collective"
)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"evry": 2},
            f"there is no option 'evry', only {NAMES}; did you mean 'every'?",
        ),
        ({"every": 0}, "every=0: give an int of 1 or more, or a time such as '10min'."),
        ({"sender": 1}, f"there is no option 'sender', only {NAMES}."),
    ],
)
def test_options_that_cant_be_are_refused_where_they_stand(chosen: dict[str, Any], message: str) -> None:
    """When the class is written, not when the hook is registered."""

    def after_run(self: Hook, runner: Any) -> None:
        """Do nothing."""

    with pytest.raises(OptionError, match=f"^@options on after_run in {at(after_run)}: {re.escape(message)}$"):
        options(**chosen)(after_run)


def test_a_predicate_of_a_method_is_checked_against_its_site() -> None:
    """When the hook is registered."""

    class Conditional(Hook):
        @options(when=lambda runner, metrics: metrics)
        def after_run(self, runner: Any) -> None:
            """Do nothing."""

    with pytest.raises(SignatureError, match=r"asks for 'metrics'; 'after_run' offers runner\.$"):
        connect_hook(Bus(), Conditional(), RUN)


HONEST = (
    "after_backward after_breakfast before_dinner after_finish_work after_step_1 before_sunrise on_click on_batch "
    "on_save_image on_error on_loss before_everything after_party before_work on_lag_spike"
)
HELPERS = (
    "to_log do_log log train val test run state_dict load_state_dict train_epoch val_iter completed terminate started"
)


@pytest.mark.parametrize("name", HONEST.split())
def test_an_honest_name_of_ones_own_declares_a_site(name: str) -> None:
    """It is neither a slip nor another framework's."""
    bus, hook = Bus(), overriding(name)
    connect_hook(bus, hook, RUN)
    assert connected(bus) == [name]


@pytest.mark.parametrize("name", HELPERS.split())
def test_a_helper_is_left_alone(name: str) -> None:
    """A method that doesn't begin like a site is the hook's own business."""
    bus = Bus()
    assert connect_hook(bus, overriding(name), RUN).sites == ()


def refusal(name: str) -> str:
    """How the error goes on after the hook, the method's name and its place."""
    hook, bus = overriding(name), Bus()
    start = f"hook Recording has a method {name!r} ({at(getattr(hook, name).__func__)})"
    with pytest.raises(HookError, match=f"^{re.escape(start)}") as caught:
        connect_hook(bus, hook, RUN)
    assert connected(bus) == []
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("on_train_epoch_end", ": that is Lightning's name; here it is 'after_train_epoch'."),
        ("on_epoch_begin", ": that is Keras' and Hugging Face's name; here it is 'before_train_epoch'."),
        ("epoch_end", ": that is Composer's name; here it is 'after_train_epoch'."),
        ("EPOCH_COMPLETED", ": that is Ignite's name; here it is 'after_train_epoch'."),
    ],
)
def test_a_name_of_another_framework_is_refused(name: str, ending: str) -> None:
    """The message says what it is called here."""
    assert refusal(name) == ending


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("after_eval", "after_val"),
        ("before_train_itr", "before_train_iter"),
        ("after_training", "after_train"),
        ("before_validation_epoch", "before_val_epoch"),
        ("after_train_batch", "after_train_iter"),
        ("after_eval_batch", "after_val_iter"),
        ("before_test_step", "before_test_iter"),
        ("after_load_checkpoints", "after_load_checkpoint"),
    ],
)
def test_a_name_that_resembles_a_sites_is_refused(name: str, site: str) -> None:
    """Pitfall: a misspelt method of an MMEngine hook is never called, and nobody says so."""
    assert refusal(name) == f" that no site calls, and no site of that name is declared; did you mean {site!r}?"


def test_a_near_miss_is_honest_once_it_is_declared() -> None:
    """Someone means it."""
    bus, hook = Bus(), overriding("after_eval")
    bus.site("after_eval")
    connect_hook(bus, hook, RUN)
    bus.after_eval.emit(RUN)
    assert hook.calls == [("after_eval", RUN, {})]


# Helpers


def helper_counts(method: Callable[..., bool], counter: str, *arguments: int) -> list[int]:
    """The numbers, from 1 to 10, at which a helper says yes."""
    return [number for number in range(1, 11) if method(SimpleNamespace(**{counter: number - 1}), *arguments)]


@pytest.mark.parametrize(
    ("n", "start", "numbers"),
    [
        (1, 0, list(range(1, 11))),
        (2, 0, [2, 4, 6, 8, 10]),
        (2, 5, [5, 7, 9]),
        (3, 1, [1, 4, 7, 10]),
        (4, 10, [10]),
        (2, 11, []),
        (0, 0, []),
        (-1, 0, []),
    ],
)
def test_intervals_begin_at_start_as_mmengines_do(n: int, start: int, numbers: list[int]) -> None:
    """Epochs and iterations alike, counted from 1."""
    hook = Hook()
    assert helper_counts(hook.every_n_epochs, "epoch", n, start) == numbers
    assert helper_counts(hook.every_n_train_iters, "iter", n, start) == numbers
    if start == 0:
        assert helper_counts(hook.every_n_epochs, "epoch", n) == numbers
        assert helper_counts(hook.every_n_iters, "iter", n) == numbers


@pytest.mark.parametrize(("n", "indices"), [(1, [0, 1, 2, 3, 4, 5]), (3, [2, 5]), (7, []), (0, []), (-2, [])])
def test_inner_iterations_are_counted_by_the_batch(n: int, indices: list[int]) -> None:
    """No runner is asked for."""
    assert [index for index in range(6) if Hook().every_n_inner_iters(index, n)] == indices


def test_the_end_of_an_epoch_is_the_last_batch_of_its_dataloader() -> None:
    """Of anything that has a length."""
    assert [Hook().end_of_epoch(range(3), index) for index in range(3)] == [False, False, True]


@pytest.mark.parametrize(("maximum", "last"), [(3, [False, False, True]), (None, [False] * 3)])
def test_the_last_epoch_and_iteration_are_those_planned(maximum: int | None, last: list[bool]) -> None:
    """None where it isn't known."""
    runners: list[Any] = [SimpleNamespace(epoch=n, iter=n, max_epochs=maximum, max_iters=maximum) for n in range(3)]
    assert [Hook().is_last_train_epoch(runner) for runner in runners] == last
    assert [Hook().is_last_train_iter(runner) for runner in runners] == last


# Failures


def test_a_typeerror_in_a_hook_keeps_its_traceback_and_names_the_hook() -> None:
    """Pitfall: MMEngine raises another one ``from None``, without the place of the mistake."""

    class Faulty(Hook):
        def after_run(self, runner: Any) -> None:
            len(3)  # type: ignore[arg-type]

    bus = Bus()
    connect_hook(bus, Faulty(), RUN)
    with pytest.raises(TypeError, match="object of type 'int' has no len") as caught:
        bus.after_run.emit(RUN)
    assert caught.traceback[-1].name == "after_run"
    assert caught.value.__notes__ == [f"raised by receiver Faulty ({at(Faulty.after_run)}) at 'after_run'"]

"""Sites and the bus: who is called, in which order, and what becomes of changes and failures on the way."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import re
import traceback
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import blinker
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventrunner.bus.bus import ANY, Bus, Site, default_bus, on
from eventrunner.bus.priority import Priority
from eventrunner.bus.sites import CATALOGUE, SiteSpec
from eventrunner.errors import HookError, OptionError, SignatureError, UnknownSiteError

Calls = list[Any]


class Sender:
    """A sender that can be referred to weakly."""


@pytest.fixture
def bus() -> Bus:
    """A bus with one site of one's own, ``lunch``, which carries a dish."""
    bus = Bus(())
    bus.site("lunch", ("dish",), "At noon.")
    return bus


@pytest.fixture
def calls() -> Calls:
    """What receivers write down."""
    return []


def noting(calls: Calls, name: str) -> Callable[[], None]:
    """A receiver that writes down its name."""
    return lambda: calls.append(name)


def emit(bus: Bus, sender: Any) -> None:
    """The payload goes by keyword."""
    bus.lunch.emit(sender, dish="soup")


def send(bus: Bus, sender: Any) -> None:
    """Blinker's own form."""
    bus.lunch.send(sender, dish="soup")


def emit_all(bus: Bus, sender: Any) -> None:
    """The form for the sites at which a run is left."""
    assert bus.lunch.emit_all(sender, dish="soup") == []


def emitters(bus: Bus, sender: Any) -> None:
    """The form of the loops."""
    emission = bus.emitters(sender).lunch
    if emission:
        emission(sender, dish="soup")


def send_async(bus: Bus, sender: Any) -> None:
    """Plain receivers are wrapped."""
    asyncio.run(bus.lunch.send_async(sender, dish="soup", _sync_wrapper=awaited))


def awaited(receiver: Callable[..., Any]) -> Callable[..., Any]:
    """What ``_sync_wrapper`` takes."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        return receiver(*args, **kwargs)

    return call


WAYS = [emit, send, emit_all, emitters, send_async]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
Way = Callable[[Bus, Any], None]


# Order


@every_way
def test_receivers_run_by_priority_and_then_in_the_order_of_connection(bus: Bus, calls: Calls, way: Way) -> None:
    """Those of anybody and those of the sender are one sequence."""
    lunch, sender = bus.lunch, Sender()
    lunch.connect(noting(calls, "normal"))
    lunch.connect(noting(calls, "low, anybody"), priority="LOW")
    lunch.connect(noting(calls, "low, sender"), sender, priority=70)
    lunch.connect(noting(calls, "normal, sender"), sender)
    lunch.connect(noting(calls, "normal, last"), priority=Priority.NORMAL)
    lunch.connect(noting(calls, "first"), sender, priority=0)
    lunch.connect(noting(calls, "somebody else's"), Sender())
    way(bus, sender)
    assert calls == ["first", "normal", "normal, sender", "normal, last", "low, anybody", "low, sender"]


@every_way
def test_a_receiver_of_anybody_and_of_the_sender_runs_once_as_connected_to_the_sender(
    bus: Bus, calls: Calls, way: Way
) -> None:
    """The nearer connection counts."""
    receiver, sender = noting(calls, "both"), Sender()
    bus.lunch.connect(receiver, priority="LOWEST")
    bus.lunch.connect(noting(calls, "other"))
    bus.lunch.connect(receiver, sender, priority="HIGHEST")
    way(bus, sender)
    way(bus, None)
    assert calls == ["both", "other", "other", "both"]


def test_connecting_again_replaces_the_options_and_keeps_the_place(bus: Bus, calls: Calls) -> None:
    """Pitfall: Ignite runs a handler that was added twice twice; here it runs once, with the new options."""
    first, second = noting(calls, "first"), noting(calls, "second")
    bus.lunch.connect(first, priority="LOW", once=True)
    bus.lunch.connect(second)
    bus.lunch.connect(first)
    for _ in range(2):
        emit(bus, None)
    assert calls == ["first", "second", "first", "second"]
    assert len(bus.describe()) == 2


def test_the_same_bound_method_is_the_same_receiver(bus: Bus) -> None:
    """Python makes a new object at each access."""

    class Cook:
        def cook(self) -> None:
            """Do nothing."""

    one, other = Cook(), Cook()
    bus.lunch.connect(one.cook)
    bus.lunch.connect(one.cook)
    bus.lunch.connect(other.cook)
    assert len(bus.describe()) == 2
    bus.lunch.disconnect(one.cook)
    assert list(bus.lunch.receivers_for(None)) == [other.cook]


class Model:
    """What a site should do, in a few lines over a dict."""

    def __init__(self) -> None:
        self.connections: dict[tuple[int, Any], tuple[int, int]] = {}
        self.count = 0
        self.before: list[tuple[tuple[int, Any], tuple[int, int] | None]] = []
        self.muted: list[bool] = []

    def connect(self, receiver: int, sender: Any, priority: int) -> None:
        self.count += 1
        order = self.connections.get((receiver, sender), (0, self.count))[1]
        self.connections[receiver, sender] = priority, order

    def disconnect(self, receiver: int, sender: Any) -> None:
        for key in list(self.connections):
            if key[0] == receiver and (sender is ANY or key[1] == sender):
                del self.connections[key]

    def enter(self, receiver: int, sender: Any, priority: int) -> None:
        self.before.append(((receiver, sender), self.connections.get((receiver, sender))))
        self.connect(receiver, sender, priority)

    def leave(self) -> None:
        key, before = self.before.pop()
        if before is None:
            self.connections.pop(key, None)
        else:
            self.connections[key] = before

    def called(self, sender: Any) -> list[int]:
        chosen = {r: place for (r, s), place in self.connections.items() if s is ANY}
        chosen.update({r: place for (r, s), place in self.connections.items() if s == sender})
        return [] if any(self.muted) else sorted(chosen, key=lambda receiver: chosen[receiver])


receivers, some_sender = st.integers(0, 4), st.sampled_from([ANY, "a", "b"])
operations = st.one_of(
    st.tuples(st.just("connect"), receivers, some_sender, st.sampled_from([10, 50, 90])),
    st.tuples(st.just("disconnect"), receivers, some_sender),
    st.tuples(st.just("enter"), receivers, some_sender, st.sampled_from([10, 50, 90])),
    st.tuples(st.just("leave")),
    st.tuples(st.just("renew"), st.sampled_from(["a", "b"])),
    st.tuples(st.sampled_from(["mute", "unmute"])),
    st.tuples(st.sampled_from(["set muted", "set unmuted"])),
)


@settings(deadline=None)
@given(st.lists(operations, max_size=25))
@example([("connect", 0, "a", 50), ("enter", 0, "a", 10), ("disconnect", 0, ANY), ("leave",)])
def test_every_way_of_emitting_agrees_with_a_simple_model(sequence: list[tuple[Any, ...]]) -> None:
    """After any connecting, disconnecting, muting and dying of senders, in the same order, or with nobody there."""
    bus, model, calls = Bus(()), Model(), Calls()
    site = bus.site("lunch", ("dish",))
    functions = [(lambda i=i: calls.append(i)) for i in range(5)]
    senders: dict[str, Any] = {"a": Sender(), "b": Sender(), "c": Sender()}
    held = {name: bus.emitters(sender) for name, sender in senders.items()}
    blocks: list[contextlib.AbstractContextManager[None]] = []
    mutes: list[contextlib.AbstractContextManager[None]] = []
    model.muted = [False]  # the flag; open blocks follow
    for kind, *rest in sequence:
        if kind == "connect":
            receiver, sender, priority = rest
            site.connect(functions[receiver], senders.get(sender, ANY), priority=priority)
            model.connect(receiver, sender, priority)
        elif kind == "disconnect":
            receiver, sender = rest
            site.disconnect(functions[receiver], senders.get(sender, ANY))
            model.disconnect(receiver, sender)
        elif kind == "enter":
            receiver, sender, priority = rest
            blocks.append(site.connected_to(functions[receiver], senders.get(sender, ANY), priority=priority))
            blocks[-1].__enter__()
            model.enter(receiver, sender, priority)
        elif kind == "leave" and blocks:
            blocks.pop().__exit__(None, None, None)
            model.leave()
        elif kind == "renew" and not blocks:  # an open block keeps its sender alive
            (name,) = rest
            del senders[name]
            gc.collect(0)
            senders[name] = Sender()  # perhaps where the old one was
            held[name] = bus.emitters(senders[name])
            for receiver in range(5):
                model.disconnect(receiver, name)
        elif kind == "mute":
            mutes.append(site.muted())
            mutes[-1].__enter__()
            model.muted.append(True)
        elif kind == "unmute" and mutes:
            mutes.pop(0).__exit__(None, None, None)  # in the order of entering: blocks may overlap
            model.muted.pop()
        elif kind.startswith("set"):
            site.is_muted = model.muted[0] = kind == "set muted"
        for name, sender in senders.items():
            expected = model.called(name)
            for way in (emit, send, emit_all, emitters):
                calls.clear()
                way(bus, sender)
                assert calls == expected, way
            calls.clear()
            emission = held[name].lunch
            assert (emission is None) == (not expected)
            if emission:
                emission(sender, dish="soup")
                assert calls == expected
            if not site.is_muted:
                assert list(site.receivers_for(sender)) == [functions[i] for i in expected]
                assert site.has_receivers_for(sender) == bool(expected)
    keys = {(id(functions[r]), 0 if s is ANY else id(senders[s])) for r, s in model.connections}
    assert set(site.receivers) == {receiver_id for receiver_id, _ in keys}
    assert {(r, s) for r, bucket in site._by_receiver.items() for s in bucket} == keys  # blinker's own tables
    assert {(r, s) for s, bucket in site._by_sender.items() for r in bucket} == keys


# Changes during an emission


@every_way
def test_a_receiver_that_is_connected_during_an_emission_runs_at_the_next(bus: Bus, calls: Calls, way: Way) -> None:
    """Pitfall: Ignite runs a handler that is added during a fire at once."""

    def first() -> None:
        calls.append("first")
        bus.lunch.connect(late)

    late = noting(calls, "late")
    bus.lunch.connect(first)
    way(bus, None)
    assert calls == ["first"]
    way(bus, None)
    assert calls == ["first", "first", "late"]


@every_way
def test_a_receiver_that_is_disconnected_during_an_emission_still_runs_in_it(bus: Bus, calls: Calls, way: Way) -> None:
    """The plan of an emission is fixed when it begins."""
    bus.lunch.connect(lambda: bus.lunch.disconnect(late))
    late = noting(calls, "late")
    bus.lunch.connect(late)
    way(bus, None)
    way(bus, None)
    assert calls == ["late"]


@every_way
def test_a_receiver_may_disconnect_itself(bus: Bus, calls: Calls, way: Way) -> None:
    """Pitfall: removing a handler inside itself skips the next one, where a list is walked; here it doesn't."""

    def once() -> None:
        calls.append("once")
        bus.lunch.disconnect(once)

    bus.lunch.connect(once)
    bus.lunch.connect(noting(calls, "next"))
    way(bus, None)
    way(bus, None)
    assert calls == ["once", "next", "next"]


@every_way
def test_muting_during_an_emission_takes_effect_at_the_next(bus: Bus, calls: Calls, way: Way) -> None:
    """As every change does."""

    def mute() -> None:
        bus.lunch.is_muted = True

    bus.lunch.connect(mute)
    bus.lunch.connect(noting(calls, "next"))
    way(bus, None)
    way(bus, None)
    assert calls == ["next"]


@pytest.mark.parametrize("way", [emit, send, emit_all, emitters], ids=lambda way: way.__name__)
def test_a_receiver_may_emit_its_own_site(bus: Bus, calls: Calls, way: Way) -> None:
    """Each emission goes through all receivers in order."""

    def nested() -> None:
        calls.append("in")
        if calls.count("in") < 3:
            way(bus, None)
        calls.append("out")

    bus.lunch.connect(nested)
    bus.lunch.connect(noting(calls, "next"))
    way(bus, None)
    assert calls == ["in", "in", "in", "out", "next", "out", "next", "out", "next"]


def test_a_receiver_may_emit_another_site(bus: Bus, calls: Calls) -> None:
    """As a save does from within ``after_train_epoch``."""
    bus.site("nap")
    bus.lunch.connect(lambda runner: bus.nap.emit(runner))
    bus.lunch.connect(noting(calls, "after lunch"))
    bus.nap.connect(noting(calls, "nap"))
    emit(bus, None)
    assert calls == ["nap", "after lunch"]


def test_a_change_in_a_nested_emission_is_seen_by_the_next_nested_one(bus: Bus, calls: Calls) -> None:
    """And not by the one that is still under way around it."""

    def nested() -> None:
        calls.append("in")
        if calls == ["in"]:
            bus.lunch.connect(noting(calls, "new"))
            emit(bus, None)
            calls.append("back")

    bus.lunch.connect(nested)
    emit(bus, None)
    assert calls == ["in", "in", "new", "back"]


# Emitters


def test_an_emitter_is_none_where_nothing_would_be_called(bus: Bus) -> None:
    """So that a quiet site costs a truth test."""
    assert bus.emitters(Sender()).lunch is None


def test_an_emitter_is_current_after_every_change(bus: Bus, calls: Calls) -> None:
    """Connecting, disconnecting, muting, and what others connect."""
    sender, receiver = Sender(), noting(calls, "called")
    held = bus.emitters(sender)
    bus.lunch.connect(receiver, Sender())
    assert held.lunch is None
    bus.lunch.connect(receiver, sender)
    assert held.lunch
    with bus.lunch.muted():
        assert held.lunch is None
    bus.lunch.is_muted = True
    assert held.lunch is None
    bus.lunch.is_muted = False
    assert held.lunch
    bus.lunch.disconnect(receiver, sender)
    assert held.lunch is None
    with bus.lunch.connected_to(receiver):
        assert held.lunch
    assert held.lunch is None


def test_an_emitter_runs_what_is_connected_when_it_is_called(bus: Bus, calls: Calls) -> None:
    """Before its first use and after it."""
    held = bus.emitters(None)
    bus.lunch.connect(noting(calls, "first"))
    for name in ("second", "third"):
        bus.lunch.connect(noting(calls, name))
        assert held.lunch
        held.lunch(None, dish="soup")
    assert calls == ["first", "second", "first", "second", "third"]


def test_an_emitter_is_compiled_once(bus: Bus) -> None:
    """The attribute is the plan itself after the first emission."""
    held = bus.emitters(None)
    bus.lunch.connect(print, when=lambda: False)
    assert held.lunch
    held.lunch(None, dish="soup")
    compiled = held.lunch
    held.lunch(None, dish="soup")
    assert held.lunch is compiled
    assert compiled.__qualname__ == "lunch.emit"


def test_an_emitter_that_was_taken_before_a_change_doesnt_bring_back_the_old_plan(bus: Bus, calls: Calls) -> None:
    """Called late, it runs what is connected by then and leaves the newer attribute alone."""
    held = bus.emitters(None)
    receiver = noting(calls, "called")
    bus.lunch.connect(receiver)
    old = held.lunch
    assert old
    bus.lunch.disconnect(receiver)
    old(None, dish="soup")
    assert (calls, held.lunch) == ([], None)


def test_an_emitter_knows_a_site_that_is_declared_later(bus: Bus, calls: Calls) -> None:
    """Hooks declare sites after the runner was made."""
    held = bus.emitters(None)
    bus.site("nap", None)
    assert held.nap is None
    bus.nap.connect(lambda hours, **rest: calls.append((hours, rest)))
    for payload in ({"hours": 1}, {"hours": 2, "dreams": 3}, {"hours": 4}):
        assert held.nap
        held.nap(None, **payload)
    assert calls == [(1, {}), (2, {"dreams": 3}), (4, {})]


def test_an_emitter_is_that_of_its_sender(bus: Bus, calls: Calls) -> None:
    """Whatever is passed as the sender, the receivers are those of the one that it was made for."""
    mine, other = Sender(), Sender()
    bus.lunch.connect(lambda runner: calls.append(runner), mine)
    bus.lunch.connect(noting(calls, "other's"), other)
    held = bus.emitters(mine)
    assert held.lunch
    held.lunch(other, dish="soup")
    assert calls == [other]


def test_emitters_of_two_senders_dont_mix(bus: Bus, calls: Calls) -> None:
    """Two runs in one process."""
    a, b = Sender(), Sender()
    bus.lunch.connect(noting(calls, "a's"), a)
    bus.lunch.connect(noting(calls, "b's"), b)
    held = bus.emitters(a), bus.emitters(b)
    for one in held:
        assert one.lunch
        one.lunch(None, dish="soup")
    assert calls == ["a's", "b's"]


def test_a_site_may_have_any_name_without_disturbing_the_emitters() -> None:
    """Even one that looks like a part of theirs."""
    bus, calls = Bus(()), Calls()
    held = bus.emitters("sender")
    for name in ("sender_id", "sender", "attach", "payload", "name", "keys"):
        bus.site(name).connect(noting(calls, name), "sender")
        getattr(held, name)("sender")
    assert calls == ["sender_id", "sender", "attach", "payload", "name", "keys"]


def test_emitters_that_nobody_holds_are_let_go(bus: Bus) -> None:
    """The sites don't keep a run alive."""
    held = bus.emitters(None)
    bus.lunch.connect(print)
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None


# Failures


def at(function: Callable[..., Any]) -> str:
    """``file:line`` of a function of this file."""
    return f"tests/test_bus.py:{function.__code__.co_firstlineno}"


@pytest.mark.parametrize("way", [emit, send, emitters, send_async], ids=lambda way: way.__name__)
def test_an_error_propagates_with_a_note_of_receiver_place_site_and_progress(bus: Bus, calls: Calls, way: Way) -> None:
    """It stops the emission; it is the same object, with its own traceback."""

    def fails(dish: str) -> None:
        raise KeyError(dish)

    bus.lunch.connect(noting(calls, "before"))
    bus.lunch.connect(fails)
    bus.lunch.connect(noting(calls, "after"))
    with pytest.raises(KeyError) as caught:
        way(bus, SimpleNamespace(epoch=3, iter=70))
    assert caught.value.__notes__ == [f"raised by receiver fails ({at(fails)}) at 'lunch', epoch 3, iter 70"]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "fails"
    assert calls == ["before"]


def test_emit_all_calls_every_receiver_and_returns_the_errors_with_their_notes(bus: Bus, calls: Calls) -> None:
    """KeyboardInterrupt included: where a run is left, each receiver has something to close."""

    def fails() -> None:
        raise ValueError("one")

    def interrupted() -> None:
        raise KeyboardInterrupt

    bus.lunch.connect(fails)
    bus.lunch.connect(noting(calls, "between"))
    bus.lunch.connect(interrupted)
    bus.lunch.connect(noting(calls, "after"))
    errors = bus.lunch.emit_all(None, dish="soup")
    assert [type(error) for error in errors] == [ValueError, KeyboardInterrupt]
    assert errors[0].__notes__ == [f"raised by receiver fails ({at(fails)}) at 'lunch'"]
    assert errors[1].__notes__ == [f"raised by receiver interrupted ({at(interrupted)}) at 'lunch'"]
    assert calls == ["between", "after"]


def test_emit_all_returns_the_error_of_a_predicate_and_goes_on(bus: Bus, calls: Calls) -> None:
    """Filters can fail like receivers."""

    def unsure() -> bool:
        raise ValueError("unsure")

    bus.lunch.connect(noting(calls, "held back"), when=unsure)
    bus.lunch.connect(noting(calls, "after"))
    (error,) = bus.lunch.emit_all(None, dish="soup")
    assert str(error) == "unsure"
    assert len(error.__notes__) == 1
    assert calls == ["after"]


def test_a_typeerror_in_a_receiver_shows_its_own_traceback_and_the_receivers_name(bus: Bus) -> None:
    """Pitfall: MMEngine replaces it by ``TypeError(f'{e} in {hook}') from None`` and erases where it came from."""

    def helper(number: int) -> int:
        return number + "1"  # type: ignore[operator]

    def fails() -> None:
        helper(1)

    bus.lunch.connect(fails)
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        emit(bus, None)
    text = "".join(traceback.format_exception(caught.value))
    assert "in helper" in text
    assert f"raised by receiver fails ({at(fails)}) at 'lunch'" in text


@pytest.mark.parametrize("way", [emit, send, emitters], ids=lambda way: way.__name__)
def test_an_error_in_a_nested_emission_is_noted_once_for_each_emission(bus: Bus, way: Way) -> None:
    """From the inside out, which reads as the path that it took."""
    bus.site("cooking")

    def burns() -> None:
        raise ValueError("burnt")

    def cooks() -> None:
        bus.cooking.emit()

    bus.cooking.connect(burns)
    bus.lunch.connect(cooks)
    with pytest.raises(ValueError, match="burnt") as caught:
        way(bus, None)
    assert caught.value.__notes__ == [
        f"raised by receiver burns ({at(burns)}) at 'cooking'",
        f"raised by receiver cooks ({at(cooks)}) at 'lunch'",
    ]


def test_an_endless_recursion_is_noted_once(bus: Bus) -> None:
    """Not once for each of its thousand rounds."""

    def emits() -> None:
        emit(bus, None)

    bus.lunch.connect(emits)
    with pytest.raises(RecursionError) as caught:
        emit(bus, None)
    assert caught.value.__notes__ == [f"raised by receiver emits ({at(emits)}) at 'lunch'"]


def test_an_error_that_a_receiver_handles_itself_gets_no_second_note(bus: Bus) -> None:
    """Only the emissions that it left."""
    bus.site("cooking")
    kept: list[BaseException] = []

    def burns() -> None:
        raise ValueError("burnt")

    def saves() -> None:
        try:
            bus.cooking.emit()
        except ValueError as error:
            kept.append(error)

    bus.cooking.connect(burns)
    bus.lunch.connect(saves)
    emit(bus, None)
    assert kept[0].__notes__ == [f"raised by receiver burns ({at(burns)}) at 'cooking'"]


def test_a_stopiteration_leaves_an_emission_as_itself(bus: Bus) -> None:
    """No generator on the way turns it into something else."""

    def stops() -> None:
        next(iter(()))

    bus.lunch.connect(stops)
    for way in (emit, send):
        with pytest.raises(StopIteration):
            way(bus, None)


# Receivers and senders that are collected


@every_way
def test_a_lambda_isnt_dropped(bus: Bus, calls: Calls, way: Way) -> None:
    """Pitfall: blinker holds receivers weakly by default, and a lambda or closure is gone at once."""
    bus.lunch.connect(lambda: calls.append("lambda"))
    gc.collect()
    way(bus, None)
    assert calls == ["lambda"]


def test_connect_returns_the_receiver(bus: Bus) -> None:
    """So it decorates."""

    def receiver() -> None:
        """Do nothing."""

    assert bus.lunch.connect(receiver) is receiver


@every_way
def test_a_weak_receiver_is_dropped_with_its_last_reference(bus: Bus, calls: Calls, way: Way) -> None:
    """From every table, and from the emitters."""
    receiver, held = noting(calls, "weak"), bus.emitters(None)
    bus.lunch.connect(receiver, weak=True)
    way(bus, None)
    assert held.lunch
    del receiver
    way(bus, None)
    assert calls == ["weak"]
    assert (held.lunch, bus.lunch.receivers, len(bus.describe())) == (None, {}, 0)


def test_a_weak_bound_method_lives_as_long_as_its_object(bus: Bus, calls: Calls) -> None:
    """Not as long as the bound method, which is gone at once."""

    class Cook:
        def cook(self) -> None:
            calls.append("cooked")

    cook = Cook()
    bus.lunch.connect(cook.cook, weak=True)
    emit(bus, None)
    del cook
    emit(bus, None)
    assert calls == ["cooked"]


def test_a_receiver_in_a_cycle_is_dropped_by_the_collector(bus: Bus) -> None:
    """In the middle of whatever the bus is doing."""

    class Cook:
        def __init__(self) -> None:
            self.me = self

        def cook(self) -> None:
            """Do nothing."""

    for _ in range(3):
        bus.lunch.connect(Cook().cook, weak=True)
    gc.collect()
    assert len(bus.describe()) == 0


def test_a_receiver_held_strongly_for_one_sender_lives_for_the_other_too(bus: Bus, calls: Calls) -> None:
    """And no longer than that strong connection."""
    receiver = noting(calls, "called")
    bus.lunch.connect(receiver, "strong")
    bus.lunch.connect(receiver, "weak", weak=True)
    gone = weakref.ref(receiver)
    del receiver
    emit(bus, "weak")
    assert calls == ["called"]
    strong = gone()
    assert strong
    bus.lunch.disconnect(strong, "strong")
    del strong
    assert gone() is None
    assert bus.lunch.receivers == {}


def test_connecting_a_weak_receiver_again_makes_it_strong(bus: Bus, calls: Calls) -> None:
    """The new options count."""
    receiver = noting(calls, "called")
    bus.lunch.connect(receiver, weak=True)
    bus.lunch.connect(receiver)
    del receiver
    emit(bus, None)
    assert calls == ["called"]


def test_a_receiver_that_cant_be_referred_to_weakly_is_refused_as_weak(bus: Bus) -> None:
    """And nothing is connected."""

    class Slotted:
        __slots__ = ()

        def __call__(self) -> None:
            """Do nothing."""

    message = "connecting Slotted to 'lunch' with weak=True: a Slotted can't be referred to weakly; leave it out."
    with pytest.raises(HookError, match=f"^{re.escape(message)}$"):
        bus.lunch.connect(Slotted(), weak=True)
    assert (len(bus.describe()), bus.lunch.receivers) == (0, {})


def test_a_senders_connections_go_with_it_and_let_its_receivers_go(bus: Bus, calls: Calls) -> None:
    """A closure over a finished run's model isn't kept for ever."""
    sender, receiver = Sender(), noting(calls, "called")
    bus.lunch.connect(receiver, sender)
    bus.lunch.connect(noting(calls, "anybody's"))
    gone = weakref.ref(receiver)
    del receiver, sender
    assert gone() is None
    assert len(bus.describe()) == 1
    assert len(bus.lunch.receivers) == 1


def test_a_sender_is_not_kept_alive_by_its_connections(bus: Bus) -> None:
    """Nor by its emitters."""
    sender = Sender()
    bus.lunch.connect(print, sender)
    held = bus.emitters(sender)
    gone = weakref.ref(sender)
    del sender
    assert gone() is None
    assert held.lunch is None


def test_a_sender_that_cant_be_referred_to_weakly_is_kept(bus: Bus, calls: Calls) -> None:
    """So that no other object gets its identity and its receivers with it."""
    bus.lunch.connect(noting(calls, "called"), ["a", "list"])
    for _ in range(100):
        emit(bus, ["a", "list"])
    assert calls == []


@pytest.mark.parametrize("sender", ["noon", 12, None, 3.5, (1, 2)])
def test_a_sender_may_be_any_object(bus: Bus, calls: Calls, sender: Any) -> None:
    """Strings and ints by their value, all else by identity; None is a sender too."""
    bus.lunch.connect(noting(calls, "called"), sender)
    emit(bus, sender)
    emit(bus, "another")
    assert calls == ["called"]


@pytest.mark.parametrize("sender", [0, False])
def test_zero_is_refused_as_a_sender(bus: Bus, sender: Any) -> None:
    """Blinker's identity of any sender is 0: everybody would be heard."""
    message = f"connecting to 'lunch' with sender={sender!r}: blinker can't tell 0 from anybody."
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        bus.lunch.connect(print, sender)
    assert len(bus.describe()) == 0


# Taking back


def test_disconnecting_from_anybody_disconnects_from_all(bus: Bus) -> None:
    """Blinker's rule."""
    bus.lunch.connect(print)
    bus.lunch.connect(print, "alice")
    bus.lunch.disconnect(print)
    assert len(bus.describe()) == 0


def test_disconnecting_from_one_sender_leaves_the_others(bus: Bus) -> None:
    """Those to anybody too."""
    for sender in (ANY, "alice", "bob"):
        bus.lunch.connect(print, sender)
    bus.lunch.disconnect(print, "alice")
    assert [len(bus.describe(sender)) for sender in (ANY, "alice", "bob")] == [2, 1, 1]
    bus.lunch.disconnect(print, "bob")
    bus.lunch.disconnect(print, "nobody")
    assert len(bus.lunch.receivers) == 1


def test_connected_to_takes_back_only_what_it_connected(bus: Bus) -> None:
    """Pitfall: blinker's disconnects the receiver from all senders on leaving."""
    bus.lunch.connect(print, "alice")
    with bus.lunch.connected_to(print, sender="bob"):
        assert len(bus.describe()) == 2
    assert [len(bus.describe(sender)) for sender in ("alice", "bob")] == [1, 0]
    with bus.lunch.connected_to(print):
        assert len(bus.describe()) == 2
    assert [len(bus.describe(sender)) for sender in ("alice", "bob")] == [1, 0]


@pytest.mark.parametrize("weak", [False, True])
def test_connected_to_puts_back_the_options_that_were_there(bus: Bus, calls: Calls, weak: bool) -> None:
    """And how strongly the receiver was held, even where the block disconnected it."""
    receiver = noting(calls, "called")
    bus.lunch.connect(receiver, "alice", weak, every=2)
    with bus.lunch.connected_to(receiver, "alice", priority="HIGH"):
        emit(bus, "alice")
        bus.lunch.disconnect(receiver)
    assert calls == ["called"]
    assert [row.filters for row in bus.describe("alice")] == ["every 2 emissions"]
    emit(bus, "alice")
    emit(bus, "alice")
    assert calls == ["called", "called"]
    del receiver
    assert len(bus.describe("alice")) == (0 if weak else 1)


def test_connected_to_disconnects_on_an_error(bus: Bus) -> None:
    """As a context manager should."""
    with pytest.raises(ValueError, match="spilt"), bus.lunch.connected_to(print):
        raise ValueError("spilt")
    assert len(bus.describe()) == 0


def test_connected_to_takes_options(bus: Bus, calls: Calls) -> None:
    """Those of ``connect``."""
    with bus.lunch.connected_to(noting(calls, "called"), every=2):
        for _ in range(4):
            emit(bus, None)
    assert calls == ["called", "called"]


def test_muted_blocks_nest(bus: Bus, calls: Calls) -> None:
    """Pitfall: blinker's inner block un-mutes the outer one on leaving."""
    bus.lunch.connect(noting(calls, "called"))
    with bus.lunch.muted():
        with bus.lunch.muted():
            emit(bus, None)
        emit(bus, None)
        assert bus.lunch.is_muted
    assert calls == []
    emit(bus, None)
    assert calls == ["called"]


def test_muted_blocks_may_overlap(bus: Bus) -> None:
    """The last one to be left un-mutes, whichever that is."""
    first, second = bus.lunch.muted(), bus.lunch.muted()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert bus.lunch.is_muted
    second.__exit__(None, None, None)
    assert not bus.lunch.is_muted


def test_a_site_that_was_muted_by_hand_stays_muted_after_a_block(bus: Bus) -> None:
    """A block puts back what it found."""
    bus.lunch.is_muted = True
    with bus.lunch.muted():
        pass
    assert bus.lunch.is_muted


# blinker's interface


def test_a_site_is_a_blinker_signal() -> None:
    """Code that takes signals takes sites."""
    assert issubclass(Site, blinker.Signal)
    assert Site.ANY is blinker.ANY is ANY


def test_send_returns_receivers_and_results_in_order(bus: Bus) -> None:
    """Those that a filter held back aren't among them."""
    one, two, held_back = (lambda: 1), (lambda dish: dish), (lambda: 3)
    bus.lunch.connect(two, priority="LOW")
    bus.lunch.connect(one)
    bus.lunch.connect(held_back, start=2)
    assert bus.lunch.send(None, dish="soup") == [(one, 1), (two, "soup")]


def test_connect_via_decorates(bus: Bus, calls: Calls) -> None:
    """Blinker's own form, which holds strongly here as there."""

    @bus.lunch.connect_via("alice")
    def receiver(dish: str) -> None:
        calls.append(dish)

    emit(bus, "alice")
    emit(bus, "bob")
    assert calls == ["soup"]


def test_an_async_receiver_is_sent_to_through_a_wrapper(bus: Bus, calls: Calls) -> None:
    """Without one it is blinker's RuntimeError."""

    async def cook(dish: str) -> str:
        calls.append(dish)
        return "cooked"

    bus.lunch.connect(cook)
    with pytest.raises(RuntimeError, match=r"^Cannot send to a coroutine function\.$"):
        bus.lunch.send(None, dish="soup")
    results = bus.lunch.send(None, dish="soup", _async_wrapper=lambda f: lambda *a, **k: asyncio.run(f(*a, **k)))
    assert results == [(cook, "cooked")]
    assert calls == ["soup"]


def test_a_plain_receiver_is_sent_to_without_the_wrapper(bus: Bus) -> None:
    """Which is for the others."""
    plain = lambda dish: dish  # noqa: E731
    bus.lunch.connect(plain)
    assert bus.lunch.send(None, dish="soup", _async_wrapper=lambda receiver: None) == [(plain, "soup")]


def test_send_async_awaits_in_order(bus: Bus, calls: Calls) -> None:
    """One after another, plain receivers through a wrapper."""

    async def slow() -> str:
        await asyncio.sleep(0)
        calls.append("slow")
        return "s"

    class Cook:
        async def __call__(self, dish: str) -> str:
            calls.append(dish)
            return "c"

    cook, plain = Cook(), noting(calls, "plain")
    bus.lunch.connect(slow, priority="HIGH")
    bus.lunch.connect(plain)
    bus.lunch.connect(cook)
    bus.lunch.connect(slow, "nobody", once=True)
    results = asyncio.run(bus.lunch.send_async(None, dish="soup", _sync_wrapper=awaited))
    assert results == [(slow, "s"), (plain, None), (cook, "c")]
    assert calls == ["slow", "plain", "soup"]


def test_send_async_leaves_out_what_a_filter_holds_back(bus: Bus) -> None:
    """As send does."""

    async def cook() -> None:
        """Do nothing."""

    bus.lunch.connect(cook, start=2)
    assert asyncio.run(bus.lunch.send_async(None, dish="soup")) == []
    assert asyncio.run(bus.lunch.send_async(None, dish="soup")) == [(cook, None)]


def test_send_async_to_a_plain_receiver_needs_a_wrapper(bus: Bus) -> None:
    """Blinker's contract."""
    bus.lunch.connect(print)
    with pytest.raises(RuntimeError, match=r"^Cannot send to a non-coroutine function\.$"):
        asyncio.run(bus.lunch.send_async(None, dish="soup"))


def test_connections_are_told_to_whom_it_concerns(bus: Bus, calls: Calls) -> None:
    """``receiver_connected`` and ``receiver_disconnected`` are sites too: a lambda isn't dropped."""
    bus.lunch.receiver_connected.connect(lambda site, receiver, sender, weak: calls.append((site, receiver, sender)))
    bus.lunch.receiver_disconnected.connect(lambda site, receiver, sender: calls.append((site, receiver, sender)))
    gc.collect()
    bus.lunch.connect(print, "alice")
    bus.lunch.disconnect(print, "alice")
    assert calls == [(bus.lunch, print, "alice")] * 2
    calls.clear()
    with bus.lunch.connected_to(print):
        pass
    assert calls == [(bus.lunch, print, ANY)] * 2


@pytest.mark.parametrize("error", [TypeError, ValueError])
@pytest.mark.parametrize("before", [None, "LOW"])
def test_a_failure_in_receiver_connected_leaves_everything_as_it_was(
    bus: Bus, error: type[Exception], before: str | None
) -> None:
    """Nothing is half connected, and an older connection is back."""

    def fails() -> None:
        raise error("not now")

    if before:
        bus.lunch.connect(print, priority=before)
    bus.lunch.receiver_connected.connect(fails)
    with pytest.raises(error, match="not now"):
        bus.lunch.connect(print, priority="HIGH")
    assert [row.priority for row in bus.describe()] == ([70] if before else [])
    assert len(bus.lunch.receivers) == (1 if before else 0)
    assert (bus.emitters(None).lunch is None) == (before is None)


def test_who_is_told_of_a_connection_may_emit_or_undo_it(bus: Bus, calls: Calls) -> None:
    """By then it is complete."""
    emit(bus, None)

    def undo(site: Site, receiver: Callable[..., Any]) -> None:
        emit(bus, None)
        site.disconnect(receiver)

    bus.lunch.receiver_connected.connect(undo)
    bus.lunch.connect(noting(calls, "called"))
    emit(bus, None)
    assert calls == ["called"]
    assert len(bus.describe()) == 0


def test_clearing_a_site_disconnects_all(bus: Bus) -> None:
    """Blinker's ``_clear_state``, which its users' tests call."""
    bus.lunch.connect(print)
    held = bus.emitters(None)
    bus.lunch._clear_state()
    assert (held.lunch, bus.lunch.receivers, len(bus.describe())) == (None, {}, 0)


def test_has_receivers_for_anybody_means_those_of_anybody(bus: Bus) -> None:
    """Blinker's rule."""
    bus.lunch.connect(print, "alice")
    assert [bus.lunch.has_receivers_for(sender) for sender in (ANY, "alice", "bob")] == [False, True, False]
    bus.lunch.connect(repr)
    assert [bus.lunch.has_receivers_for(sender) for sender in (ANY, "alice", "bob")] == [True, True, True]


# The payload


@pytest.mark.parametrize("emission", [Site.emit, Site.send, Site.emit_all], ids=["emit", "send", "emit_all"])
@pytest.mark.parametrize("connected", [False, True])
def test_an_emission_with_a_name_that_isnt_declared_is_refused(bus: Bus, emission: Any, connected: bool) -> None:
    """Even where nobody listens: the mistake is in the emission."""
    if connected:
        bus.lunch.connect(print)
    message = "an emission of 'lunch' carries 'dihs'; the site declares dish; did you mean 'dish'?"
    with pytest.raises(SignatureError, match=f"^{re.escape(message)}$"):
        emission(bus.lunch, None, dihs="soup")


def test_an_emission_that_lacks_what_a_receiver_needs_is_refused_before_any_is_called(bus: Bus, calls: Calls) -> None:
    """Nothing is half done."""
    bus.lunch.connect(noting(calls, "first"))
    bus.lunch.connect(lambda dish: calls.append(dish))
    for emission in (bus.lunch.emit, bus.lunch.send, bus.lunch.emit_all):
        with pytest.raises(SignatureError, match="needs 'dish'; this emission of 'lunch' carries nothing"):
            emission(None)
    assert calls == []


def test_a_payload_that_nobody_needs_may_be_left_out(bus: Bus, calls: Calls) -> None:
    """A receiver's default stands in."""
    bus.lunch.connect(lambda dish="bread": calls.append(dish))
    bus.lunch.emit()
    assert calls == ["bread"]


def test_an_open_site_takes_any_payload(bus: Bus, calls: Calls) -> None:
    """Each emission its own."""
    bus.site("nap", None).connect(lambda sender, **rest: calls.append((sender, rest)))
    bus.nap.emit("a", hours=1)
    bus.nap.emit("b", place="sofa", hours=2)
    bus.nap.emit("c")
    assert calls == [("a", {"hours": 1}), ("b", {"place": "sofa", "hours": 2}), ("c", {})]


def test_at_an_open_site_a_first_parameter_is_the_payload_of_its_name_where_there_is_one(
    bus: Bus, calls: Calls
) -> None:
    """And the sender where there is none: what a receiver asks for is read against each emission."""
    bus.site("nap", None).connect(lambda hours, place="bed": calls.append((hours, place)))
    for emission in (bus.nap.emit, bus.nap.send, bus.nap.emit_all):
        emission("me", hours=2)
        emission("me", place="sofa")
    assert calls == [(2, "bed"), ("me", "sofa")] * 3


@pytest.mark.parametrize("emission", [Site.emit, Site.send, Site.emit_all], ids=["emit", "send", "emit_all"])
def test_at_an_open_site_a_receiver_is_refused_by_the_emission_that_doesnt_fit(bus: Bus, emission: Any) -> None:
    """Before anything is called, in the words of a declared site."""

    def sleeps(runner: Any, hours: int) -> None:
        """Do nothing."""

    bus.site("nap", None).connect(sleeps)
    message = f"sleeps in {at(sleeps)} asks for 'hours'; 'nap' offers runner, hour; did you mean 'hour'?"
    with pytest.raises(SignatureError, match=f"^{re.escape(message)}$"):
        emission(bus.nap, None, hour=2)
    emission(bus.nap, None, hours=2)


def test_a_receiver_that_was_disconnected_is_let_go_at_once(bus: Bus, calls: Calls) -> None:
    """No plan that was compiled with it keeps it until a garbage collection."""
    receiver = noting(calls, "called")
    bus.lunch.connect(receiver)
    emit(bus, None)
    bus.lunch.disconnect(receiver)
    gone = weakref.ref(receiver)
    del receiver
    assert gone() is None


@pytest.mark.parametrize("name", ["two words", "class", "x=print('no')", "sender_", "error_", "receiver_0_", ""])
def test_an_open_site_never_compiles_a_payload_into_code(bus: Bus, calls: Calls, name: str) -> None:
    """Only what can be a parameter's name, however it is emitted."""
    bus.site("nap", None).connect(lambda **rest: calls.append(rest))
    message = (
        f"an emission of 'nap' carries {name!r}; a payload's name is an identifier that doesn't end in an underscore."
    )
    for emission in (bus.nap.emit, bus.nap.send, bus.nap.emit_all):
        with pytest.raises(SignatureError, match=f"^{re.escape(message)}$"):
            emission(None, **{name: 1})
    assert calls == []


def test_a_copy_of_a_bus_has_connections_of_its_own(bus: Bus, calls: Calls) -> None:
    """Also where both have emitted before."""
    bus.lunch.connect(lambda dish: calls.append(("both", dish)))
    for emission in (bus.lunch.emit, bus.lunch.send, bus.lunch.emit_all):
        emission(dish="soup")
    own = copy.deepcopy(bus)
    own.lunch.connect(lambda dish: calls.append(("own", dish)))
    calls.clear()
    for emission in (own.lunch.emit, own.lunch.send, own.lunch.emit_all):
        emission(dish="pie")
    bus.lunch.emit(dish="tea")
    assert calls == [("both", "pie"), ("own", "pie")] * 3 + [("both", "tea")]


@pytest.mark.parametrize("way", ["emit", "send", "emit_all"])
def test_a_way_to_emit_that_was_kept_reaches_who_is_connected_later(bus: Bus, calls: Calls, way: str) -> None:
    """Whether it was taken before the first emission or after it, for all senders or for one."""
    kept = [getattr(bus.lunch, way)]
    kept[0]("me", dish=0)
    kept.append(getattr(bus.lunch, way))
    me = Sender()
    bus.lunch.connect(lambda: calls.append("anybody"))
    bus.lunch.connect(lambda: calls.append("me"), me)
    for emission in kept:
        for sender, expected in ((me, ["anybody", "me"]), (Sender(), ["anybody"]), ("me", ["anybody"])):
            calls.clear()
            emission(sender, dish=1)
            assert calls == expected
    bus.lunch.connect(lambda: calls.append("a string"), "me")
    calls.clear()
    for emission in kept:
        emission("".join(["m", "e"]), dish=2)
    assert calls == ["anybody", "a string"] * 2


@pytest.mark.parametrize("way", ["emit", "send", "emit_all"])
def test_a_subclass_that_does_more_at_an_emission_does_so_each_time(calls: Calls, way: str) -> None:
    """What is compiled takes the place of the method that it is compiled for, and of no other."""

    def more(self: Site, sender: Any = None, /, **payload: Any) -> Any:
        calls.append("more")
        return getattr(Site, way)(self, sender, **payload)

    site = type("Own", (Site,), {way: more})(name="lunch", payload=("dish",))
    site.connect(lambda dish: calls.append(dish))
    for dish in (1, 2):
        getattr(site, way)(None, dish=dish)
    assert calls == ["more", 1, "more", 2]


def test_a_payload_may_be_called_self(bus: Bus, calls: Calls) -> None:
    """The sender goes by position only, and so does the site."""
    bus.site("nap", ("self",)).connect(lambda runner, *, self: calls.append((runner, self)))
    for emission in (bus.nap.emit, bus.nap.send, bus.nap.emit_all):
        emission("who", self=3)
    assert calls == [("who", 3)] * 3


# The bus


def test_a_bus_begins_with_the_catalogue_of_a_run() -> None:
    """In its order, each with its payload, description and unit."""
    declared = [SiteSpec(site.name, site.payload or (), site.__doc__ or "", site.unit) for site in Bus()]
    assert declared == list(CATALOGUE)


def test_a_bus_may_begin_empty_or_with_sites_of_ones_own() -> None:
    """It knows nothing of training."""
    assert list(Bus(())) == []
    (site,) = Bus([SiteSpec("lunch", ("dish",), "At noon.")])
    assert (site.name, site.payload, site.__doc__) == ("lunch", ("dish",), "At noon.")


def test_a_site_is_an_attribute_of_its_bus(bus: Bus) -> None:
    """For completion at a prompt too."""
    assert bus.lunch is bus.find("lunch", "looking") is bus.find(bus.lunch, "looking")
    assert "lunch" in dir(bus)
    assert "lunch" in bus
    assert "dinner" not in bus


def test_declaring_a_site_again_gives_the_same_one(bus: Bus) -> None:
    """If it is declared alike."""
    assert bus.site("lunch", ["dish"]) is bus.lunch
    assert bus.site("lunch", ("dish",), unit="emission") is bus.lunch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"payload": ()}, "bus.site('lunch'): the site exists with dish and unit 'emission'; declare it once."),
        ({"payload": None}, "bus.site('lunch'): the site exists with dish and unit 'emission'; declare it once."),
        (
            {"payload": ("dish",), "unit": "epoch"},
            "bus.site('lunch'): the site exists with dish and unit 'emission'; declare it once.",
        ),
        ({"payload": "dish"}, "site 'lunch' with payload='dish': give a tuple of names, as in ('dish',)."),
        (
            {"name": "nap", "unit": "epochs"},
            "site 'nap' with unit='epochs': it counts epoch, iter, emission; did you mean 'epoch'?",
        ),
        *(
            ({"name": name}, f"bus.site({name!r}): the name must be an identifier that Bus doesn't use itself.")
            for name in ("on", "site", "find", "plan", "state_dict", "_lunch", "two words", "class", "", 3)
        ),
    ],
)
def test_a_site_that_cant_be_is_refused(bus: Bus, arguments: dict[str, Any], message: str) -> None:
    """And nothing is declared."""
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        bus.site(**{"name": "lunch", **arguments})
    assert [site.name for site in bus] == ["lunch"]


def test_a_site_that_exists_with_any_payload_says_so(bus: Bus) -> None:
    """To whoever declares it otherwise."""
    bus.site("nap", None)
    with pytest.raises(OptionError, match="the site exists with any payload and unit 'emission'; declare it once"):
        bus.site("nap")


def test_a_private_name_is_a_plain_missing_attribute(bus: Bus) -> None:
    """Protocols that look for one, such as copying, get the usual answer."""
    with pytest.raises(AttributeError, match=r"^Bus has no attribute '__array__'$"):
        bus.__array__  # noqa: B018
    assert not hasattr(Bus.__new__(Bus), "lunch_")


def test_what_represents_a_site_and_a_bus_is_short(bus: Bus) -> None:
    """Names and numbers."""
    bus.lunch.connect(print)
    assert repr(bus) == "<Bus with 1 sites>"
    assert repr(bus.lunch) == "<Site lunch with 1 connections>"
    assert repr(Site()).startswith("<Site 0x")


def test_on_decorates_a_function_and_stacks(bus: Bus, calls: Calls) -> None:
    """One function at several sites, each with its own options."""
    bus.site("dinner", ("dish",))

    @bus.on("lunch", every=2)
    @bus.on(bus.dinner, sender="alice")
    def receiver(runner: str, dish: str) -> None:
        calls.append((runner, dish))

    bus.lunch.emit("bob", dish=1)
    bus.lunch.emit("bob", dish=2)
    bus.dinner.emit("bob", dish=3)
    bus.dinner.emit("alice", dish=4)
    assert calls == [("bob", 2), ("alice", 4)]
    assert callable(receiver)


def test_on_connects_to_the_default_bus(calls: Calls) -> None:
    """For every runner that uses it."""

    @on("before_run")
    def receiver(runner: Any) -> None:
        calls.append(runner)

    try:
        default_bus.before_run.emit("a")
        default_bus.before_run.emit("b")
    finally:
        default_bus.before_run.disconnect(receiver)
    assert calls == ["a", "b"]
    assert on.__self__ is default_bus  # type: ignore[attr-defined]


def test_on_a_method_is_refused(bus: Bus) -> None:
    """A plain function of a class has no object to be called on; the message says what to do."""

    def declare() -> None:
        class Cook:
            @bus.on("lunch")
            def cook(self, dish: str) -> None:
                """Do nothing."""

    with pytest.raises(HookError) as caught:
        declare()
    assert re.fullmatch(
        r"@on\('lunch'\) on method Cook\.cook in tests/test_bus\.py:\d+: a method is connected by naming it after the "
        r"site in a Hook, with @options\(\.\.\.\) for its own priority or filters\.",
        str(caught.value),
    )
    assert len(bus.describe()) == 0


def test_on_a_static_function_of_a_class_is_fine(bus: Bus, calls: Calls) -> None:
    """It needs no object."""

    class Cook:
        @bus.on("lunch")
        @staticmethod
        def cook(dish: str) -> None:
            calls.append(dish)

        @bus.on("lunch")
        def bake(dish: str) -> None:  # type: ignore[misc]  # noqa: N805
            calls.append(dish)

    emit(bus, None)
    assert calls == ["soup", "soup"]
    assert Cook


@pytest.mark.parametrize("receiver", [None, 3, "print", object()])
def test_what_cant_be_called_is_no_receiver(bus: Bus, receiver: Any) -> None:
    """And is named."""
    with pytest.raises(
        HookError, match=f"^connecting {re.escape(repr(receiver))} to 'lunch': a receiver must be callable.$"
    ):
        bus.lunch.connect(receiver)


def test_checking_raises_what_connecting_would_and_connects_nothing(bus: Bus) -> None:
    """For those who connect several or none."""
    assert bus.lunch.check(print, priority="LOW").options.priority == 70
    with pytest.raises(SignatureError, match="asks for 'wine'"):
        bus.lunch.check(lambda runner, wine: None)
    assert len(bus.describe()) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("after_trian", "emitter of 'after_trian': no such site; did you mean 'after_train'?"),
        ("dinner", "emitter of 'dinner': no such site is declared on this bus."),
    ],
)
def test_an_emitter_of_a_site_that_there_isnt_is_an_error(name: str, message: str) -> None:
    """Not None, which would be silence for ever."""
    with pytest.raises(UnknownSiteError, match=f"^{re.escape(message)}$"):
        getattr(Bus().emitters("run"), name)


def test_a_thousand_receivers_elsewhere_dont_matter(bus: Bus, calls: Calls) -> None:
    """Nor do a thousand at the site itself change the order."""
    bus.site("dinner", ("dish",))
    for number in range(1000):
        bus.dinner.connect(noting(calls, str(number)))
    emit(bus, None)
    assert calls == []
    bus.dinner.emit(None, dish="pie")
    assert calls == [str(number) for number in range(1000)]

"""What inline receivers cost is added up right, however an emission goes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import weakref
from collections import Counter
from typing import Any

import pytest

from eventrunner.bus.bus import Bus
from eventrunner.bus.emissions import Emitters
from eventrunner.bus.ledger import TIMED, WHOLE, Ledger

START = 512
"""So many emissions are timed by receiver first."""


class Sender:
    """Whose emissions these are."""


@pytest.fixture(params=["emission", "iter"])
def bus(request: pytest.FixtureRequest) -> Bus:
    """A bus with one site: one at which every receiver is timed, or most emissions as a whole."""
    bus = Bus(())
    bus.site("lunch", ("dish",), unit=request.param)
    return bus


class Clock:
    """A clock that goes on when a receiver says so, and how long each receiver has taken by it."""

    def __init__(self) -> None:
        self.now, self.took = 0.0, Counter[str]()

    def __call__(self) -> float:
        return self.now

    def receiver(self, name: str, usual: float, long: float = 0.0, each: int = 0, offset: int = 0) -> Any:
        """One that takes so many microseconds, and more than that each so many calls."""
        count = itertools.count(offset)

        def work() -> None:
            seconds = 1e-6 * (long if each and next(count) % each == 0 else usual)
            self.now += seconds
            self.took[name] += seconds

        return work


def emit(emitters: Emitters, sender: Sender, times: int = 1) -> None:
    """Pass the site so many times, whatever its receivers raise."""
    for _ in range(times):
        with contextlib.suppress(ArithmeticError):
            emitters.__dict__["lunch"](sender, "soup")


def calls(ledger: Ledger) -> dict[str, int]:
    """The calls of each receiver."""
    return {entry.name: entry.calls for entry in ledger.entries()}


def fail() -> None:
    raise ArithmeticError("boom")


@pytest.mark.parametrize("times", [1, TIMED - 1, TIMED, 3 * TIMED + 1, 2 * WHOLE])
def test_every_call_that_returned_is_counted(bus: Bus, times: int) -> None:
    """Those before a failing receiver too, and whether or not the samples were aggregated meanwhile."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(lambda: None, label="before", priority="HIGH")
    bus.lunch.connect(lambda: None, label="third", every=3)
    bus.lunch.connect(fail, label="fails")
    bus.lunch.connect(lambda: None, label="after", priority="LOW")
    emit(emitters, sender, times)
    expected = {"before": times, "third": times // 3}
    assert calls(ledger) == {name: count for name, count in expected.items() if count}


def test_a_plan_that_is_compiled_anew_loses_nothing(bus: Bus) -> None:
    """Not even the emission during which it is."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(lambda: bus.lunch.connect(lambda: None, label="new"), label="connects")
    emit(emitters, sender, 5)
    assert calls(ledger) == {"connects": 5, "new": 0 + 1 + 2 + 3 + 4}


def test_an_emission_within_an_emission_is_counted_for_itself(bus: Bus) -> None:
    """Each has moments of its own."""
    sender, ledger = Sender(), Ledger()
    emitters, depth = bus.emitters(sender, ledger), 0

    def again() -> None:
        nonlocal depth
        depth += 1
        if depth < 4:
            emit(emitters, sender)

    bus.lunch.connect(again, label="again")
    emit(emitters, sender)
    (entry,) = ledger.entries()
    assert entry.calls == 4
    assert entry.seconds > 0


def test_what_is_not_timed_is_no_part_of_the_next_receiver(bus: Bus) -> None:
    """A filter that lets nothing pass, and a receiver beside the training, take their own time."""
    sender, ledger, started, go = Sender(), Ledger(), threading.Event(), threading.Event()
    emitters = bus.emitters(sender, ledger)

    def slow() -> bool:
        started.set()
        go.wait(30)
        return False

    bus.lunch.connect(lambda: None, label="filtered", when=slow, priority="HIGH")
    bus.lunch.connect(lambda: None, label="quick")
    ledger.record()
    thread = threading.Thread(target=emit, args=(emitters, sender))
    thread.start()
    assert started.wait(30)
    go.set()
    thread.join()
    assert calls(ledger) == {"quick": 1}
    ((name, _, began, ended),) = ledger.recorded()
    assert (name, ended - began) == ("quick", ledger.entries()[0].seconds)


def test_emissions_that_fail_leave_nothing_to_pile_up(bus: Bus) -> None:
    """As little as those that don't."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(fail)
    emit(emitters, sender, 5 * TIMED)
    (samples,) = ledger._samples
    assert len(samples.timed) < TIMED


def test_two_threads_that_emit_are_counted_together(bus: Bus) -> None:
    """Each emission is aggregated by one of them."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(lambda: None, label="both")
    emit(emitters, sender)
    threads = [threading.Thread(target=emit, args=(emitters, sender, 20 * TIMED)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(ledger) == {"both": 40 * TIMED + 1}


def test_a_first_emission_takes_no_other_arguments_than_later_ones(bus: Bus) -> None:
    """By position or by keyword, and nothing twice."""
    sender = Sender()
    bus.site("open", None)
    seen: list[Any] = []
    bus.lunch.connect(lambda dish: seen.append(dish))
    bus.open.connect(lambda **given: seen.append(given))
    for _ in range(2):
        emitters = bus.emitters(sender).__dict__
        for wrong in ("lunch", ("soup", "salad"), {}), ("lunch", ("soup",), {"dish": "salad"}), ("open", (1,), {}):
            with pytest.raises(TypeError):
                emitters[wrong[0]](sender, *wrong[1], **wrong[2])
    assert seen == []


def test_a_receiver_is_timed_exactly_but_at_each_iteration() -> None:
    """Where the account is an estimate, it says so."""
    bus, sender, clock = Bus(()), Sender(), Clock()
    ledger = Ledger(clock)
    emitters = bus.emitters(sender, ledger)
    for unit in ("emission", "epoch", "iter"):
        bus.site(unit, unit=unit).connect(clock.receiver(unit, 3), label=unit)
    for _ in range(2 * WHOLE):
        for unit in ("emission", "epoch", "iter"):
            emitters.__dict__[unit](sender)
    entries = {entry.name: entry for entry in ledger.entries()}
    assert {name: entry.estimated for name, entry in entries.items()} == {
        "emission": False,
        "epoch": False,
        "iter": True,
    }
    assert {name: entry.seconds for name, entry in entries.items()} == pytest.approx(clock.took)


@pytest.mark.parametrize("count", [300, 1_000, 2_999, 20_000])
@pytest.mark.parametrize(
    "costs",
    [
        {"a": (1,), "b": (2,), "c": (50,)},
        {"timer": (1,), "logger": (1, 300, 50), "info": (2,)},
        {"timer": (1,), "logger": (1, 300, 10), "saver": (1, 9_000, 100), "info": (2,)},
        {"timer": (2,), "logger": (1, 300, 50), "saver": (1, 400, 50, 25)},  # as long as each other, at other times
        {"timer": (2,), "logger": (1, 300, 50), "saver": (1, 300, 50)},  # both at once
        {"timer": (3,), "warm": (1, 5_000, 10**9)},  # once, at the first call
        {"none": (0,), "all": (1,)},
    ],
)
def test_an_estimate_is_within_five_percent(costs: dict[str, tuple[int, ...]], count: int) -> None:
    """On receivers of unequal cost, some of which work hard now and then."""
    bus, sender, clock = Bus(()), Sender(), Clock()
    ledger = Ledger(clock)
    emitters = bus.emitters(sender, ledger)
    site = bus.site("lunch", unit="iter")
    for name, cost in costs.items():
        site.connect(clock.receiver(name, *cost), label=name)
    for _ in range(count):
        emitters.__dict__["lunch"](sender)
    found = {entry.name: entry for entry in ledger.entries()}
    assert {name: entry.calls for name, entry in found.items()} == dict.fromkeys(costs, count)
    total = sum(clock.took.values())
    for name, seconds in clock.took.items():
        assert found[name].seconds == pytest.approx(seconds, rel=0.05, abs=0.002 * total), name


def test_most_iterations_are_timed_as_a_whole(bus: Bus) -> None:
    """Where the clock is read twice, whatever the number of receivers."""
    sender, clock, read = Sender(), Clock(), itertools.count()

    def counted() -> float:
        next(read)
        return clock()

    emitters = bus.emitters(sender, Ledger(counted))
    for index in range(6):
        bus.lunch.connect(clock.receiver(str(index), 1), label=str(index), mutates=())
    emit(emitters, sender, 20 * WHOLE)
    readings = next(read) / (20 * WHOLE)
    assert readings == 7 if bus.lunch.unit == "emission" else 2 < readings < 2.3


def test_what_an_iteration_waits_for_is_no_receivers_time() -> None:
    """A copy under way, a filter, and a lane that takes what is offloaded: they aren't timed as a whole either."""
    bus, sender, clock = Bus(()), Sender(), Clock()
    ledger = Ledger(clock)
    emitters = bus.emitters(sender, ledger)
    site = bus.site("lunch", unit="iter")
    bus.guards.append(clock.receiver("guard", 7))
    site.connect(clock.receiver("writes", 2), label="writes")
    site.connect(clock.receiver("rarely", 3), label="rarely", every=10, mutates=())
    site.connect(clock.receiver("never", 3), label="never", when=lambda: clock.receiver("when", 5)(), mutates=())
    site.connect(clock.receiver("lane", 9), label="lane", offload=True)
    for _ in range(10 * WHOLE):
        emitters.__dict__["lunch"](sender)
    found = {entry.name: (entry.calls, entry.seconds) for entry in ledger.entries()}
    assert {name: calls for name, (calls, _) in found.items()} == {"writes": 10 * WHOLE, "rarely": WHOLE}
    for name, (_, seconds) in found.items():
        assert seconds == pytest.approx(clock.took[name], rel=0.05), name


def test_recording_has_every_call_from_then_on(bus: Bus) -> None:
    """Also of a plan that is timed as a whole at that moment."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(lambda: None, label="quick")
    emit(emitters, sender, START + WHOLE // 2)
    ledger.record()
    emit(emitters, sender, 2 * WHOLE)
    assert len(ledger.recorded()) == 2 * WHOLE


def test_a_ledger_that_begins_anew_knows_nothing_of_before(bus: Bus) -> None:
    """Neither calls nor how they were divided."""
    sender, clock = Sender(), Clock()
    ledger = Ledger(clock)
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(clock.receiver("eats", 5), label="eats")
    emit(emitters, sender, 3 * WHOLE)
    ledger.reset()
    assert ledger.entries() == []
    clock.took.clear()
    emit(emitters, sender, 3 * WHOLE)
    (entry,) = ledger.entries()
    assert entry.calls == 3 * WHOLE
    assert entry.seconds == pytest.approx(clock.took["eats"])


def test_a_receiver_that_is_timed_is_let_go_with_its_connection(bus: Bus) -> None:
    """At once, whichever way it is timed, though its sums stay."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    for times in (1, START + 1):

        def eat() -> None:
            """Nothing."""

        gone = weakref.ref(eat)
        bus.lunch.connect(eat)
        emit(emitters, sender, times)
        bus.lunch.disconnect(eat)
        gc.disable()
        try:
            del eat
            assert gone() is None
        finally:
            gc.enable()
    assert sum(entry.calls for entry in ledger.entries()) == START + 2

"""What inline receivers cost is added up right, however an emission goes."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

from eventrunner.bus import Bus
from eventrunner.ledger import LAPS, Ledger
from eventrunner.plan import Emitters


class Sender:
    """Whose emissions these are."""


@pytest.fixture
def bus() -> Bus:
    """A bus with one site."""
    bus = Bus(())
    bus.site("lunch", ("dish",))
    return bus


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


@pytest.mark.parametrize("times", [1, LAPS - 1, LAPS, 3 * LAPS + 1])
def test_every_call_that_returned_is_counted(bus: Bus, times: int) -> None:
    """Those before a failing receiver too, and whether or not the laps were added up meanwhile."""
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
    emit(emitters, sender, 5 * LAPS)
    (laps,) = ledger._laps
    assert len(laps.taken) < LAPS


def test_two_threads_that_emit_are_counted_together(bus: Bus) -> None:
    """Each lap is added up by one of them."""
    sender, ledger = Sender(), Ledger()
    emitters = bus.emitters(sender, ledger)
    bus.lunch.connect(lambda: None, label="both")
    emit(emitters, sender)
    threads = [threading.Thread(target=emit, args=(emitters, sender, 20 * LAPS)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls(ledger) == {"both": 40 * LAPS + 1}


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

"""Options of a connection, and the filters among them: which emissions reach a receiver."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventrunner.bus.bus import Bus
from eventrunner.bus.options import Filter, Options, parse_options
from eventrunner.bus.priority import Priority
from eventrunner.bus.site import Site
from eventrunner.errors import OptionError, SignatureError

Seen = list[Any]


def epochs_passed(bus: Bus, count: int = 10) -> None:
    """Emit ``after_train_epoch`` for epochs 0 to *count* - 1 of one sender."""
    sender = SimpleNamespace(epoch=0, iter=0)
    for sender.epoch in range(count):
        bus.after_train_epoch.emit(sender)


def numbers_reached(site: Site, count: int, /, **options: Any) -> list[int]:
    """The numbers, from 1, of the emissions without a counting sender that reach a receiver with *options*."""
    reached: list[int] = []
    current = 0
    site.connect(lambda: reached.append(current), **options)
    for current in range(1, count + 1):  # noqa: B007  # the receiver reads it
        site.emit()
    return reached


def epoch_numbers_reached(count: int, /, **options: Any) -> list[int]:
    """The numbers, from 1, of the epochs at whose end a receiver with *options* is called."""
    bus = Bus()
    reached: list[int] = []
    bus.after_train_epoch.connect(lambda runner: reached.append(runner.epoch + 1), **options)
    epochs_passed(bus, count)
    return reached


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"every": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"every": 2}, [2, 4, 6, 8, 10]),
        ({"every": 2, "start": 5}, [5, 7, 9]),
        ({"every": 3, "start": 2}, [2, 5, 8]),
        ({"start": 1}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ({"start": 8}, [8, 9, 10]),
        ({"every": 4, "start": 1}, [1, 5, 9]),
        ({"every": 11}, []),
        ({"start": 11}, []),
        ({"once": True}, [1]),
        ({"once": True, "every": 3}, [3]),
        ({"once": True, "start": 4, "every": 3}, [4]),
    ],
)
def test_every_and_start_follow_mmengines_rule(options: dict[str, Any], numbers: list[int]) -> None:
    """``start``, ``start + every``, …, counted from 1: the same by the sender's epochs and by emissions."""
    assert epoch_numbers_reached(10, **options) == numbers
    assert numbers_reached(Site(), 10, **options) == numbers


def test_every_counts_the_senders_iterations_at_an_iteration_site() -> None:
    """Those of the run, so that neither a new epoch nor a resume begins anew."""
    bus, reached = Bus(), Seen()
    bus.before_train_iter.connect(lambda runner: reached.append(runner.iter), every=4)
    sender = SimpleNamespace(epoch=0, iter=0)
    for sender.iter in range(6, 14):
        bus.before_train_iter.emit(sender, batch_idx=0, data_batch=None)
    assert reached == [7, 11]


def test_every_counts_steps_at_the_optimizers_sites() -> None:
    """Under accumulation they aren't passed by every iteration, and each n-th step is what is asked for."""
    bus, reached = Bus(), Seen()
    bus.after_optimizer_step.connect(lambda runner: reached.append(runner.iter), every=2, start=1)
    for iteration in range(3, 24, 4):
        bus.after_optimizer_step.emit(SimpleNamespace(epoch=0, iter=iteration))
    assert reached == [3, 11, 19]


def test_emissions_are_counted_at_a_site_without_unit_whatever_the_sender_has() -> None:
    """A validation's number isn't its epoch's."""
    bus, reached = Bus(), Seen()
    bus.before_val.connect(lambda runner: reached.append(runner.emission), every=2)
    for number in (10, 20, 30, 40):
        bus.before_val.emit(SimpleNamespace(epoch=0, iter=0, emission=number))
    assert reached == [20, 40]


@pytest.mark.parametrize("sender", [None, "a day", SimpleNamespace(epoch=lambda: 3), SimpleNamespace(epoch=None)])
def test_a_sender_that_doesnt_count_has_its_emissions_counted(sender: Any) -> None:
    """Also where something else goes by the counter's name."""
    bus, reached = Bus(), Seen()
    bus.after_train_epoch.connect(reached.append, every=2)
    for _ in range(5):
        bus.after_train_epoch.emit(sender)
    assert reached == [sender, sender]


def test_when_names_what_it_wants() -> None:
    """A predicate has a signature of its own, other than its receiver's."""
    bus, reached = Bus(), Seen()
    bus.on_log.connect(reached.append, when=lambda step: step > 2)
    for step in range(5):
        bus.on_log.emit(f"run {step}", scalars={}, step=step)
    assert reached == ["run 3", "run 4"]


WAYS: dict[str, Callable[[Bus, Any], Callable[..., Any]]] = {
    "emit": lambda bus, sender: bus.on_log.emit,
    "send": lambda bus, sender: bus.on_log.send,
    "emit_all": lambda bus, sender: bus.on_log.emit_all,
    "emitters": lambda bus, sender: bus.emitters(sender).on_log,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_of_emitting_evaluates_when(way: Callable[[Bus, Any], Callable[..., Any]]) -> None:
    """With the sender by keyword and a payload by position too."""
    bus, reached = Bus(), Seen()
    bus.on_log.connect(lambda step: reached.append(step), when=lambda step, /, *, runner: runner[step])
    sender = [False, True, False, True]
    for step in range(4):
        way(bus, sender)(sender, scalars={}, step=step)
    assert reached == [1, 3]


def test_when_is_refused_if_it_asks_for_what_the_site_doesnt_offer() -> None:
    """When it connects, by its own name."""

    def loud(runner: Any, loudness: float) -> bool:
        return loudness > 1

    place = f"tests/test_filters.py:{loud.__code__.co_firstlineno}"
    message = f"loud in {place} asks for 'loudness'; 'on_log' offers runner, scalars, step."
    with pytest.raises(SignatureError, match=f"^{re.escape(message)}$"):
        Bus().on_log.connect(print, when=loud)


def test_an_emission_without_what_when_needs_is_refused() -> None:
    """A predicate can't do without its payload any more than a receiver can."""
    site = Site(name="lunch", payload=("dish", "guests"))
    site.connect(lambda dish: None, when=lambda guests: guests > 1)
    for emit in (site.emit, site.send, site.emit_all):
        with pytest.raises(SignatureError, match="needs 'guests'; this emission of 'lunch' carries dish"):
            emit(None, dish="soup")


def test_once_waits_for_the_other_filters() -> None:
    """It is the first emission that they all let pass, not the first of all."""
    bus, reached = Bus(), Seen()
    bus.on_log.connect(lambda step: reached.append(step), once=True, every=2, when=lambda step: step > 4)
    for step in range(1, 11):
        bus.on_log.emit(None, scalars={}, step=step)
    assert reached == [6]


def test_once_is_over_before_the_receiver_runs() -> None:
    """So a receiver that emits its own site isn't called within its call, nor again after it failed."""
    site, reached = Site(), Seen()

    def receiver() -> None:
        reached.append(1)
        site.emit()
        raise ValueError("again")

    site.connect(receiver, once=True)
    with pytest.raises(ValueError, match="again"):
        site.emit()
    site.emit()
    assert reached == [1]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10min", 600.0), ("1.5 h", 5400.0), ("30s", 30.0), (" 250 ms ", 0.25), ("0.5s", 0.5)],
)
def test_a_period_is_written_with_its_unit(text: str, seconds: float) -> None:
    """Milliseconds, seconds, minutes or hours."""
    assert parse_options(every=text).period == seconds


def test_a_period_lets_the_first_emission_after_it_pass() -> None:
    """It runs from the connection, then from each pass; emissions before it go by."""
    site, reached = Site(), Seen()
    site.connect(lambda: reached.append(1), every="10min")
    (connection,) = site.all_connections()
    assert connection.filter is not None
    site.emit()
    assert reached == []
    connection.filter.of(None).last -= 600
    site.emit()
    site.emit()
    assert reached == [1]
    connection.filter.of(None).last -= 599
    site.emit()
    assert reached == [1]
    connection.filter.of(None).last -= 1
    site.emit()
    assert reached == [1, 1]


def test_a_period_isnt_used_up_by_an_emission_that_when_holds_back() -> None:
    """What is due runs as soon as it may."""
    site, reached, open_ = Site(), Seen(), False
    site.connect(lambda: reached.append(1), every="10min", when=lambda: open_)
    (connection,) = site.all_connections()
    assert connection.filter is not None
    connection.filter.of(None).last -= 600
    site.emit()
    open_ = True
    site.emit()
    assert reached == [1]


@pytest.mark.parametrize("stop", range(11))
@pytest.mark.parametrize("options", [{"every": 3}, {"start": 4}, {"once": True, "every": 3}, {"every": 2, "start": 3}])
def test_filters_that_count_emissions_go_on_after_a_resume(options: dict[str, Any], stop: int) -> None:
    """Saved anywhere and restored, through JSON, they let pass what they let pass without the break."""
    buses, reached = (Bus(()), Bus(())), Seen()
    for bus in buses:
        bus.site("lunch", ("number",)).connect(lambda number: reached.append(number), label="eat", **options)
    for number in range(1, 11):
        if number == stop:
            buses[1].load_state_dict("run", json.loads(json.dumps(buses[0].state_dict("run"))))
        buses[0 < stop <= number].lunch.emit("run", number=number)
    assert reached == numbers_reached(Site(), 10, **options)


def test_a_period_goes_on_after_a_resume() -> None:
    """The time that had passed since the last call counts."""
    first, second = Bus(()), Bus(())
    filters = []
    for bus in (first, second):
        bus.site("lunch").connect(print, every="10min")
        (connection,) = bus.lunch.all_connections()
        assert connection.filter is not None
        filters.append(connection.filter)
    filters[0].of("run").last -= 500
    second.load_state_dict("run", first.state_dict("run"))
    assert not filters[1].passes("run")
    filters[1].of("run").last -= 100
    assert filters[1].passes("run")


def test_a_state_names_the_site_and_the_receiver() -> None:
    """Receivers of one name are numbered in the order of connection; those without filters have no state."""
    bus = Bus(())
    bus.site("lunch").connect(print, label="eat")
    bus.lunch.connect(lambda: None, label="eat", every=2)
    bus.lunch.connect(lambda: None, label="eat", once=True, priority="HIGH")
    bus.site("dinner").connect(lambda: None, label="eat", every=2)
    assert list(bus.state_dict("run")) == [
        "lunch/test_filters.py:eat#1",
        "lunch/test_filters.py:eat#2",
        "dinner/test_filters.py:eat#1",
    ]
    assert bus.state_dict("run")["lunch/test_filters.py:eat#2"] == {
        "seen": 0,
        "done": False,
        "elapsed": pytest.approx(0, abs=60),
    }


def test_a_state_is_that_of_one_senders_filters() -> None:
    """Those of other senders aren't its business."""
    bus = Bus(())
    bus.site("lunch").connect(print, "alice", every=2)
    bus.lunch.connect(lambda: None, "bob", every=2)
    assert list(bus.state_dict("alice")) == ["lunch/builtins:print#1"]


class Sender:
    """Somebody who emits."""


def test_each_sender_has_counts_of_its_own() -> None:
    """A receiver connected to anybody serves every run alike: one run's once isn't used up by another's."""
    site, reached = Site(), Seen()
    first, second = Sender(), Sender()
    site.connect(lambda sender: reached.append(("once", sender)), once=True)
    site.connect(lambda sender: reached.append(("every", sender)), every=2)
    for _ in range(2):
        site.emit(first)
        site.emit(second)
    assert reached == [("once", first), ("once", second), ("every", first), ("every", second)]


def test_the_state_of_one_run_leaves_the_counts_of_another_alone() -> None:
    """What is saved is the sender's, and so is what is restored."""
    bus, reached = Bus(()), Seen()
    first, second = Sender(), Sender()
    bus.site("lunch").connect(lambda sender: reached.append(sender), once=True)
    bus.lunch.emit(first)
    bus.load_state_dict(second, bus.state_dict(second))
    bus.lunch.emit(second)
    assert reached == [first, second]


def test_a_filter_that_the_state_lacks_is_left_as_it_is() -> None:
    """A receiver that was added between two runs begins with what it has seen."""
    bus, reached = Bus(()), Seen()
    bus.site("lunch").connect(lambda: reached.append(1), every=2)
    bus.lunch.emit("run")
    bus.load_state_dict("run", {"lunch/other#1": {"seen": 9, "done": True, "elapsed": 0.0}})
    bus.lunch.emit("run")
    assert reached == [1]


def test_a_receiver_that_is_no_longer_connected_once_isnt_done() -> None:
    """The state of an option that was taken away doesn't silence the receiver."""
    once, always = Filter(Options(once=True), "emission"), Filter(Options(every=2), "emission")
    once.passes(None)
    once.fired(None)
    always.load_state_dict(None, once.state_dict(None))
    assert [always.passes(None) for _ in range(3)] == [True, False, True]


def test_connecting_again_begins_counting_anew() -> None:
    """New options are a new filter."""
    site, reached = Site(), Seen()
    receive = functools.partial(reached.append, 1)
    site.connect(receive, every=2)
    site.emit()
    site.connect(receive, every=2)
    site.emit()
    assert reached == []
    site.emit()
    assert reached == [1]


def test_a_filter_counts_for_each_connection_apart() -> None:
    """The same receiver for two senders has two counts."""
    site, reached = Site(), Seen()
    for sender in ("a", "b"):
        site.connect(reached.append, sender, every=2)
    for sender in ("a", "b", "b", "a"):
        site.emit(sender)
    assert reached == ["b", "a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ""),
        ({"every": 2}, "every 2 epochs"),
        ({"every": "10min"}, "every 600 s"),
        ({"start": 5, "every": 2}, "every 2 epochs, from epoch 5"),
        ({"once": True, "when": print}, "once, when print"),
        ({"when": functools.partial(print, 1)}, "when print"),
    ],
)
def test_filters_are_described_in_words(options: dict[str, Any], words: str) -> None:
    """For a plan, in the unit of the site."""
    assert parse_options(**options).described("epoch") == words


def test_options_are_plain_data() -> None:
    """Checked and in numbers."""
    expected = Options(priority=70, every=2, start=3, once=True, when=print, label="mine")
    assert parse_options(Priority.LOW, every=2, start=3, once=True, when=print, label="mine") == expected


async def waits() -> bool:
    """A predicate that would have to be awaited, and so would always be true."""
    return False


INTERVAL = "give an int of 1 or more, or a time such as '10min'."
TIME = "is not a time; write a number and ms, s, min or h, as in '10min'."
START = "give an int of 0 or more."
TOGETHER = "all ranks must call it at the same emissions, inline; leave one out."
NAMES = (
    "priority, every, start, once, when, label, offload, lane, barrier, max_pending, on_full, on_error, retries, "
    "worker, mutates, ranks, collective"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, f"every=0: {INTERVAL}"),
        ({"every": -2}, f"every=-2: {INTERVAL}"),
        ({"every": True}, f"every=True: {INTERVAL}"),
        ({"every": 2.0}, f"every=2.0: {INTERVAL}"),
        ({"every": "10"}, f"every='10' {TIME}"),
        ({"every": "0s"}, f"every='0s' {TIME}"),
        ({"every": "-1s"}, f"every='-1s' {TIME}"),
        ({"every": "10 minutes"}, f"every='10 minutes' {TIME}"),
        ({"start": -1}, f"start=-1: {START}"),
        ({"start": True}, f"start=True: {START}"),
        ({"start": "5"}, f"start='5': {START}"),
        ({"once": 1}, "once=1: give True or False."),
        ({"when": True}, "when=True: give a plain function that returns True where it should run."),
        ({"when": waits}, f"when={waits!r}: give a plain function that returns True where it should run."),
        ({"label": 3}, "label=3: give a str."),
        ({"evry": 2}, f"there is no option 'evry', only {NAMES}; did you mean 'every'?"),
        ({"offload": 1}, "offload=1: give True or False."),
        ({"lane": ""}, "lane='': give a str."),
        ({"barrier": 3}, "barrier=3: give a str."),
        (
            {"offload": False, "retries": 2},
            "retries= is of use to an offloaded receiver only; leave out offload=False.",
        ),
        (
            {"mutates": "model"},
            "mutates='model': give a tuple of names out of model, optimizer, average, gradients, or () for none.",
        ),
        (
            {"mutates": ("modle",)},
            "mutates=('modle',): a receiver may write to model, optimizer, average, gradients; did you mean 'model'?",
        ),
        ({"ranks": "mian"}, "ranks='mian': give one of all, main, local_main; did you mean 'main'?"),
        ({"ranks": 0}, "ranks=0: give one of all, main, local_main."),
        ({"collective": 1}, "collective=1: give True or False."),
        (
            {"ranks": "main", "mutates": ("model",)},
            "ranks='main' with mutates=('model',): all ranks have these alike, and would no longer; leave out ranks=, "
            "so that each changes its own.",
        ),
        ({"collective": True, "ranks": "main"}, f"collective=True with ranks='main': {TOGETHER}"),
        ({"collective": True, "offload": True}, f"collective=True with offload=True: {TOGETHER}"),
        ({"collective": True, "when": bool}, f"collective=True with when=: {TOGETHER}"),
        ({"collective": True, "every": "10min"}, f"collective=True with every='10min': {TOGETHER}"),
        ({"priority": 200}, "priority 200 is not between 0 (runs first) and 100 (runs last)."),
    ],
)
def test_an_option_that_cant_be_is_refused(options: dict[str, Any], message: str) -> None:
    """The message has the option, its value and what is allowed."""
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        parse_options(**options)

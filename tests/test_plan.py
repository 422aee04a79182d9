"""Plans: what is compiled for an emission, and what is shown of it."""

from __future__ import annotations

import re
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from eventrunner.bus.bus import Bus
from eventrunner.bus.connection import Connection, Table, annotate, connection_of
from eventrunner.bus.describe import Plan, PlanRow
from eventrunner.bus.freeze import Context
from eventrunner.bus.options import parse_options
from eventrunner.bus.plan import checked_payload, compile_plan
from eventrunner.errors import OptionError, SignatureError

SENDER = SimpleNamespace(epoch=2, iter=17)
PAYLOAD = ("dish", "guests")


def compiled(connections: Sequence[Connection], given: Sequence[str]) -> Callable[..., None]:
    """The emission of a site that shares nothing with others."""
    return compile_plan("lunch", connections, given, Context(0, id))


def connected(receiver: Callable[..., Any], **options: Any) -> Connection:
    """A connection to a site ``lunch``."""
    return connection_of(receiver, "lunch", "emission", PAYLOAD, parse_options(**options))


def at(function: Callable[..., Any]) -> str:
    """``file:line`` of a function of this file."""
    return f"tests/test_plan.py:{function.__code__.co_firstlineno}"


def test_a_plan_calls_in_the_order_given() -> None:
    """Sorting is the table's business."""
    calls: list[Any] = []
    connections = [
        connected(lambda: calls.append("first"), priority="LOW"),
        connected(lambda dish: calls.append(dish)),
        connected(lambda runner, guests: calls.append((runner, guests)), priority="HIGH"),
    ]
    compiled(connections, PAYLOAD)(SENDER, dish="soup", guests=3)
    assert calls == ["first", "soup", (SENDER, 3)]


def test_a_plan_without_receivers_does_nothing() -> None:
    """Muted sites have such a plan."""
    assert compiled([], PAYLOAD)(SENDER, dish="soup", guests=3) is None


def test_a_plan_for_a_part_of_the_payload_passes_on_that_part() -> None:
    """What isn't given is left to the receiver's default."""
    calls: list[Any] = []
    plan = compiled([connected(lambda dish, guests=1: calls.append((dish, guests)))], ["dish"])
    plan(SENDER, dish="soup")
    assert calls == [("soup", 1)]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"dish": 1}, "lunch.emit() missing 1 required positional argument: 'guests'"),
        ({"dish": 1, "guests": 2, "wine": 3}, "lunch.emit() got an unexpected keyword argument 'wine'"),
    ],
)
def test_a_compiled_emission_takes_its_payload_and_no_other(payload: dict[str, int], message: str) -> None:
    """Python's own error has the site's name, at no cost to a right call."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        compiled([], PAYLOAD)(SENDER, **payload)


def test_a_receiver_that_needs_what_isnt_given_is_refused() -> None:
    """Before anything is called, by name and place."""

    def serve(dish: str, guests: int) -> None:
        """Do nothing."""

    message = f"serve in {at(serve)} needs 'dish', 'guests'; this emission of 'lunch' carries nothing."
    with pytest.raises(SignatureError, match=f"^{re.escape(message)}$"):
        compiled([connected(serve)], [])


@pytest.mark.parametrize("options", [{}, {"every": 1, "start": 1}, {"when": lambda: True}])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_receiver_that_failed_is_read_off_the_line(failing: int, options: dict[str, Any]) -> None:
    """Whichever it is, filters before it or not; nothing is kept up to date for that while all goes well."""

    def fine() -> None:
        """Do nothing."""

    def fails() -> None:
        raise KeyError("salt")

    receivers = [fine, fine, fine]
    receivers[failing] = fails
    connections = [connected(receiver, **options, label=f"r{index}") for index, receiver in enumerate(receivers)]
    with pytest.raises(KeyError) as caught:
        compiled(connections, PAYLOAD)(SENDER, dish="soup", guests=3)
    assert caught.value.__notes__ == [f"raised by receiver r{failing} ({at(fails)}) at 'lunch', epoch 2, iter 17"]


def test_a_failing_predicate_is_noted_as_its_receivers() -> None:
    """The name that one connected."""

    def hungry() -> bool:
        raise LookupError("no idea")

    def serve() -> None:
        """Do nothing."""

    with pytest.raises(LookupError, match="no idea") as caught:
        compiled([connected(serve, when=hungry)], PAYLOAD)(None, dish=1, guests=2)
    assert caught.value.__notes__ == [f"raised by receiver serve ({at(serve)}) at 'lunch'"]


def test_an_error_that_was_raised_before_is_noted_for_the_receiver_that_raises_it_again() -> None:
    """Its older traceback isn't taken for the plan's."""
    error = ValueError("kept")
    try:
        raise error
    except ValueError:
        pass

    def again() -> None:
        raise error

    def fine() -> None:
        """Do nothing."""

    with pytest.raises(ValueError, match="kept"):
        compiled([connected(fine), connected(again)], PAYLOAD)(None, dish=1, guests=2)
    assert error.__notes__ == [f"raised by receiver again ({at(again)}) at 'lunch'"]


def test_the_traceback_ends_in_the_receivers_own_frames() -> None:
    """One frame of the plan stands above them, named after the site."""

    def helper() -> None:
        raise OSError("no pan")

    def serve() -> None:
        helper()

    with pytest.raises(OSError, match="no pan") as caught:
        compiled([connected(serve)], PAYLOAD)(None, dish=1, guests=2)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames[1:]] == ["emit", "serve", "helper"]
    assert frames[1].filename == "<receivers of lunch>"


@dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that can't be given a note."""

    reason: str


class Miscounting:
    """A sender whose counter fails."""

    iter = 3

    @property
    def epoch(self) -> int:
        raise RuntimeError("no epoch yet")


def test_an_error_that_takes_no_note_propagates_all_the_same() -> None:
    """The note's failure never takes the error's place."""

    def serve() -> None:
        raise FrozenError("burnt")

    with pytest.raises(FrozenError):
        compiled([connected(serve)], PAYLOAD)(None, dish=1, guests=2)


def test_a_sender_whose_counter_fails_doesnt_hide_the_error() -> None:
    """Neither does the state of the run."""
    error = ValueError("burnt")
    annotate(error, connected(print), Miscounting())
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    ("sender", "progress"),
    [
        (SENDER, ", epoch 2, iter 17"),
        (SimpleNamespace(iter=4), ", iter 4"),
        (SimpleNamespace(epoch="first", iter=None), ""),
        (None, ""),
    ],
)
def test_a_note_has_the_counters_that_the_sender_has(sender: Any, progress: str) -> None:
    """And only if they are numbers."""
    error = ValueError("burnt")
    annotate(error, connected(print), sender)
    assert error.__notes__ == [f"raised by receiver print (builtins) at 'lunch'{progress}"]


def test_names_that_generated_code_might_use_are_free_for_a_payload() -> None:
    """Its own names end in an underscore, which a payload's may not."""
    names = ("error", "failed", "receiver_0", "passes_0", "when_0", "live_0", "emit", "self", "print", "None_of")
    calls: list[Any] = []
    for name in names:
        connection = connection_of(
            eval(f"lambda {name}: calls.append({name})", {"calls": calls}),
            "lunch",
            "emission",
            (name,),
            parse_options(every=1, start=1, when=lambda: True),
        )
        compiled([connection], (name,))(SENDER, **{name: name})
    assert calls == list(names)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("dish", "site 'lunch' with payload='dish': give a tuple of names, as in ('dish',)."),
        (("dish", "dish"), "site 'lunch' with payload name 'dish' twice: name each once."),
        *(
            (
                (name,),
                f"site 'lunch' with payload name {name!r}: it must be an identifier that doesn't end in an underscore "
                "and is not 'runner' or 'sender', which every receiver may have anyway.",
            )
            for name in ("runner", "sender", "class", "two words", "", "dish_", "1st", 3)
        ),
    ],
)
def test_a_payload_that_no_receiver_could_name_is_refused(payload: Any, message: str) -> None:
    """When the site is declared."""
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        checked_payload("lunch", payload)


def test_a_payload_may_be_any_iterable_of_names() -> None:
    """Kept in its order."""
    assert checked_payload("lunch", (name for name in ["guests", "dish"])) == ("guests", "dish")


def test_a_table_gives_one_connection_for_each_receiver_that_a_sender_reaches() -> None:
    """That to the sender goes before that to anybody; order is by priority, then by connection."""
    table = Table(0)
    made = {}
    for order, (receiver, sender, priority) in enumerate(
        [("a", 0, 50), ("b", 0, 50), ("a", "x", 90), ("c", "x", 10), ("d", "y", 50)]
    ):
        made[receiver, sender] = connection = connected(print, priority=priority, label=f"{receiver}{sender}")
        connection.order = order
        table.put((receiver, sender), connection)
    assert [connection.name for connection in table.reached_by("x")] == ["cx", "b0", "ax"]
    assert [connection.name for connection in table.reached_by("z")] == ["a0", "b0"]
    assert [connection.name for connection in table.all()] == ["cx", "a0", "b0", "dy", "ax"]
    assert table.of_receiver("a") == {("a", 0): made["a", 0], ("a", "x"): made["a", "x"]}
    assert table.of_sender("x") == [("a", "x"), ("c", "x")]


def test_a_table_forgets_a_sender_with_its_last_connection() -> None:
    """No empty entry stays behind."""
    table = Table(0)
    table.put(("a", "x"), connected(print))
    assert (len(table), table.has_sender("x"), table.reaches("x"), table.reaches("y")) == (1, True, True, False)
    table.put(("a", "x"), None)
    table.put(("a", "x"), None)
    assert (len(table), table.has_sender("x"), table.reaches("x")) == (0, False, False)


def test_a_weak_connection_gives_its_receiver_while_it_lives() -> None:
    """And None afterwards, which a plan skips."""
    calls: list[str] = []

    def serve(dish: str) -> None:
        calls.append(dish)

    connection = connected(serve, when=lambda: True)
    connection.target, connection.weak = weakref.ref(serve), True
    plan = compiled([connection], PAYLOAD)
    plan(None, dish="soup", guests=1)
    assert connection.receiver is serve
    del serve
    plan(None, dish="pie", guests=1)
    assert connection.receiver is None
    assert calls == ["soup"]


def test_a_plan_shows_what_runs_where_site_by_site() -> None:
    """Priority, name, place and filters, in the order in which they run."""

    def serve(dish: str) -> None:
        """Do nothing."""

    bus = Bus(())
    bus.site("lunch", ("dish",)).connect(serve, every=2, start=3)
    bus.lunch.connect(print, priority="HIGH")
    bus.site("nap")
    bus.site("dinner", ("dish",)).connect(serve, once=True, label="the same")
    width = len(at(serve))
    assert str(bus.describe()).splitlines() == [
        "lunch",
        "   30 print     builtins",
        f"   50 serve     {at(serve)}  every 2 emissions, from emission 3",
        "dinner",
        f"   50 the same  {at(serve):<{width}}  once",
    ]


def test_a_plan_is_a_sequence_of_rows() -> None:
    """For code that looks for something in it."""
    bus = Bus(())
    bus.site("lunch").connect(print, priority=7)
    plan = bus.describe()
    assert len(plan) == 1
    assert list(plan) == [PlanRow("lunch", 7, "print", "builtins", "")]


def test_an_empty_plan_is_an_empty_text() -> None:
    """Nothing would run."""
    assert str(Plan(())) == ""
    assert len(Bus().describe()) == 0


def test_the_plan_of_a_sender_is_the_one_that_it_runs() -> None:
    """What is connected to others isn't in it."""
    bus = Bus(())
    bus.site("lunch").connect(print, "alice")
    bus.lunch.connect(repr, "bob")
    bus.lunch.connect(len, priority="LOW")
    bus.lunch.connect(print, priority="LOWEST")
    assert [row.receiver for row in bus.describe("alice")] == ["print", "len"]
    assert [row.receiver for row in bus.describe("carol")] == ["len", "print"]
    assert [row.receiver for row in bus.describe()] == ["print", "repr", "len", "print"]


def test_plan_prints_and_returns_the_description(capsys: pytest.CaptureFixture[str]) -> None:
    """At a prompt one call is enough."""
    bus = Bus(())
    bus.site("lunch").connect(print)
    plan = bus.plan()
    assert plan == bus.describe()
    assert capsys.readouterr().out == f"{plan}\n"

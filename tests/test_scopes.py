"""Receivers of some ranks alone, and collective ones: who is called, and what a plan says of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from eventrunner.bus.bus import Bus, Emitters
from eventrunner.errors import OptionError
from eventrunner.hook import Hook, connect_hook, options

EVERYBODY = ("all", "main", "local_main")


def a_bus(heard: list[str]) -> Bus:
    """One with a receiver of each scope, which tells that it was called."""
    bus = Bus(())
    site = bus.site("lunch")
    for scope in EVERYBODY:
        site.connect(lambda scope=scope: heard.append(scope), ranks=scope)
    return bus


def say(monkeypatch: pytest.MonkeyPatch, **words: int) -> None:
    """Have a launcher say in the environment what this process is; what isn't given it doesn't say."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in words.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("words", "called"),
    [
        ({}, EVERYBODY),
        ({"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}, EVERYBODY),
        ({"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4}, EVERYBODY),
        ({"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 4}, ("all",)),
        ({"RANK": 2, "LOCAL_RANK": 0, "WORLD_SIZE": 4}, ("all", "local_main")),
        ({"RANK": 2, "WORLD_SIZE": 4}, ("all",)),
        ({"RANK": 0, "WORLD_SIZE": 4}, EVERYBODY),
    ],
)
def test_the_environment_says_who_is_called(
    monkeypatch: pytest.MonkeyPatch, words: dict[str, int], called: tuple[str, ...]
) -> None:
    """In every way to emit, where no sender knows better."""
    say(monkeypatch, **words)
    heard: list[str] = []
    bus = a_bus(heard)
    for emit in (bus.lunch.emit, bus.lunch.emit_all, bus.lunch.send, lambda: bus.emitters("cook").lunch("cook")):
        heard.clear()
        emit()
        assert tuple(heard) == called


@pytest.mark.parametrize(
    ("rank", "local_rank", "called"), [(0, 0, EVERYBODY), (1, 1, ("all",)), (2, 0, ("all", "local_main"))]
)
def test_a_sender_that_knows_its_ranks_says_who_is_called(
    monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int, called: tuple[str, ...]
) -> None:
    """Rather than the environment, and for what was emitted before, too."""
    say(monkeypatch)
    heard: list[str] = []
    bus = a_bus(heard)
    bus.lunch.emit()
    heard.clear()

    cook = SimpleNamespace(ranks=SimpleNamespace(rank=rank, local_rank=local_rank, world=4))
    bus.emitters(cook).lunch(cook)

    assert tuple(heard) == called
    heard.clear()
    bus.lunch.emit()
    assert tuple(heard) == called


def test_a_site_without_receivers_for_this_rank_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to call, not even an empty function; a receiver for all makes it heard again."""
    say(monkeypatch, RANK=1, WORLD_SIZE=2)
    bus = Bus(())
    bus.site("lunch").connect(print, ranks="main")
    emitters = bus.emitters("cook")

    assert emitters.lunch is None
    bus.lunch.connect(repr)
    assert emitters.lunch is not None


def test_a_barrier_of_another_ranks_lane_is_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emission doesn't ask for a lane that nothing is put into."""
    say(monkeypatch, RANK=1, WORLD_SIZE=2)
    bus = Bus(())
    bus.site("dinner")
    bus.site("lunch").connect(print, ranks="main", offload=True, barrier="dinner")

    assert bus.emitters("cook").dinner is None
    say(monkeypatch, RANK=0, WORLD_SIZE=2)
    assert bus.emitters("cook").dinner is not None


def test_a_plan_has_the_receivers_of_all_ranks_and_says_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On each rank the same."""
    say(monkeypatch, RANK=1, WORLD_SIZE=2)
    bus = Bus(())
    site = bus.site("lunch", unit="epoch")
    site.connect(print, every=2, ranks="main")
    site.connect(repr, ranks="local_main", offload=True)
    site.connect(len, collective=True, start=3)
    site.connect(str)

    assert [row.described for row in bus.describe()] == [
        "every 2 epochs, on rank 0",
        "on each machine's first rank, in lane 'repr@lunch'",
        "from epoch 3, on all ranks together",
        "",
    ]
    assert [(row.ranks, row.collective) for row in bus.describe()] == [
        ("main", False), ("local_main", False), ("all", True), ("all", False)
    ]  # fmt: skip


class OfMain(Hook):
    """One of rank 0, but for a method."""

    ranks = "main"

    def before_run(self, runner: Any) -> None:
        """Do nothing."""

    @options(ranks="all", collective=True)
    def after_run(self, runner: Any) -> None:
        """Do nothing."""


def test_a_hook_says_for_all_its_methods_and_a_method_for_itself() -> None:
    """As it does with priorities."""
    bus = Bus()
    connect_hook(bus, OfMain(), "run")
    other = OfMain()
    other.ranks = "local_main"
    connect_hook(bus, other, "run")

    assert [(row.site, row.ranks, row.collective) for row in bus.describe("run")] == [
        ("before_run", "main", False), ("before_run", "local_main", False),
        ("after_run", "all", True), ("after_run", "all", True),
    ]  # fmt: skip


async def wait() -> None:
    """Do nothing, later."""


def test_an_async_receiver_isnt_collective() -> None:
    """It can't be called inline."""
    message = "to 'lunch': collective=True on an async def, which can't be called inline; make it a def."
    with pytest.raises(OptionError, match=f"{re.escape(message)}$"):
        Bus(()).site("lunch").connect(wait, collective=True)


def test_a_collective_receiver_isnt_held_weakly() -> None:
    """A rank that has no reference to it left would no longer come."""
    message = "connecting print to 'lunch' with weak=True: it may be gone on one rank alone."
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        Bus(()).site("lunch").connect(print, weak=True, collective=True)


def counting(heard: list[str]) -> Callable[[str, Callable[..., Any]], Callable[..., Any]]:
    """A guard that writes down whom it guards when that is called."""

    def guard(who: str, receiver: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            heard.append(who.partition(" ")[0])
            return receiver(*args, **kwargs)

        return call

    return guard


class Fan(Hook):
    """Called at three sites by one method."""

    ranks = "main"

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        """Do nothing."""


@pytest.mark.parametrize("world", [1, 2])
def test_only_receivers_of_some_ranks_are_guarded_and_only_where_there_are_several(world: int) -> None:
    """Inline, held weakly, with a filter, through a fan-in method, and in a lane."""
    heard: list[str] = []
    cook = SimpleNamespace(ranks=SimpleNamespace(rank=0, local_rank=0, world=world, guard=counting(heard)))
    bus = Bus()
    emitters = bus.emitters(cook)
    site = bus.before_train_iter
    first, second, third, fourth, fifth = ((lambda: None) for _ in range(5))
    site.connect(first, label="all")
    site.connect(second, label="inline", ranks="main")
    site.connect(third, label="weak", weak=True, ranks="local_main")
    site.connect(fourth, label="filtered", every=2, ranks="main")
    site.connect(fifth, label="lane", offload=True, ranks="main")
    connect_hook(bus, Fan(), cook)

    with bus.open_lanes(cook):
        for _ in range(2):
            emitted(emitters, cook)

    expected = ["inline", "weak", "Fan", "inline", "weak", "filtered", "Fan"]
    assert [each for each in heard if each != "lane"] == (expected if world == 2 else [])
    assert heard.count("lane") == (2 if world == 2 else 0)


def emitted(emitters: Emitters, sender: Any) -> None:
    assert emitters.before_train_iter is not None
    emitters.before_train_iter(sender, 0, None)


def test_a_receiver_that_is_sent_to_is_guarded_and_returned_as_itself() -> None:
    """``send`` gives pairs of receivers and results."""
    heard: list[str] = []
    cook = SimpleNamespace(ranks=SimpleNamespace(rank=0, local_rank=0, world=2, guard=counting(heard)))
    bus = Bus(())
    serve = bus.site("lunch").connect(lambda: "hot", ranks="main", label="soup")
    bus.emitters(cook)

    assert bus.lunch.send(cook) == [(serve, "hot")]
    assert heard == ["soup"]


def test_a_guarded_task_is_one_task_whatever_changes() -> None:
    """What became of its jobs is kept for it, and isn't begun anew when another receiver comes."""
    cook = SimpleNamespace(ranks=SimpleNamespace(rank=0, local_rank=0, world=2, guard=counting([])))
    bus = Bus(())
    bus.site("lunch").connect(lambda: None, ranks="main", offload=True, label="soup")
    emitters = bus.emitters(cook)
    with bus.open_lanes(cook) as lanes:
        for _ in range(3):
            assert emitters.lunch
            emitters.lunch(cook)
            bus.lunch.connect(lambda: None)
    assert [(account.name, account.calls) for account in lanes.accounts()] == [("soup", 3)]


def test_a_copy_of_a_bus_is_the_same_rank() -> None:
    """As it has the same connections."""
    heard: list[str] = []
    bus = Bus(())
    bus.emitters(SimpleNamespace(ranks=SimpleNamespace(rank=1, local_rank=1, world=2)))
    bus.site("lunch").connect(heard.append, ranks="main")
    copy.deepcopy(bus).lunch.emit(1)
    assert heard == []

"""Offloaded receivers on a bus: what they get, where they run, and who waits for them. No training is needed."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict, namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eventrunner.bus.bus import Bus
from eventrunner.bus.freeze import freeze
from eventrunner.errors import OptionError, UnknownSiteError
from eventrunner.hook import Hook, connect_hook, options

Pair = namedtuple("Pair", "left right")


@pytest.fixture
def day() -> Bus:
    """A bus with two sites."""
    bus = Bus(())
    bus.site("lunch", ("dish",))
    bus.site("dinner", ("dish",))
    return bus


class Held:
    """A receiver that holds its lane until it is let go, and notes what it got."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.got: list[Any] = []

    def __call__(self, dish: Any) -> None:
        self.began.set()
        assert self.may_end.wait(60)
        self.got.append(dish)


def test_an_offloaded_receiver_runs_beside_its_sender(day: Bus) -> None:
    """The emission returns while the receiver is still at work."""
    held = Held()
    day.lunch.connect(held, offload=True)

    with day.open_lanes():
        day.lunch.emit(None, dish="soup")
        assert held.began.wait(60)
        assert held.got == []
        held.may_end.set()

    assert held.got == ["soup"]


def test_it_runs_in_another_thread_and_a_plain_one_doesnt(day: Bus) -> None:
    """Only those that ask for it leave their sender's thread."""
    threads: dict[str, threading.Thread] = {}
    day.lunch.connect(lambda: threads.update(plain=threading.current_thread()))
    day.lunch.connect(lambda: threads.update(beside=threading.current_thread()), offload=True)

    with day.open_lanes():
        day.lunch.emit(None, dish=1)

    assert threads["plain"] is threading.current_thread()
    assert threads["beside"] is not threading.current_thread()


def test_a_lane_keeps_the_order_of_the_emissions(day: Bus) -> None:
    """Two receivers of one lane are called as they would be inline: neither overlaps nor overtakes."""
    got: list[tuple[str, int]] = []
    day.lunch.connect(lambda dish: got.append(("first", dish)), offload=True, lane="kitchen", priority=10)
    day.lunch.connect(lambda dish: got.append(("second", dish)), offload=True, lane="kitchen", priority=20)

    with day.open_lanes():
        for dish in range(50):
            day.lunch.emit(None, dish=dish)

    assert got == [(name, dish) for dish in range(50) for name in ("first", "second")]


def test_a_receiver_has_a_lane_of_its_own_unless_it_names_one(day: Bus) -> None:
    """One that is held up doesn't hold up another."""
    held, done = Held(), threading.Event()
    day.lunch.connect(held, offload=True)
    day.lunch.connect(lambda: done.set(), offload=True, label="other")

    with day.open_lanes():
        day.lunch.emit(None, dish=1)
        assert done.wait(60)
        held.may_end.set()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_def_is_awaited_in_its_lane(day: Bus, backend: str) -> None:
    """It needs no option: a coroutine can't be called inline."""
    import anyio

    got: list[Any] = []

    async def cook(dish: Any) -> None:
        await anyio.sleep(0)
        got.append(dish)

    day.lunch.connect(cook)
    with day.open_lanes(backend=backend):
        day.lunch.emit(None, dish="stew")

    assert got == ["stew"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_without_open_lanes_it_is_called_at_once(day: Bus, asynchronous: bool) -> None:
    """A bus that nobody opened lanes for loses nothing; the arguments are frozen all the same."""
    got: list[Any] = []
    dish = ["soup"]

    async def cook(dish: Any) -> None:
        got.append(dish)

    day.lunch.connect(cook if asynchronous else lambda dish: got.append(dish), offload=True)
    day.lunch.emit(None, dish=dish)

    assert got == [["soup"]]
    assert got[0] is not dish


def test_what_it_names_is_frozen_at_its_turn(day: Bus) -> None:
    """What the sender changes afterwards doesn't reach it."""
    held, weight = Held(), torch.zeros(3)
    dish = {"weight": weight, "list": [weight], "pair": Pair(weight, 1), "tuple": (1, "a")}
    day.lunch.connect(held, offload=True)

    with day.open_lanes():
        day.lunch.emit(None, dish=dish)
        weight.fill_(7)
        dish["list"] = []
        held.may_end.set()

    (got,) = held.got
    assert got["weight"].tolist() == got["list"][0].tolist() == got["pair"].left.tolist() == [0, 0, 0]
    assert (type(got["pair"]), got["tuple"]) == (Pair, (1, "a"))


def test_a_frozen_tensor_is_detached_and_on_the_host() -> None:
    """It takes no graph along, and waits for its device once."""
    weight = torch.ones(2, requires_grad=True)
    frozen = freeze(weight * 2)

    assert (frozen.requires_grad, frozen.device.type) == (False, "cpu")


def test_other_objects_are_copied_with_what_is_in_them() -> None:
    """A batch of one's own class doesn't change under the receiver."""
    batch = SimpleNamespace(rows=[1, 2])
    frozen = freeze(batch)
    batch.rows.append(3)

    assert frozen.rows == [1, 2]


def test_mappings_of_other_kinds_keep_their_kind() -> None:
    """What Hugging Face's models return is one; its tensors have a graph, which no deep copy takes."""
    loss = torch.ones(1, requires_grad=True) * 2
    outputs = OrderedDict(loss=loss, parts={"a": [loss]}, seen={1, 2})
    frozen = freeze(outputs)
    outputs["loss"] = None

    assert type(frozen) is OrderedDict
    assert (frozen["loss"].item(), frozen["loss"].requires_grad) == (2.0, False)
    assert (frozen["parts"]["a"][0].requires_grad, frozen["seen"]) == (False, {1, 2})


def test_an_object_that_can_be_called_is_copied_too() -> None:
    """A module isn't a function: its weights change."""
    model = torch.nn.Linear(1, 1)
    frozen = freeze(model)
    with torch.no_grad():
        model.weight.fill_(3)
    assert frozen.weight.item() != 3


@pytest.mark.parametrize("value", [None, 1, 1.5, True, "a", b"b", Path("c"), ValueError("d"), print])
def test_what_cant_change_is_handed_over_as_it_is(value: Any) -> None:
    """A copy would cost and protect nothing."""
    assert freeze(value) is value


def test_a_sender_shows_its_view_in_place_of_itself(day: Bus) -> None:
    """The receiver can't read what has changed since its turn."""

    class Cook:
        def __init__(self) -> None:
            self.epoch = 1

        def offload_view(self) -> str:
            return f"epoch {self.epoch}"

    got: list[Any] = []
    cook = Cook()
    day.lunch.connect(lambda sender, dish: got.append((sender, dish)), cook, offload=True)

    with day.open_lanes(cook):
        day.lunch.emit(cook, dish=1)
        cook.epoch = 2
        day.lunch.emit(cook, dish=2)

    assert got == [("epoch 1", 1), ("epoch 2", 2)]


def test_each_sender_has_its_own_lanes(day: Bus) -> None:
    """Two runs on one bus don't wait for each other."""
    mine, yours = SimpleNamespace(), SimpleNamespace()
    held = Held()
    day.lunch.connect(held, mine, offload=True)
    done = threading.Event()
    day.lunch.connect(lambda: done.set(), yours, offload=True)

    with day.open_lanes(mine):
        day.lunch.emit(mine, dish=1)
        with day.open_lanes(yours):
            day.lunch.emit(yours, dish=2)
        assert done.is_set()
        assert held.got == []
        held.may_end.set()


def test_a_sender_has_one_set_of_lanes_at_a_time(day: Bus) -> None:
    """The second would leave the first one's jobs behind."""
    with day.open_lanes(), pytest.raises(OptionError, match=r"^opening lanes for a sender that has some open; "):
        day.open_lanes().__enter__()


def test_a_failure_is_raised_to_who_opened_the_lanes_with_a_note_of_its_origin(day: Bus) -> None:
    """Nothing that fails beside its sender is lost."""

    def burn(dish: Any) -> None:
        raise RuntimeError("burnt")

    sender = SimpleNamespace(epoch=3, iter=120)
    day.lunch.connect(burn, offload=True)
    with pytest.raises(RuntimeError, match="burnt") as caught, day.open_lanes():
        day.lunch.emit(sender, dish=1)

    place = f"tests/test_offload.py:{burn.__code__.co_firstlineno}"
    assert caught.value.__notes__ == [
        f"raised by receiver burn ({place}) at 'lunch', epoch 3, iter 120, in lane 'burn@lunch'"
    ]
    assert caught.traceback[-1].name == "burn"


# Barriers


def test_a_barrier_holds_its_site_until_the_lane_is_done(day: Bus) -> None:
    """Dinner isn't served before lunch is over, even though nobody is connected to dinner."""
    held = Held()
    day.lunch.connect(held, offload=True, barrier="dinner")
    emitters = day.emitters(None)
    passed: list[Any] = []

    with day.open_lanes():
        emitters.lunch(None, dish=1)
        assert held.began.wait(60)
        sender = threading.Thread(target=lambda: (emitters.dinner(None, dish=2), passed.append(list(held.got))))
        sender.start()
        held.may_end.set()
        sender.join(60)

    assert passed == [[1]]


@pytest.mark.parametrize("how", ["emit", "emit_all", "emitters", "send"])
def test_every_form_of_emission_waits_at_a_barrier(day: Bus, how: str) -> None:
    """Its receivers find the lane's work done."""
    seen: list[list[Any]] = []
    got: list[Any] = []
    day.lunch.connect(lambda dish: got.append(dish), offload=True, barrier="dinner")
    day.dinner.connect(lambda: seen.append(list(got)))
    emitters = day.emitters(None)
    emit = {"emit": day.dinner.emit, "emit_all": day.dinner.emit_all, "emitters": emitters.dinner}.get(
        how, day.dinner.send
    )

    with day.open_lanes():
        for dish in range(20):
            day.lunch.emit(None, dish=dish)
            emit(None, dish=0)

    assert seen == [list(range(dish + 1)) for dish in range(20)]


def test_a_barrier_raises_what_failed_before_it(day: Bus) -> None:
    """The site isn't passed as if all were well."""

    def burn() -> None:
        raise RuntimeError("burnt")

    day.lunch.connect(burn, offload=True, barrier="dinner")
    with day.open_lanes():
        day.lunch.emit(None, dish=1)
        with pytest.raises(RuntimeError, match="burnt"):
            day.dinner.emit(None, dish=2)


def test_a_barrier_goes_with_its_connection(day: Bus) -> None:
    """The site then costs nothing again."""
    emitters = day.emitters(None)

    def eat() -> None:
        """Do nothing."""

    day.lunch.connect(eat, offload=True, barrier="dinner")
    assert emitters.dinner is not None
    day.lunch.disconnect(eat)
    assert emitters.dinner is None
    day.lunch.connect(eat, offload=True, barrier="dinner")
    day.lunch.connect(eat, offload=True)
    assert emitters.dinner is None


def test_a_barrier_at_no_site_is_refused(day: Bus) -> None:
    """With the nearest name; nothing is connected."""

    def eat() -> None:
        """Do nothing."""

    message = (
        f"connecting eat in tests/test_offload.py:{eat.__code__.co_firstlineno} with barrier='diner': no such site; "
        "did you mean 'dinner'?"
    )
    with pytest.raises(UnknownSiteError, match=f"^{re.escape(message)}$"):
        day.lunch.connect(eat, offload=True, barrier="diner")
    assert not day.lunch.has_receivers_for(None)


# Options


def where(function: Any) -> str:
    return f"tests/test_offload.py:{function.__code__.co_firstlineno}"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"lane": "x"}, "lane, barrier and what else concerns a lane are of use with offload=True only; add that."),
        ({"offload": True, "weak": True}, "weak=True: a lane holds what it runs."),
    ],
)
def test_lane_options_need_a_lane(day: Bus, given: dict[str, Any], problem: str) -> None:
    """An option that would do nothing is an error."""

    def eat() -> None:
        """Do nothing."""

    with pytest.raises(OptionError, match=re.escape(problem)) as caught:
        day.lunch.connect(eat, **given)
    assert str(caught.value).startswith("connecting eat ")


def test_an_async_def_cant_be_inline(day: Bus) -> None:
    """Its coroutine would be dropped."""

    async def eat() -> None:
        """Do nothing."""

    with pytest.raises(OptionError, match="offload=False on an async def, which can't be called inline; leave it out"):
        day.lunch.connect(eat, offload=False)


def test_a_bad_option_of_a_lane_names_the_receiver(day: Bus) -> None:
    """Whoever reads the message knows where to look."""

    def eat() -> None:
        """Do nothing."""

    with pytest.raises(OptionError, match=f"^connecting eat in {re.escape(where(eat))} to 'lunch': .*did you mean"):
        day.lunch.connect(eat, offload=True, on_full="drop_oldst")


def test_a_plan_shows_lane_and_barrier(day: Bus) -> None:
    """What runs where can be read before it runs."""

    def eat() -> None:
        """Do nothing."""

    day.lunch.connect(eat, offload=True, lane="kitchen", barrier="dinner")
    (row,) = day.describe()
    assert (row.lane, row.barrier) == ("kitchen", "dinner")
    assert str(day.describe()).endswith("in lane 'kitchen', waited for at dinner")


def test_send_collects_results_and_so_calls_offloaded_receivers_itself(day: Bus) -> None:
    """A result that comes later can't be returned."""

    def taste(dish: str) -> str:
        return f"good {dish}"

    day.lunch.connect(taste, offload=True)
    with day.open_lanes():
        assert day.lunch.send(None, dish="soup") == [(taste, "good soup")]


def test_filters_hold_for_an_offloaded_receiver(day: Bus) -> None:
    """They are asked in the sender's thread, at its turn."""
    got: list[int] = []
    day.lunch.connect(lambda dish: got.append(dish), offload=True, every=2, when=lambda dish: dish < 7)
    with day.open_lanes():
        for dish in range(10):
            day.lunch.emit(None, dish=dish)
    assert got == [1, 3, 5]


def test_a_hooks_method_can_be_offloaded(day: Bus) -> None:
    """With ``@options``; its other methods stay inline."""
    threads: dict[str, threading.Thread] = {}

    class Eater(Hook):
        @options(offload=True, lane="kitchen", barrier="dinner")
        def lunch(self, dish: int) -> None:
            threads["lunch"] = threading.current_thread()

        def dinner(self, dish: int) -> None:
            threads["dinner"] = threading.current_thread()

        @options(offload=True, barrier="dinner")
        def after_supper(self) -> None:
            """Declares a site of its own."""

    connect_hook(day, Eater(), None)
    with day.open_lanes():
        day.lunch.emit(None, dish=1)
        day.dinner.emit(None, dish=2)
        assert threads["lunch"] is not threads["dinner"] is threading.current_thread()


def record(dish: str) -> None:
    """Write down what was eaten, and by which process."""
    Path(dish).write_text(str(os.getpid()))


@pytest.mark.slow
def test_a_receiver_can_run_in_a_process_though_it_is_connected_by_a_decorator(day: Bus, tmp_path: Path) -> None:
    """A decorator is called before the function has its name, by which it is sent."""
    function = record
    try:
        del globals()["record"]  # as while a decorator is being called
        day.on("lunch", offload=True, worker="process")(function)
    finally:
        globals()["record"] = function
    with day.open_lanes():
        day.lunch.emit(None, dish=str(tmp_path / "dish"))
    assert int((tmp_path / "dish").read_text()) != os.getpid()


# Guards


@pytest.mark.parametrize(
    ("mutates", "waits"),
    [(None, True), (("model",), True), (("model", "gradients"), True), (("gradients",), False), ((), False)],
)
@pytest.mark.parametrize("how", ["emit", "emit_all"])
def test_a_receiver_that_may_write_waits_for_what_is_being_copied(
    day: Bus, mutates: tuple[str, ...] | None, waits: bool, how: str
) -> None:
    """One that says nothing may write to anything; gradients are never copied later."""
    order: list[str] = []

    def finish() -> None:
        order.append("copied")
        day.guards.remove(finish)

    day.lunch.connect(lambda: order.append("called"), mutates=mutates)
    day.guards.append(finish)
    getattr(day.lunch, how)(None, dish=1)
    assert order == (["copied", "called"] if waits else ["called"])


def test_an_offloaded_receiver_doesnt_wait_for_a_copy(day: Bus) -> None:
    """It has frozen arguments, through which nothing can be written."""
    day.lunch.connect(lambda dish: None, offload=True)
    day.guards.append(lambda: pytest.fail("waited"))
    with day.open_lanes():
        day.lunch.emit(None, dish=1)

"""Nothing piles up: neither by emissions, nor by jobs, nor by what comes and goes."""

from __future__ import annotations

import gc
import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
from tally import LONG, MakeRow, Row
from tiny import QUIET, options

from eventrunner.bus.bus import Bus
from eventrunner.lanes.lanes import BACKENDS
from eventrunner.runner import Runner

STRETCHES = 4
"""Into which the turns are divided: what leaks, leaks in each."""
MEMORY = 1 << 20
"""Bytes by which the process may grow, but for the stretch in which it grows most: Python's allocator takes a mebibyte
from the system at a time, and the C library as much as it likes.
"""
OBJECTS = 300
"""Objects by which it may grow over all: some stay for once only, such as the 256 empty sets that a site leaves alone.
Anything that is kept of each turn is kept thousands of times.
"""


class Sender:
    """Somebody who passes sites."""


@dataclass
class Held:
    """What a process holds at one moment."""

    objects: int
    kinds: Counter[str]
    memory: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> Held:
        """Count, once what is garbage is gone."""
        for _ in range(3):
            gc.collect()
        alive = [each for each in gc.get_objects() if not _is_tracer(each)]
        kinds = Counter(type(each).__qualname__ for each in alive)
        count = len(alive)
        del alive
        return cls(count, kinds, resident(), threading.active_count(), len(os.listdir("/proc/self/fd")))

    def more_than(self, before: Held, memory: list[int]) -> list[str]:
        """What there is more of than may be; *memory* is what it had between the stretches."""
        more = []
        if self.objects - before.objects > OBJECTS:
            kinds = (self.kinds - before.kinds).most_common(5)
            more.append(f"{self.objects - before.objects:,} objects more: {kinds}")
        grown = sorted(after - first for first, after in itertools.pairwise([before.memory, *memory, self.memory]))
        if sum(grown[:-1]) > MEMORY:
            more.append(f"{sum(grown):,} bytes more")
        for what in ("threads", "descriptors"):
            count = getattr(self, what) - getattr(before, what)
            more += [f"{count} {what} more"] if count > 0 else []
        return more


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(found: Row, turn: Callable[[int], Any], count: int, least: int = 4) -> None:
    """Take so many turns, after a fourth as many to get warm; what there is more of afterwards is a finding."""
    for number in range(max(count // 4, least)):
        turn(number)
    Held.now()  # counting has its own caches
    before, memory = Held.now(), list[int]()
    for number in range(count):
        turn(number)
        if number and number % (count // STRETCHES) == 0:
            gc.collect()
            memory.append(resident())
    found.tried += count
    found.found += Held.now().more_than(before, memory)


def _is_tracer(value: object) -> bool:
    """Whether it is what a measurement of coverage keeps of each thread that there ever was."""
    return type(value) is MethodType and type(value.__self__).__module__.startswith("coverage")


def busy_bus() -> tuple[Bus, Sender]:
    """A bus whose emissions meet all that an emission can meet; the fourth site is passed within the first."""
    bus, sender = Bus(()), Sender()
    for name in ("tick", "within", "failing"):
        bus.site(name, ("number", "data"))
    bus.site("open", None)
    nothing: list[Callable[..., None]] = [lambda number, data: None for _ in range(8)]
    bus.tick.connect(nothing[0])
    bus.tick.connect(nothing[1], sender, priority=10)
    bus.tick.connect(nothing[2], every=3)
    bus.tick.connect(nothing[3], start=5, when=lambda number: number % 2)
    bus.tick.connect(nothing[4], every="1ms")
    bus.tick.connect(nothing[5], once=True)
    bus.tick.connect(nothing[6], weak=True)
    bus.tick.connect(lambda number, data: bus.within.emit(sender, number=number, data=data))
    bus.within.connect(nothing[7])
    bus.tick.kept = nothing  # type: ignore[attr-defined]

    def fail(number: int) -> None:
        raise ValueError(number)

    bus.failing.connect(fail)
    return bus, sender


@pytest.mark.parametrize("count", [24_000, pytest.param(1_000_000, marks=LONG)])
def test_emissions_leave_nothing(count: int, row: MakeRow) -> None:
    """Of every form, with filters, nested, and now and then with one that fails; by senders that come and go, too."""
    bus, sender = busy_bus()
    emitters = bus.emitters(sender)

    def turn(number: int) -> None:
        data = [number]
        emitters.tick(sender, number=number, data=data)
        bus.tick.emit(None, number=number, data=data)
        if number % 16 == 0:
            bus.tick.emit(Sender(), number=number, data=data)
            bus.tick.send(sender, number=number, data=data)
            bus.failing.emit_all(sender, number=number, data=data)
            bus.open.emit(sender, **{f"key_{number % 5}": data})

    found = row("emissions", "kinds of things that pile up")
    soak(found, turn, count // 3)
    found.tried = count
    found.check()


@pytest.mark.parametrize(
    ("count", "backend"), [(1_200, "asyncio"), *(pytest.param(10_000, backend, marks=LONG) for backend in BACKENDS)]
)
def test_jobs_leave_nothing(count: int, backend: str, row: MakeRow) -> None:
    """While the lanes are open: plain functions and ``async def``, failing ones, and those that a full lane drops."""
    bus = Bus(())
    bus.site("tick", ("number", "data"))
    bus.site("tock")

    async def awaited(number: int, data: Any) -> None: ...

    def fail(data: Any) -> None:
        raise ValueError("boom")

    bus.tick.connect(lambda number, data: None, offload=True, max_pending=50)
    bus.tick.connect(lambda number, data: None, offload=True, lane="shared", max_pending=3, on_full="drop_oldest")
    bus.tick.connect(lambda data: None, offload=True, lane="shared", max_pending=3, on_full="coalesce")
    bus.tick.connect(awaited, max_pending=50, barrier="tock")
    bus.tick.connect(fail, offload=True, every=8, max_pending=50)
    with bus.open_lanes(backend=backend) as lanes:
        lanes.spans = lanes._loop.state.spans = type(lanes.spans)(maxlen=100)  # what it keeps by intent, soon full

        def turn(number: int) -> None:
            bus.tick.emit(None, number=number, data=[number])
            lanes.wait("shared")
            if number % 20 == 0:
                bus.tock.emit_all(None)
                lanes.failures.clear()
            if number % 500 == 499:
                bus.tock.emit_all(None)
                _settled(lanes)

        found = row("offloaded jobs", "kinds of things that pile up")
        soak(found, turn, count // 4)
        _settled(lanes)
        found.tried = count
        found.check()


def _settled(lanes: Any) -> None:
    for account in lanes.accounts():
        lanes.wait(account.lane)
    lanes.failures.clear()


@pytest.mark.parametrize(
    ("count", "backend"), [(24, "asyncio"), *(pytest.param(500, backend, marks=LONG) for backend in BACKENDS)]
)
def test_lanes_that_come_and_go_leave_nothing(count: int, backend: str, row: MakeRow) -> None:
    """Neither thread nor descriptor nor object, however the block is left."""
    bus, sender = Bus(()), Sender()
    bus.site("tick", ("data",))

    async def awaited(data: Any) -> None: ...

    bus.tick.connect(lambda data: None, offload=True, lane="a")
    bus.tick.connect(awaited)
    fails = {"now": False}

    def fail() -> None:
        if fails["now"]:
            raise ValueError("boom")

    bus.tick.connect(fail, offload=True)

    def turn(number: int) -> None:
        fails["now"] = number % 3 == 0
        try:
            with bus.open_lanes(sender if number % 2 else None, backend=backend):
                bus.tick.emit(sender, data=[number])
                if number % 5 == 0:
                    raise KeyError(number)
        except (ValueError, KeyError):
            pass

    found = row("openings of lanes", "kinds of things that pile up")
    soak(found, turn, count)
    found.check()


@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=LONG)])
def test_receivers_that_come_and_go_leave_nothing(count: int, row: MakeRow) -> None:
    """To anybody, and to senders that live or go too; weak or strong; offloaded with a barrier; within ``with``."""
    bus, lasting = Bus(()), Sender()
    bus.site("tick", ("data",))
    bus.site("tock")
    emitters = bus.emitters(lasting)
    kept: list[Any] = []

    def turn(number: int) -> None:
        def receiver(data: Any) -> None: ...

        how = number % 6
        if how != 3:
            kept.append(receiver)  # so that one identity is not used again and again
        if how == 0:
            bus.tick.connect(receiver, lasting)
            bus.tick.disconnect(receiver, lasting)
        elif how == 1:
            bus.tick.connect(receiver, Sender())
        elif how == 2:
            bus.tick.connect(receiver, f"sender {number}")
            bus.tick.disconnect(receiver)
        elif how == 3:
            bus.tick.connect(receiver, weak=True, every=2)
        elif how == 4:
            with bus.tick.connected_to(receiver, offload=True, barrier="tock"):
                bus.tick.emit(lasting, data=number)
        else:
            bus.tick.connect(receiver, priority=3)
            bus.emitters(Sender())
            bus.tick.disconnect(receiver)
        if number % 500 == 499:
            kept.clear()

    found = row("connections made and undone", "kinds of things that pile up")
    soak(found, turn, count, least=2000)
    kept.clear()
    left = {name: len(getattr(bus.tick, name)) for name in ("_by_sender", "_by_receiver", "receivers", "_weak_senders")}
    if max(left.values()) > 600 or len(bus.tick._table):
        found.found.append(f"left at the site: {left}, {bus.tick}")
    if emitters.tick is not None or emitters.tock is not None:
        found.found.append("there is an emission to nobody")
    found.check()


@pytest.mark.parametrize("count", [4, pytest.param(50, marks=LONG)])
def test_runners_on_one_bus_leave_nothing(count: int, row: MakeRow, tmp_path: Path) -> None:
    """With hooks, receivers of their own and jobs; once they are let go, the bus knows nothing of them."""
    bus = Bus()

    def turn(number: int) -> None:
        chosen = options(epochs=1, default_hooks=QUIET, work_dir=tmp_path / f"{number}", bus=bus, resume=True)
        runner = Runner(**chosen)
        runner.on("after_train_iter")(lambda outputs: None)
        runner.on("after_train_iter", offload=True, barrier="after_train")(lambda outputs: None)
        runner.train()

    found = row("runners on one bus", "kinds of things that pile up")
    soak(found, turn, count)
    found.check()

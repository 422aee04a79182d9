"""Many threads at one bus: receivers come and go amid emissions, and jobs come from everywhere."""

from __future__ import annotations

import gc
import itertools
import random
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tally import LONG, MakeRow, Row

from eventrunner.bus.bus import Bus
from eventrunner.bus.freeze import Changes

EMITTING = 6
"""How many threads put jobs in."""
LASTING = 6
"""How many receivers of a site are connected throughout."""


class Sender:
    """Somebody who passes sites."""


@dataclass
class Emission:
    """One emission: when it began and ended, and whom it called, in order."""

    form: str
    sender: int
    began: int
    ended: int = 0
    called: list[Life] = field(default_factory=list)


@dataclass(eq=False)
class Life:
    """One receiver: its rank among others, and when it was connected and disconnected."""

    name: str
    rank: tuple[int, int]
    sender: int | None
    connected: int = sys.maxsize
    leaves: int = sys.maxsize
    gone: int = sys.maxsize

    def __call__(self, emission: Emission) -> None:
        emission.called.append(self)

    def must_be_called(self, emission: Emission) -> bool:
        """Whether it was there from before the emission began until it had ended."""
        meant = self.sender in (None, emission.sender)
        return meant and self.connected < emission.began and emission.ended < self.leaves


class Traffic:
    """A bus, those who emit on it, and those who change it meanwhile; a stamp orders what they did."""

    def __init__(self, seed: int) -> None:
        self.seed, self.bus = seed, Bus(())
        self.site = self.bus.site("tick", ("emission",))
        self.barrier = self.bus.site("barrier")
        self.stamp: Callable[[], int] = itertools.count(1).__next__
        self.senders = [Sender() for _ in range(3)]
        self.emitters = [self.bus.emitters(sender) for sender in self.senders]
        self.lives: list[Life] = []
        self.emissions: list[Emission] = []
        self.over = threading.Event()
        self.errors: list[str] = []
        for number in range(LASTING):
            life = Life(f"lasting {number}", (number * 20, number), None)
            self.site.connect(life, priority=number * 20)
            life.connected = self.stamp()
            self.lives.append(life)
        self.ranks = itertools.count(LASTING)

    def emit(self, form: str, which: int) -> Emission:
        """One emission in one of the ways to make one."""
        sender, emission = self.senders[which], Emission(form, which, self.stamp())
        if form == "emitters":
            call = self.emitters[which].tick
            if call is not None:
                call(sender, emission=emission)
        else:
            {"emit": self.site.emit, "send": self.site.send, "emit_all": self.site.emit_all}[form](
                sender, emission=emission
            )
        emission.ended = self.stamp()
        return emission

    def emit_many(self, thread: int, count: int) -> None:
        chance = random.Random(f"{self.seed} emit {thread}")
        forms = ("emit", "emit", "emitters", "emitters", "send", "emit_all")
        for _ in range(count):
            self.emissions.append(self.emit(chance.choice(forms), chance.randrange(3)))

    def change(self, thread: int) -> None:
        """Connect and disconnect until those who emit are done."""
        chance = random.Random(f"{self.seed} change {thread}")
        while not self.over.is_set():
            priority = chance.randrange(101)
            which = chance.choice((None, 0, 1, 2))
            life = Life(f"passing {thread}", (priority, 0), which)
            sender = {} if which is None else {"sender": self.senders[which]}
            how = chance.randrange(8)
            if how < 6:
                self.strong(life, priority, sender, chance if how == 0 else None)
            else:
                self.weak(life, priority, sender, cycle=how == 7)
            self.lives.append(life)

    def strong(self, life: Life, priority: int, sender: dict[str, Sender], chance: random.Random | None) -> None:
        """Connect and disconnect; something else may change meanwhile."""
        self.site.connect(life, priority=priority, **sender)
        life.connected = self.stamp()
        if chance is not None:
            self.other(chance)
        life.leaves = self.stamp()
        self.site.disconnect(life, **sender)
        life.gone = self.stamp()

    def weak(self, life: Life, priority: int, sender: dict[str, Sender], cycle: bool) -> None:
        """Connect something that dies: when no emission calls it any more, or when garbage is next collected."""

        def call(emission: Emission) -> None:
            life(emission)

        if cycle:
            call.__dict__["call"] = call
        self.site.connect(call, priority=priority, weak=True, **sender)
        life.connected = self.stamp()
        life.leaves = self.stamp()

    def other(self, chance: random.Random) -> None:
        """What else changes plans: a barrier that comes and goes, a site, emitters, a muted moment elsewhere."""

        def beside() -> None:
            """Do nothing."""

        what = chance.randrange(4)
        if what == 0:
            with self.barrier.connected_to(beside, offload=True, barrier="tick"):
                self.barrier.emit()
        elif what == 1:
            self.bus.site(f"site_{chance.randrange(50)}", ("emission",))
        elif what == 2:
            self.bus.emitters(chance.choice(self.senders))
        else:
            self.bus.refresh()

    def run(self, count: int, emitting: int, changing: int) -> None:
        """Let the threads at it, and wait until all of them are done."""
        emit = [threading.Thread(target=self.guarded, args=(self.emit_many, n, count)) for n in range(emitting)]
        change = [threading.Thread(target=self.guarded, args=(self.change, n)) for n in range(changing)]
        for thread in (*change, *emit):
            thread.start()
        for thread in emit:
            thread.join()
        self.over.set()
        for thread in change:
            thread.join()

    def guarded(self, work: Callable[..., None], *args: int) -> None:
        try:
            work(*args)
        except BaseException as error:  # noqa: BLE001  # it is a finding
            self.errors.append(f"{work.__name__} {args}: {error!r}")
            self.over.set()

    def wrong(self) -> Iterator[str]:
        """What can't have been, by the stamps."""
        yield from self.errors
        for emission in self.emissions:
            names = [life.name for life in emission.called]
            if len(set(map(id, emission.called))) < len(names):
                yield f"{emission.form} called a receiver twice: {names}"
            priorities = [life.rank[0] for life in emission.called]
            lasting = [life.rank for life in emission.called if life.name.startswith("lasting")]
            if priorities != sorted(priorities) or lasting != sorted(lasting):
                yield f"{emission.form} called out of order: {names}"
            for life in emission.called:
                if life.gone < emission.began:
                    yield f"{emission.form} called one that was disconnected before it began: {life.name}"
                if life.sender not in (None, emission.sender):
                    yield f"{emission.form} called the receiver of another sender: {life.name}"
        yield from self.missed()

    def missed(self) -> Iterator[str]:
        """Receivers that an emission should have called."""
        emissions = sorted(self.emissions, key=lambda emission: emission.began)
        starts = [emission.began for emission in emissions]
        for life in self.lives:
            for emission in emissions[bisect_left(starts, life.connected) : bisect_left(starts, life.leaves)]:
                if life.must_be_called(emission) and life not in emission.called:
                    yield f"{emission.form} missed {life.name}, sender {life.sender}, connected before it began"

    def settled(self) -> Iterator[str]:
        """Whether every way to emit now reaches those who are left, and none once these are gone too."""
        gc.collect()
        left = [life.name for life in self.lives[:LASTING]]
        for form, which in itertools.product(("emit", "emitters", "send", "emit_all"), range(3)):
            got = [life.name for life in self.emit(form, which).called]
            if got != left:
                yield f"in the end {form} by sender {which} called {got}"
        for life in self.lives[:LASTING]:
            self.site.disconnect(life)
        if any(emitters.tick is not None for emitters in self.emitters) or len(self.site._table):
            yield f"in the end something is left: {self.site}"


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("count", [4_000, pytest.param(60_000, marks=LONG)])
def test_who_is_connected_throughout_is_called_once_by_each_emission(count: int, row: MakeRow, seed: int) -> None:
    """In order; who was disconnected before it began is not called by it, and in the end all agree on who is left."""
    found = row("emissions under change", "wrong")
    for part in range(max(1, count // 2000)):
        traffic = Traffic(seed + part)
        traffic.run(min(count, 2000), emitting=3, changing=3)
        found.tried += len(traffic.emissions)
        found.found += [f"seed {seed + part}: {text}" for text in (*traffic.wrong(), *traffic.settled())]
    found.check()


def come_and_go(bus: Bus, thread: int, count: int, seed: int, found: Row) -> None:
    """Connect, be called by one's own emission, disconnect, and not be called any more."""
    chance = random.Random(f"{seed} alone {thread}")
    mine = Sender()
    emitters = bus.emitters(mine)
    for _ in range(count):
        calls: list[Any] = []
        receiver = calls.append
        site = chance.choice((bus.one, bus.two))
        sender = chance.choice(({}, {"sender": mine}))
        for there in (1, 0):
            if there:
                site.connect(receiver, **sender)
            else:
                site.disconnect(receiver, **sender)
            calls.clear()
            call = getattr(emitters, site.name)
            site.emit(mine)
            if call is not None:
                call(mine)
            found.tried += 1
            if calls.count(mine) != 2 * there:
                found.found.append(f"thread {thread}: {len(calls)} of {2 * there} calls of {site.name}, {sender}")


@pytest.mark.parametrize("count", [500, pytest.param(30_000, marks=LONG)])
def test_a_connection_holds_once_connect_has_returned(count: int, row: MakeRow, seed: int) -> None:
    """Also where the last receiver of a site goes in one thread as the first one comes in another."""
    found, bus = row("connections made and undone beside others", "lost or left"), Bus(())
    bus.site("one"), bus.site("two")
    works = [
        threading.Thread(target=reported, args=(found, come_and_go, bus, number, count, seed, found))
        for number in range(4)
    ]
    for work in works:
        work.start()
    for work in works:
        work.join()
    for site in bus:
        if len(site._table) or site.receivers:
            found.found.append(f"left in the end: {site}")
    found.check()


def reported(found: Row, work: Callable[..., None], *args: Any) -> None:
    try:
        work(*args)
    except BaseException as error:  # noqa: BLE001  # it is a finding
        found.found.append(f"{work.__name__}: {error!r}")


@pytest.mark.parametrize("count", [1_000, pytest.param(20_000, marks=LONG)])
@pytest.mark.parametrize("max_pending", [1, 1000])
def test_jobs_from_many_threads_are_done_once_each_in_their_order(
    count: int, max_pending: int, row: MakeRow, seed: int
) -> None:
    """In a lane that two receivers share, and in one that is shared by nobody."""
    found = row("jobs from several threads", "lost, doubled or out of order")
    bus, done = Bus(()), {name: list[tuple[int, int]]() for name in ("first", "second", "alone")}
    site = bus.site("tick", ("thread", "number"))
    options = {"offload": True, "max_pending": max_pending}
    for name, lane in (("first", "shared"), ("second", "shared"), ("alone", "own")):
        site.connect(lambda thread, number, into=done[name]: into.append((thread, number)), lane=lane, **options)

    def emit(thread: int) -> None:
        for number in range(count):
            site.emit(None, thread=thread, number=number)

    with bus.open_lanes() as lanes:
        threads = [threading.Thread(target=reported, args=(found, emit, thread)) for thread in range(EMITTING)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        marks = lanes.mark("shared"), lanes.mark("own")
        if marks != (2 * EMITTING * count, EMITTING * count):
            found.found.append(f"{marks} jobs are taken to have been put in, seed {seed}")
    for name, got in done.items():
        found.tried += len(got)
        for thread in range(EMITTING):
            numbers = [number for who, number in got if who == thread]
            if numbers != list(range(count)):
                found.found.append(f"{name}, thread {thread}: {len(numbers)} of {count}, seed {seed}")
    found.check()


def test_a_change_that_fails_leaves_nothing_locked() -> None:
    """What garbage has left to be done is somebody's, and may raise: other threads connect all the same."""
    changes, done = Changes(), threading.Event()

    def fail() -> None:
        raise ValueError("cleanup")

    with pytest.raises(ValueError, match="cleanup"), changes:
        changes.leave(fail)

    def change() -> None:
        with changes:
            done.set()

    thread = threading.Thread(target=change)
    thread.start()
    thread.join(60)
    assert done.is_set()

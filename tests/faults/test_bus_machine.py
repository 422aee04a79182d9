"""A bus with lanes, driven at random and compared with a plain model after each step."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from model import SITES, BoomError, Conn, Model, Offload, Raised
from tally import LONG, MakeRow

import eventrunner.lanes.lanes
from eventrunner.bus.bus import ANY, Bus
from eventrunner.errors import LaneFullError, LaneTimeoutError
from eventrunner.lanes.lane import lane_here
from eventrunner.lanes.lanes import Lanes, Task

LANES = ("a", "b", "c")
SENDERS = ("x", "y")


class Sender:
    """Somebody who passes sites."""


class Plug:
    """A job that runs until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.go.wait(60)


def poll(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.0002)


class Receiver:
    """What is connected to the bus for a connection of the model, and does the same."""

    def __init__(self, machine: BusMachine, conn: Conn) -> None:
        self.machine, self.conn = machine, conn
        self.tries: dict[int, int] = {}

    def __call__(self, sender: Sender, n: int) -> None:
        machine, conn, lane = self.machine, self.conn, lane_here.get()
        (machine.inline if lane is None else machine.done.setdefault(lane.name, [])).append((conn.name, n))
        if lane is not None:
            self.attempt(n)
            return
        if conn.failing(n) or (conn.does == "raise" and n % 3 == 0):
            raise BoomError(conn.name, n)
        self.do(conn, sender, n)

    def attempt(self, n: int) -> None:
        """One try of a job; an emission may have put in two of one number, by two nested ones."""
        assert self.conn.offload is not None
        tried = self.tries.pop(n, 0)
        if tried < self.conn.failing(n):
            if tried < self.conn.offload.retries:
                self.tries[n] = tried + 1
            raise BoomError(self.conn.name, n)

    def do(self, conn: Conn, sender: Sender, n: int) -> None:
        """As in the model."""
        machine = self.machine
        if conn.does == "emit" and conn.site != SITES[-1]:
            machine.settle()
            machine.bus.find(SITES[SITES.index(conn.site) + 1], "").emit(sender, n=n)
        elif conn.does == "connect" and conn.name not in machine.did:
            machine.did.add(conn.name)
            machine.connect_real(conn.follower())
        elif conn.does == "disconnect":
            machine.bus.find(conn.site, "").disconnect(machine.newest[conn.site])


FILTERS = {
    "priority": st.sampled_from((50, 50, 30, 0, 100)),
    "every": st.sampled_from((1, 1, 1, 1, 2, 3)),
    "start": st.sampled_from((0, 0, 0, 0, 2)),
    "once": st.sampled_from((False, False, False, False, True)),
    "lets": st.sampled_from((True, True, True, True, True, False)),
}
offloads = st.builds(
    Offload,
    lane=st.sampled_from(LANES),
    max_pending=st.sampled_from((4, 3, 5, 2, 1)),
    on_full=st.sampled_from(("coalesce", "drop_oldest", "wait", "coalesce", "drop_oldest", "error")),
    on_error=st.sampled_from(("raise", "disable_after=2", "raise", "disable_after=2", "warn")),
    retries=st.integers(0, 2),
    barrier=st.sampled_from((None, None, None, None, *SITES)),
)
sites, senders = st.sampled_from(SITES), st.sampled_from(SENDERS)
whose = st.sampled_from((None, None, None, *SENDERS))
inline = {"does": st.sampled_from(("", "emit", "disconnect", "raise", "connect", "disconnect"))}
beside = {"fails": st.sampled_from((0, 0, 3, 1, 3)), "offload": offloads}
conns = st.one_of(
    *(st.fixed_dictionaries({"site": sites, "sender": whose, **FILTERS, **ways}) for ways in (inline, beside, beside))
)
forms = st.lists(st.sampled_from(("emit", "emit", "emitters", "emitters", "emit_all", "send")), min_size=3, max_size=6)


class BusMachine(RuleBasedStateMachine):
    """Each rule does the same to the model, which says what is legal, and to a bus."""

    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.model, self.bus = Model(), Bus(())
        for site in SITES:
            self.bus.site(site, ("n",))
        self.senders = {name: Sender() for name in SENDERS}
        self.emitters = {name: self.bus.emitters(sender) for name, sender in self.senders.items()}
        self.receivers: dict[str, Receiver] = {}
        self.options: dict[str, Conn] = {}
        self.newest: dict[str, Receiver] = {}
        self.inline: list[tuple[str, int]] = []
        self.done: dict[str, list[tuple[str, int]]] = {}
        self.did: set[str] = set()
        self.told: list[str] = []
        self.plugs: dict[str, Plug] = {}
        self.lanes: Lanes | None = None
        self.block: AbstractContextManager[Lanes] | None = None
        self.numbers = itertools.count(1)

    @initialize(opens=st.sampled_from((True, True, True, False)), conns=st.lists(conns, min_size=4, max_size=7))
    def begin(self, opens: bool, conns: list[dict[str, Any]]) -> None:
        if opens:
            self.open()
        for conn in conns:
            self.connect_new(conn)

    # Connections

    @rule(conn=conns)
    def connect_new(self, conn: dict[str, Any]) -> None:
        self.connect(Conn(f"r{next(self.numbers)}", **conn))

    @precondition(lambda self: self.receivers)
    @rule(which=st.integers(0, 99), sender=whose, conn=conns)
    def connect_again(self, which: int, sender: str | None, conn: dict[str, Any]) -> None:
        """The same receiver, with other options or to another sender."""
        old = self.options[list(self.receivers)[which % len(self.receivers)]]
        others = {name: conn[name] for name in FILTERS}
        self.connect(Conn(old.name, old.site, sender, does=old.does, fails=old.fails, offload=old.offload, **others))

    def connect(self, conn: Conn) -> None:
        self.model.connect(conn)
        self.connect_real(conn)

    def connect_real(self, conn: Conn) -> None:
        name, lane = conn.name, conn.offload
        self.options[name] = conn
        receiver = self.receivers.setdefault(name, Receiver(self, conn))
        self.newest[conn.site] = receiver
        ways: dict[str, Any] = {}
        if lane is not None:
            ways = {key: value for key, value in vars(lane).items() if value is not None} | {"offload": True}

        def when() -> bool:
            if lane is not None:
                self.settle(lane.lane)
            return conn.lets

        self.bus.find(conn.site, "").connect(
            receiver,
            ANY if conn.sender is None else self.senders[conn.sender],
            priority=conn.priority,
            every=conn.every,
            start=conn.start,
            once=conn.once,
            when=when,
            label=name,
            **ways,
        )

    @precondition(lambda self: self.receivers)
    @rule(which=st.integers(0, 99), sender=whose)
    def disconnect(self, which: int, sender: str | None) -> None:
        name = list(self.receivers)[which % len(self.receivers)]
        self.model.disconnect(name, sender)
        site = self.bus.find(self.options[name].site, "")
        site.disconnect(self.receivers[name], ANY if sender is None else self.senders[sender])

    # Emissions

    @rule(site=sites, sender=senders, forms=forms)
    def emit(self, site: str, sender: str, forms: list[str]) -> None:
        for form in forms:
            self.emit_once(site, sender, form)

    @precondition(lambda self: self.lanes is not None)
    @rule(site=sites, sender=senders, form=st.sampled_from(("emit", "emitters", "emit_all")), count=st.integers(3, 7))
    def emit_into_plugged_lanes(self, site: str, sender: str, form: str, count: int) -> None:
        """Where jobs wait, policies bite."""
        for lane in LANES:
            self.plug(lane)
        self.emit(site, sender, [form] * count)

    @rule(site=sites, sender=senders, forms=forms)
    def emit_muted(self, site: str, sender: str, forms: list[str]) -> None:
        """Nobody is called, but barriers hold."""
        self.model.muted = {site}
        with self.bus.find(site, "").muted():
            self.emit(site, sender, forms)
        self.model.muted = set()

    def emit_once(self, site: str, sender: str, form: str) -> None:
        n = next(self.numbers)

        def real() -> list[BaseException] | None:
            if form == "emitters":
                call = getattr(self.emitters[sender], site)
                return call(self.senders[sender], n=n) if call else None
            found = getattr(self.bus.find(site, ""), form)(self.senders[sender], n=n)
            return found if form == "emit_all" else None

        self.act(lambda: self.model.emit(form, site, sender, n), real)

    def act(self, expect: Callable[[], list[Raised]], real: Callable[[], list[BaseException] | None]) -> None:
        """Do the same to the model and the bus, unplug what is waited for, and compare what was raised."""
        self.settle()
        self.model.released.clear()
        expected, got = expect(), list[BaseException]()

        def work() -> None:
            try:
                got.extend(real() or ())
            except BaseException as error:  # noqa: BLE001  # compared below
                got.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        for lane in self.model.released:
            self.unplug_for_who_waits(lane)
        thread.join(10)
        assert not thread.is_alive(), f"hangs, though nothing is to be waited for but {self.model.released}"
        assert len(got) == len(expected), f"raised {got!r}, not {expected}"
        for error, should in zip(got, expected, strict=True):
            self.compare(error, should)

    def compare(self, error: BaseException, should: Raised) -> None:
        text = "; ".join([repr(error), *getattr(error, "__notes__", [])])
        if should.kind == "full":
            assert isinstance(error, LaneFullError), text
            assert f"can't take a job of receiver {should.key[0]} (" in str(error), text
            return
        assert isinstance(error, BoomError), f"{text}, not {should}"
        if should.kind == "boom":
            assert error.key == should.key, f"{text}, not {should}"
        else:
            assert self.model.surface(error.key), f"{text} isn't the oldest failure of a lane"
            assert ", in lane '" in text, text
        assert text.count(f"raised by receiver {error.key[0]} (") == 1, text

    # Lanes

    @precondition(lambda self: self.lanes is None)
    @rule()
    def open(self) -> None:
        self.model.open()
        self.done.clear()
        self.lanes = Lanes(warn=lambda text, error: self.told.append(text))
        self.block = self.bus.open_lanes(lanes=self.lanes)
        self.block.__enter__()

    @precondition(lambda self: self.lanes is not None)
    @rule(lane=st.sampled_from(LANES))
    def plug(self, lane: str) -> None:
        assert self.lanes is not None
        if lane in self.plugs:
            return
        self.settle()
        self.model.lane(lane).plugged = True
        plug = self.plugs[lane] = Plug()
        self.lanes.submit(Task(plug, lane, name="plug", max_pending=1000))
        assert plug.begun.wait(20)

    @precondition(lambda self: self.plugs)
    @rule(which=st.integers(0, 1))
    def unplug(self, which: int) -> None:
        lane = list(self.plugs)[which % len(self.plugs)]
        self.model.release(lane)
        self.plugs.pop(lane).go.set()

    @precondition(lambda self: self.lanes is not None)
    @rule(waits=st.booleans())
    def check(self, waits: bool) -> None:
        assert self.lanes is not None
        self.act(
            lambda: raised(self.model.flush if waits else self.model.check),
            self.lanes.flush if waits else self.lanes.check,
        )

    @precondition(lambda self: self.lanes is not None)
    @rule(how=st.sampled_from(("normally", "by an exception", "giving up")), again=st.integers(0, 3))
    def close(self, how: str, again: int) -> None:
        self.close_lanes(how)
        if again:
            self.open()

    def close_lanes(self, how: str) -> None:
        assert self.lanes is not None
        lanes, plugs, error = self.lanes, dict(self.plugs), KeyError("mine") if how == "by an exception" else None
        if how == "giving up":
            lanes.deadline.seconds = 0.01
        told: list[str] = []

        def expect() -> list[Raised]:
            told.extend(self.model.close(gives_up=how == "giving up"))
            return [Raised("any")] if told or error else []

        with contextlib.ExitStack() as stack:
            if how == "giving up":
                stack.callback(self.plugs.clear)
                self.compare = lambda error, should: self.compare_last(error, told, None)  # type: ignore[method-assign]
            else:
                self.compare = lambda got, should: self.compare_last(got, told, error)  # type: ignore[method-assign]
            self.act(expect, lambda: self.leave(error))
        del self.compare
        for plug in plugs.values():
            plug.go.set()
        loop = lanes._loop.state.loop
        if loop is not None:
            loop.join(20)
            assert not loop.is_alive(), "a thread is left"
        self.compare_accounts(lanes)
        self.lanes = self.block = None

    def leave(self, error: BaseException | None) -> None:
        assert self.block is not None
        if error is None:
            self.block.__exit__(None, None, None)
        elif not self.block.__exit__(type(error), error, None):
            raise error

    @staticmethod
    def compare_last(got: BaseException, told: list[str], mine: BaseException | None) -> None:
        """Each failure that nobody was told of yet is told in the end, once, and so is what was given up."""
        text = "\n".join([str(got), *getattr(got, "__notes__", [])])
        if mine is not None:
            assert got is mine, text
        for each in told:
            assert text.count(each + "\n") + text.endswith(each) == 1 or (each in text and "unfinished" in each), (
                f"{each!r} isn't told once in {text!r}"
            )
        if not any("unfinished" in each for each in told):
            assert "unfinished" not in text, text
            assert not isinstance(got, LaneTimeoutError), text

    def compare_accounts(self, lanes: Lanes) -> None:
        """What became of each job is in the accounts."""
        for name, lane in self.model.lanes.items():
            mine = [account for account in lanes.accounts() if account.lane == name and account.name != "plug"]
            got = tuple(sum(getattr(each, what) for each in mine) for what in ("calls", "dropped", "coalesced"))
            assert got == (lane.calls, lane.dropped, lane.coalesced), f"lane {name}: calls, dropped, coalesced {got}"

    def settle(self, lane: str | None = None) -> None:
        """Wait for the lanes that aren't plugged, whose jobs the model has done at once."""
        if self.lanes is not None:
            for name in LANES:
                if name not in self.plugs and lane in (None, name):
                    self.lanes.wait(name)

    def unplug_for_who_waits(self, lane: str) -> None:
        """Somebody must wait for that lane; unplug it."""
        assert self.lanes is not None
        found = self.lanes._lanes[lane]
        poll(lambda: found.waiters, f"nobody waits for lane {lane!r}, which is plugged")
        self.plugs.pop(lane).go.set()

    @invariant()
    def is_as_the_model_says(self) -> None:
        type(self).steps += 1
        self.settle()
        assert self.inline == self.model.inline
        for name, lane in self.model.lanes.items():
            if self.lanes is not None:
                assert self.done.get(name, []) == lane.done, f"lane {name}"
        told = [tuple(text.split("boom ")[1].split()) for text in self.told]
        assert sorted(told) == sorted((name, str(n)) for name, n in self.model.told)

    def teardown(self) -> None:
        for plug in self.plugs.values():
            plug.go.set()
        if self.block is not None:
            with contextlib.suppress(Exception):
                self.block.__exit__(None, None, None)


def raised(step: Callable[[], None]) -> list[Raised]:
    try:
        step()
    except Raised as error:
        return [error]
    return []


@pytest.fixture(autouse=True)
def _short_grace() -> Iterator[None]:
    """A job that is given up here never ends by being cancelled, so there is nothing to be waited for."""
    before, eventrunner.lanes.lanes._GRACE = eventrunner.lanes.lanes._GRACE, 0.01
    yield
    eventrunner.lanes.lanes._GRACE = before


@pytest.mark.parametrize(("examples", "steps"), [(100, 40), pytest.param(2000, 60, marks=LONG)])
def test_a_bus_with_lanes_does_what_the_model_says(examples: int, steps: int, row: MakeRow, seed: int) -> None:
    """Orders of calls, drops, waits, failures and what is told at the end, whatever is done to it."""
    found = row("steps of the state machine", "illegal orders")
    machine = seeded(seed)(type("Machine", (BusMachine,), {"steps": 0}))
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        phases=[Phase.generate],  # shrinking waits for what hangs, again and again; a case has few steps as it is
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(machine, settings=chosen)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
        found.found.append("\n".join([str(error), *getattr(error, "__notes__", [])]))
    found.tried += machine.steps
    found.check()

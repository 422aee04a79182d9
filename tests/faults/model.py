"""A plain model of a bus with lanes: which calls are legal, in which order, and what is raised where.

It knows nothing of threads. A lane is either free, and then a job is done as soon as it is put in, or plugged by a job
that runs until it is let go, and then jobs wait. Whoever would wait for a plugged lane has it unplugged, and that is
noted in ``released``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["SITES", "BoomError", "Conn", "Lane", "Model", "Offload", "Raised"]

SITES = ("first", "then")


class BoomError(Exception):
    """What receivers raise."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"boom {name} {number}")
        self.key = name, number


class Raised(Exception):  # noqa: N818  # it stands for an error
    """In the model: something is raised here: ``boom``, ``surfaced`` (a failure of some lane) or ``full``."""

    def __init__(self, kind: str, name: str = "", number: int = 0) -> None:
        super().__init__(kind, name, number)
        self.kind, self.key = kind, (name, number)


@dataclass(frozen=True)
class Offload:
    """The options of an offloaded receiver."""

    lane: str
    max_pending: int
    on_full: str
    on_error: str
    retries: int
    barrier: str | None


@dataclass(eq=False)
class Conn:
    """One: what an inline receiver ``does`` besides, and how many tries of most jobs an offloaded one fails."""

    name: str
    site: str
    sender: str | None
    priority: int
    every: int = 1
    start: int = 0
    once: bool = False
    lets: bool = True
    does: str = ""
    fails: int = 0
    offload: Offload | None = None
    order: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    done: set[str] = field(default_factory=set)

    def failing(self, number: int) -> int:
        """How many tries of that job fail."""
        return self.fails if number % 4 else 0

    def follower(self) -> Conn:
        """What a receiver that connects one connects."""
        return Conn(f"{self.name}+", self.site, None, 50)

    def passes(self, sender: str) -> bool:
        """The filters, as documented."""
        if sender in self.done:
            return False
        self.seen[sender] += 1
        ahead = self.seen[sender] - self.start
        if ahead < 0 or ahead % self.every or not self.lets:
            return False
        if self.once:
            self.done.add(sender)
        return True


@dataclass(eq=False)
class Lane:
    """A lane: what waits in it, what was done, and what became of the rest."""

    plugged: bool = False
    queue: list[tuple[Conn, int]] = field(default_factory=list)
    done: list[tuple[str, int]] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)
    calls: int = 0
    dropped: int = 0
    coalesced: int = 0


class Model:
    """The bus, its connections, and its lanes while they are open."""

    def __init__(self) -> None:
        self.conns: dict[tuple[str, str | None], Conn] = {}
        self.newest: dict[str, str] = {}
        self.orders = 0
        self.muted: set[str] = set()
        self.inline: list[tuple[str, int]] = []
        self.did: set[str] = set()
        self.told: list[tuple[str, int]] = []
        self.released: list[str] = []
        self.open()
        self.is_open = False

    # Connections

    def connect(self, conn: Conn) -> None:
        """Again to the same sender: the options are new, the place stays."""
        old = self.conns.get((conn.name, conn.sender))
        self.orders += 1
        conn.order = self.orders if old is None else old.order
        self.conns[conn.name, conn.sender] = conn
        self.newest[conn.site] = conn.name

    def disconnect(self, name: str, sender: str | None) -> None:
        """From one sender, or from all."""
        for key in [key for key in self.conns if key[0] == name and sender in (None, key[1])]:
            del self.conns[key]

    def reached(self, site: str, sender: str) -> list[Conn]:
        """Whom an emission calls: the connection to a sender goes before the one to anybody."""
        found = {name: conn for (name, to), conn in self.conns.items() if to is None and conn.site == site}
        found |= {name: conn for (name, to), conn in self.conns.items() if to == sender and conn.site == site}
        return sorted(found.values(), key=lambda conn: (conn.priority, conn.order))

    def barriers(self, site: str, sender: str) -> list[str]:
        """The lanes that are waited for at a site."""
        reached = [conn.offload for each in SITES for conn in self.reached(each, sender) if conn.offload]
        return list(dict.fromkeys(offload.lane for offload in reached if offload.barrier == site))

    # Emissions

    def emit(self, form: str, site: str, sender: str, number: int) -> list[Raised]:
        """What was raised; all of it by ``emit_all``, else the first, with which it ended."""
        calls = [] if site in self.muted else self.reached(site, sender)
        errors: list[Raised] = []
        steps = [(self.pass_barrier, (lane,)) for lane in self.barriers(site, sender)]
        steps += [(self.call, (conn, sender, number, form)) for conn in calls]
        for step, args in steps:
            try:
                step(*args)
            except Raised as error:
                errors.append(error)
                if form != "emit_all":
                    break
        return errors

    def pass_barrier(self, lane: str) -> None:
        """Wait, then look for failures; those of every lane surface there."""
        if self.is_open:
            self.wait(lane)
            self.check()

    def call(self, conn: Conn, sender: str, number: int, form: str) -> None:
        """One receiver's turn."""
        if not conn.passes(sender):
            return
        if conn.offload is not None and self.is_open and form != "send":
            self.submit(conn, conn.offload, number)
            return
        self.inline.append((conn.name, number))
        if conn.failing(number) or (conn.does == "raise" and number % 3 == 0):
            raise Raised("boom", conn.name, number)
        self.do(conn, sender, number)

    def do(self, conn: Conn, sender: str, number: int) -> None:
        """What a receiver does amid an emission, of which only a nested one has an effect before the next."""
        if conn.does == "emit" and conn.site != SITES[-1]:
            errors = self.emit("emit", SITES[SITES.index(conn.site) + 1], sender, number)
            if errors:
                raise errors[0]
        elif conn.does == "connect" and conn.name not in self.did:
            self.did.add(conn.name)
            self.connect(conn.follower())
        elif conn.does == "disconnect":
            self.disconnect(self.newest[conn.site], None)

    # Lanes

    def open(self) -> None:
        """New lanes, in which nothing was disabled and nothing has failed."""
        self.is_open = True
        self.lanes: dict[str, Lane] = {}
        self.in_a_row: Counter[Conn] = Counter()
        self.disabled: set[Conn] = set()

    def lane(self, name: str) -> Lane:
        return self.lanes.setdefault(name, Lane())

    def submit(self, conn: Conn, offload: Offload, number: int) -> None:
        """Put a job in, as the policy says where the lane is full."""
        lane, job = self.lane(offload.lane), (conn, number)
        if conn in self.disabled:
            lane.dropped += 1
        elif not lane.plugged:
            self.execute(lane, conn, offload, number)
        elif 1 + len(lane.queue) < offload.max_pending:
            lane.queue.append(job)
        elif offload.on_full == "error":
            raise Raised("full", conn.name)
        elif offload.on_full == "drop_oldest" and lane.queue:
            lane.queue = [*lane.queue[1:], job]
            lane.dropped += 1
        elif offload.on_full == "coalesce" and any(each is conn for each, _ in lane.queue):
            newest = max(index for index, (each, _) in enumerate(lane.queue) if each is conn)
            lane.queue = [*lane.queue[:newest], *lane.queue[newest + 1 :], job]
            lane.coalesced += 1
        else:
            self.wait(offload.lane)
            self.execute(lane, conn, offload, number)

    def execute(self, lane: Lane, conn: Conn, offload: Offload, number: int) -> None:
        """A job's turn in its lane."""
        if conn in self.disabled:
            lane.dropped += 1
            return
        lane.calls += 1
        lane.done += [(conn.name, number)] * (1 + min(conn.failing(number), offload.retries))
        if conn.failing(number) <= offload.retries:
            self.in_a_row[conn] = 0
            return
        self.in_a_row[conn] += 1
        if offload.on_error == "raise":
            lane.failures.append((conn.name, number))
            return
        self.told.append((conn.name, number))
        if offload.on_error == f"disable_after={self.in_a_row[conn]}":
            self.disabled.add(conn)

    def wait(self, name: str) -> None:
        """Have everything in a lane done, if need be by unplugging it."""
        lane = self.lanes.get(name)
        if lane is not None and lane.plugged:
            self.released.append(name)
            self.release(name)

    def release(self, name: str) -> None:
        """Unplug a lane: what waits in it is done, in order."""
        lane = self.lanes[name]
        lane.plugged = False
        queue, lane.queue = lane.queue, []
        for conn, number in queue:
            assert conn.offload is not None
            self.execute(lane, conn, conn.offload, number)

    def check(self) -> None:
        """A failure that wasn't raised yet is raised; which lane's is not said, only that its oldest is."""
        waiting = sum(len(lane.failures) for lane in self.lanes.values())
        if waiting > self.surfacing:
            self.surfacing += 1
            raise Raised("surfaced")

    surfacing = 0
    """How many failures were raised in the operation under way, and not yet told which."""

    def surface(self, key: tuple[str, int]) -> bool:
        """Whether that failure may be the one that was raised; takes it out."""
        for lane in self.lanes.values():
            if lane.failures[:1] == [key]:
                del lane.failures[0]
                self.surfacing -= 1
                return True
        return False

    def flush(self) -> None:
        """Wait for every lane, in the order of their first jobs, then check."""
        for name in list(self.lanes):
            self.wait(name)
        self.check()

    def close(self, gives_up: bool) -> list[str]:
        """Drain, or give up what waits; what must be told then."""
        told = []
        for name, lane in self.lanes.items():
            if lane.plugged and gives_up:
                count = 1 + len(lane.queue)
                told.append(f"{count} unfinished {'job' if count == 1 else 'jobs'} in lane {name!r} (running: receiver")
                lane.dropped += len(lane.queue)
                lane.plugged, lane.queue = False, []
            self.wait(name)
        told += [f"boom {key[0]} {key[1]}" for lane in self.lanes.values() for key in lane.failures]
        self.is_open = False
        return told

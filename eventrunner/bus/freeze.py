"""What the sites of a bus share, and how an emission reaches a receiver that runs in the background.

The sender's thread freezes what the receiver named and puts it into a lane; where no lanes are open for the sender,
the receiver is called at once, with arguments that are frozen all the same.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from eventrunner.bus.connection import Connection, Table
from eventrunner.bus.scope import Place
from eventrunner.bus.signature import Receiver
from eventrunner.errors import OptionError, UnknownSiteError, did_you_mean
from eventrunner.lanes.importable import line_run_again
from eventrunner.lanes.lanes import Lanes, run_now

__all__ = ["Changes", "Context", "freeze"]

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_SHARED = (BaseException, PurePath, FunctionType, BuiltinFunctionType, MethodType, ModuleType, type)


class Changes:
    """Has the connections of a bus changed by one thread at a time, within a ``with`` block; blocks nest.

    Emissions take no part in this: they read what is only ever replaced whole.

    A collection of garbage drops weak connections at almost any moment, in any thread, and during a change of that
    very thread. It can't wait for its turn there, so what it has to do is left to the thread that is at it, or next.
    """

    def __init__(self) -> None:
        self._lock, self._depth = threading.RLock(), 0
        self._left: deque[Callable[[], object]] = deque()

    def __reduce__(self) -> tuple[type[Changes], tuple[()]]:
        return Changes, ()  # a copy of a bus has its own

    def __enter__(self) -> None:
        if self._left:
            self._look_after()
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        try:
            if self._left:
                self._catch_up()
        finally:
            self._depth -= 1
            self._lock.release()
        if self._left:
            self._look_after()

    def leave(self, change: Callable[[], object]) -> None:
        """Have *change* made at once, or soon by another."""
        self._left.append(change)
        self._look_after()

    def _look_after(self) -> None:
        while self._left and self._lock.acquire(blocking=False):
            try:
                if self._depth:  # a change of this thread is under way, at the end of which it is done
                    return
                self._depth = 1
                try:
                    self._catch_up()
                finally:
                    self._depth = 0
            finally:
                self._lock.release()

    def _catch_up(self) -> None:
        while self._left and self._depth == 1:
            self._left.popleft()()


class Context:
    """What the sites of one bus share: who waits for which lane, which lanes are open, and what must not be torn.

    Attributes:
        guards: Called before an inline receiver that may write to what is being copied; they wait for the copy.
        changes: Within it, connections are changed.
        names: What the sites' payloads have.
        has_barriers: Whether any lane is, or was, waited for at some site.
        place: Which of how many ranks this process is, as a sender has said; None where none has.
    """

    def __init__(self, anybody: Hashable, identity: Callable[[Any], Hashable]) -> None:
        self.guards: list[Callable[[], Any]] = []
        self.changes = Changes()
        self._anybody, self._identity = anybody, identity
        self._sites: dict[str, tuple[Table, Callable[[], None]]] = {}
        self.names: frozenset[str] = frozenset()
        self._lanes: dict[Hashable, Lanes] = {}
        self.has_barriers = False
        self.place: Place | None = None

    def draft(self) -> Context:
        """One that knows the same sites, and of which they know nothing."""
        draft = Context(self._anybody, self._identity)
        draft._sites, draft.names = dict(self._sites), self.names
        return draft

    def add(self, site: str, table: Table, changed: Callable[[], None], payload: Iterable[str]) -> None:
        """Take in a site: its connections, what is to be called when the waiting at it changes, and its payload."""
        self._sites[site] = table, changed
        self.names |= frozenset(payload)

    def here(self, table: Table, sender_id: Hashable) -> list[Connection]:
        """Return the connections that *sender* reaches on this rank, in the order in which they run."""
        reached = table.reached_by(sender_id)
        if not table.has_scoped:
            return reached
        place = self.place or Place.of_environment()
        return [connection for connection in reached if place.is_in(connection.options.ranks)]

    def guard_of(self, connection: Connection) -> Callable[[Receiver], Receiver] | None:
        """Return what keeps a receiver that only some ranks call from waiting for the others; None where all do."""
        place = self.place
        if connection.options.ranks == "all" or place is None or place.world == 1 or place.guard is None:
            return None
        who = f"{connection.name} in {connection.location}, called by ranks={connection.options.ranks!r} alone,"
        return functools.partial(place.guard, who)

    def barrier_changed(self, site: str) -> None:
        """Take note that a lane is now waited for at *site*, or no longer."""
        self.has_barriers = True
        if site in self._sites:
            self._sites[site][1]()

    def check_barrier(self, connection: Connection) -> None:
        """Refuse a barrier at a site that there isn't."""
        barrier = connection.barrier
        if barrier and barrier not in self._sites:
            raise UnknownSiteError(
                f"connecting {connection.name} in {connection.location} with barrier={barrier!r}: no such site"
                f"{did_you_mean(barrier, self._sites) or ' is declared.'}"
            )

    @staticmethod
    def check_workers(connections: Iterable[Connection]) -> None:
        """Refuse what wants a worker process, unless what is under way is left out where that runs the script."""
        wanting = [each for each in connections if each.task is not None and each.task.worker == "process"]
        again = line_run_again() if wanting else ""
        if again:
            raise OptionError(
                f"{wanting[0].name} in {wanting[0].location} has worker='process', which runs the script once more to "
                f"find functions in it, and would come to {again} too; put that under if __name__ == '__main__':."
            )

    def barriers_at(self, site: str, sender_id: Hashable) -> list[str]:
        """Return the lanes that are to be done before *sender* emits *site*."""
        if not self.has_barriers:  # it is asked at each connection
            return []
        sites = tuple(self._sites.values())
        reached = (connection for table, _ in sites for connection in self.here(table, sender_id))
        return list(dict.fromkeys(c.task.lane for c in reached if c.task is not None and c.barrier == site))

    def wait(self, sender: Any, lane: str, site: str) -> None:
        """Hold the sender at *site* until *lane* has done what is in it now; raises what failed.

        Raises:
            LaneTimeoutError: a job of it seems to hang, see :class:`Lanes`.
        """
        lanes = self.lanes_of(sender)
        if lanes is not None:
            lanes.wait(lane, label=site)
            lanes.check()

    def wait_for_copies(self) -> None:
        """Wait until nothing is being copied any more."""
        for guard in tuple(self.guards):
            guard()

    @contextmanager
    def opened(self, sender: Any, lanes: Lanes) -> Iterator[Lanes]:
        """Have *sender*'s offloaded receivers run in *lanes* within the block, which drains them when it is left."""
        key = self._anybody if sender is None else self._identity(sender)
        if key in self._lanes:
            raise OptionError("opening lanes for a sender that has some open; one set of lanes serves it at a time.")
        self.check_workers(each for table, _ in self._sites.values() for each in table.reached_by(key))
        with lanes:
            self._lanes[key] = lanes
            try:
                yield lanes
            finally:
                del self._lanes[key]

    def lanes_of(self, sender: Any) -> Lanes | None:
        """Return the open lanes that serve *sender*, its own or anybody's."""
        if not self._lanes:
            return None
        return self._lanes.get(self._identity(sender)) or self._lanes.get(self._anybody)

    def offloader(self, connection: Connection) -> Callable[..., None]:
        """Return what a plan calls instead of an offloaded receiver: with the sender, then as it would call that."""
        task = connection.task
        assert task is not None  # the plan asks for offloaded ones only
        guard = self.guard_of(connection)
        if guard is not None and task.worker != "process":  # another process is no rank
            task = connection.guarded_task(guard)

        def offload(sender: Any, /, *args: Any, **kwargs: Any) -> None:
            frozen = [_view(sender) if each is sender else freeze(each) for each in args]
            named = {key: _view(sender) if each is sender else freeze(each) for key, each in kwargs.items()}
            lanes = self.lanes_of(sender)
            if lanes is None:
                run_now(task, frozen, named)
            else:
                lanes.submit(task, frozen, named, _Origin(sender))

        return offload


class _Origin:
    """How far the sender was when it put a job into a lane; made into words only if the job fails."""

    __slots__ = ("epoch", "iter")

    def __init__(self, sender: Any) -> None:
        self.epoch, self.iter = getattr(sender, "epoch", None), getattr(sender, "iter", None)

    def __str__(self) -> str:
        counts = (("epoch", self.epoch), ("iter", self.iter))
        return ", ".join(f"{name} {count}" for name, count in counts if isinstance(count, int))


def _view(sender: Any) -> Any:
    make = getattr(sender, "offload_view", None)
    return sender if make is None else make()


def freeze(value: Any) -> Any:
    """Return a copy of *value* that its owner can no longer change.

    Tensors are detached and copied to the host, which waits for the device that computes them; containers are copied
    with what is in them. Numbers, strings, paths, functions, classes and exceptions are handed over as they are;
    anything else is copied as ``copy.deepcopy`` does.
    """
    kind = type(value)
    if kind in _ATOMS or isinstance(value, _SHARED):
        return value
    if kind is dict:
        return {key: freeze(each) for key, each in value.items()}
    if kind in (list, tuple, set, frozenset):
        return kind(map(freeze, value))
    if hasattr(value, "detach"):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple):
        return kind(*map(freeze, value)) if hasattr(value, "_fields") else kind(map(freeze, value))
    if isinstance(value, MutableMapping):
        frozen = copy.copy(value)
        for key, each in value.items():
            frozen[key] = freeze(each)
        return frozen
    return copy.deepcopy(value)

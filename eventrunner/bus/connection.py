"""Connections: a receiver at a site, with its options, and the table of those that a site has."""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eventrunner.bus.options import Filter, LaneOptions, Options
from eventrunner.bus.signature import Receiver, Wants, is_async, label, read_wants, where
from eventrunner.bus.sites import CATALOGUE, Unit
from eventrunner.errors import HookError, OptionError, SignatureError, listed
from eventrunner.lanes.lanes import Task
from eventrunner.lanes.task import inert_kind

__all__ = ["Connection", "Key", "Table", "annotate", "check_result", "check_wanted", "connection_of"]

Key = tuple[Hashable, Hashable]
"""The identities of a receiver and of a sender."""

_NOTHING = Wants(positional=(), rest=False)
_CHANGED = {
    spec.name: spec.payload[-1] for spec in CATALOGUE if spec.payload[-1:] in (("data_batch",), ("checkpoint",))
}
"""What the receivers of some sites may change, in place."""


@dataclass(slots=True)
class Connection:
    """One receiver at one site for one sender (or any), as it was connected.

    ``target`` is the receiver, or a reference to it where ``weak``. ``payload`` is None where the site leaves it open.
    ``awaits`` says that the receiver is an ``async def``. ``task`` is what an emission puts into a lane instead of
    calling the receiver; None where that runs inline. ``shortcut`` is what the receiver merely passes its arguments on
    to: a function, the payload that it takes behind the sender, and a word that it takes last. ``sender`` is held only
    where it can't be referred to weakly, so that no other object gets its id. ``elsewhere`` has the names that other
    sites' payloads have: no parameter of such a name takes the sender.
    """

    target: Receiver | weakref.ref[Receiver]
    site: str
    unit: Unit
    payload: tuple[str, ...] | None
    options: Options
    filter: Filter | None
    name: str
    location: str
    awaits: bool
    task: Task | None = None
    shortcut: tuple[Receiver, tuple[str, ...], str] | None = None
    order: int = 0
    weak: bool = False
    sender: Any = None
    elsewhere: Collection[str] = ()
    _readings: dict[tuple[str, ...], tuple[Wants, Wants]] = field(default_factory=dict)
    _guarded: Task | None = None

    @property
    def receiver(self) -> Receiver | None:
        """The receiver, or None where it was held weakly and is gone."""
        target: Any = self.target
        found: Receiver | None = target() if self.weak else target
        return found

    @property
    def is_conditional(self) -> bool:
        """Whether an emission that reaches it may leave it out."""
        return self.weak or self.filter is not None or self.options.when is not None

    @property
    def barrier(self) -> str:
        """The site that isn't emitted until the lane is done; empty where there is none."""
        return self.options.lane.barrier if self.task is not None else ""

    def read(self, given: Collection[str]) -> tuple[Wants, Wants]:
        """Return what the receiver and its ``when`` want of an emission that carries *given*.

        Read from their signatures once; where the payload is open, once for each that is given.

        Raises:
            SignatureError: one of them asks for something that the payload doesn't have.
        """
        payload = tuple(given) if self.payload is None else self.payload
        wants = self._readings.get(payload)
        if wants is None:
            wants = self._wants(self.receiver, payload), self._wants(self.options.when, payload)
            self._readings[payload] = wants
        return wants

    def guarded_task(self, guard: Callable[[Receiver], Receiver]) -> Task:
        """Return its task with the call in a guard: the same each time, as what becomes of a task is kept for each."""
        assert self.task is not None  # of offloaded ones only
        if self._guarded is None:
            self._guarded = replace(self.task, call=guard(self.task.call))
        return self._guarded

    def of_another(self, receiver: Receiver, fan_in: Receiver | None = None) -> Connection:
        """Return the same of *receiver*, the same method of another object, not yet anybody's; for what is inline.

        *fan_in* is the other object's, where this one has a shortcut.
        """
        shortcut = None if fan_in is None or self.shortcut is None else (fan_in, *self.shortcut[1:])
        return replace(self, target=receiver, shortcut=shortcut, order=0, weak=False, sender=None)

    def _wants(self, function: Receiver | None, payload: tuple[str, ...]) -> Wants:
        return _NOTHING if function is None else read_wants(function, self.site, payload, self.elsewhere)


def connection_of(
    receiver: Receiver,
    site: str,
    unit: Unit,
    payload: tuple[str, ...] | None,
    options: Options,
    elsewhere: Collection[str] = (),
) -> Connection:
    """Read a receiver and its options into a strong connection, which is not yet anybody's.

    Raises:
        HookError: the receiver is a generator function.
        SignatureError: the receiver or its ``when`` asks for something that the site doesn't offer.
        OptionError: a value that an option of its lane can't have, or such an option where there is no lane.
    """
    name, location, awaits = options.label or label(receiver), where(receiver), is_async(receiver)
    _refuse_generator(receiver, site)
    connection = Connection(
        target=receiver,
        site=site,
        unit=unit,
        payload=payload,
        options=options,
        filter=Filter(options, unit) if options.filtered else None,
        name=name,
        location=location,
        awaits=awaits,
        elsewhere=elsewhere,
        task=_task_of(receiver, site, options, name, location) if _is_offloaded(options, awaits) else None,
    )
    if payload is not None:
        connection.read(payload)
    return connection


def _refuse_generator(receiver: Receiver, site: str) -> None:
    kind = inert_kind(receiver)
    if kind.endswith("generator"):
        raise HookError(
            f"connecting {label(receiver)} in {where(receiver)} to {site!r}: of a call of this {kind} function nothing "
            "runs; write it without yield."
        )


def _is_offloaded(options: Options, awaits: bool) -> bool:
    if awaits and options.offload is False:
        raise OptionError("offload=False on an async def, which can't be called inline; leave it out.")
    if awaits and options.collective:
        raise OptionError("collective=True on an async def, which can't be called inline; make it a def.")
    offloaded = awaits if options.offload is None else options.offload
    if not offloaded and options.lane != LaneOptions():
        raise OptionError("lane, barrier and what else concerns a lane are of use with offload=True only; add that.")
    return offloaded


def _task_of(receiver: Receiver, site: str, options: Options, name: str, location: str) -> Task:
    lane = options.lane
    return Task(
        receiver,
        lane.lane or f"{name}@{site}",
        name=name,
        location=location,
        site=site,
        max_pending=lane.max_pending,
        on_full=lane.on_full,
        on_error=lane.on_error,
        retries=lane.retries,
        worker=lane.worker,
    )


class Table:
    """The connections of a site: at most one for each receiver and sender.

    A garbage collection may drop weak ones at almost any moment, so nothing here iterates over what may change.

    Args:
        anybody: What stands for any sender among the identities of senders.
        barrier_changed: Told the name of the site at which a lane is now waited for, or no longer.
    """

    def __init__(self, anybody: Hashable, barrier_changed: Callable[[str], None] = lambda site: None) -> None:
        self.anybody, self._barrier_changed = anybody, barrier_changed
        self.has_scoped = False  # or had: whether a connection is for some ranks alone
        self._by_sender: dict[Hashable, dict[Hashable, Connection]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_sender.copy().values()))

    def get(self, key: Key) -> Connection | None:
        """Return the connection of a receiver and a sender, if there is one."""
        return self._by_sender.get(key[1], {}).get(key[0])

    def put(self, key: Key, connection: Connection | None) -> None:
        """Make *connection* the one of a receiver and a sender; None takes it out."""
        receiver_id, sender_id = key
        old = self.get(key)
        if connection is not None:
            self.has_scoped |= connection.options.ranks != "all"
            self._by_sender.setdefault(sender_id, {})[receiver_id] = connection
        else:
            bucket = self._by_sender.get(sender_id, {})
            bucket.pop(receiver_id, None)
            if not bucket:
                self._by_sender.pop(sender_id, None)
        for each in (old, connection):
            if each is not None and each.task is not None:
                self._tell([each.barrier])

    def clear(self) -> None:
        """Take all out."""
        barriers = {connection.barrier for connection in self.all()}
        self._by_sender.clear()
        self._tell(barriers)

    def _tell(self, barriers: Iterable[str]) -> None:
        for barrier in barriers:
            if barrier:
                self._barrier_changed(barrier)

    def has_sender(self, sender_id: Hashable) -> bool:
        """Return whether anything is connected to just this sender."""
        return sender_id in self._by_sender

    def senders(self) -> list[Hashable]:
        """Return the identities of the senders that something is connected to, anybody's left out."""
        return [sender_id for sender_id in self._by_sender.copy() if sender_id != self.anybody]

    def reaches(self, sender_id: Hashable) -> bool:
        """Return whether an emission by this sender would reach a receiver."""
        return self.anybody in self._by_sender or sender_id in self._by_sender

    def reached_by(self, sender_id: Hashable) -> list[Connection]:
        """Return the connections that this sender reaches, in the order in which they run."""
        chosen = {**self._by_sender.get(self.anybody, {}), **self._by_sender.get(sender_id, {})}
        return _in_order(chosen.values())

    def of_receiver(self, receiver_id: Hashable) -> dict[Key, Connection]:
        """Return the connections of a receiver, by key."""
        found = {(receiver_id, s): bucket.get(receiver_id) for s, bucket in self._by_sender.copy().items()}
        return {key: connection for key, connection in found.items() if connection is not None}

    def of_sender(self, sender_id: Hashable) -> list[Key]:
        """Return the keys of the connections to just this sender."""
        return [(receiver_id, sender_id) for receiver_id in self._by_sender.get(sender_id, {}).copy()]

    def all(self) -> list[Connection]:
        """Every connection, whatever its sender, in the order in which they run."""
        return _in_order(c for bucket in self._by_sender.copy().values() for c in bucket.copy().values())


_place = operator.attrgetter("options.priority", "order")


def _in_order(connections: Iterable[Connection]) -> list[Connection]:
    """Sort by priority, then by the order of connection."""
    return sorted(connections, key=_place)


def annotate(error: BaseException, connection: Connection, sender: Any) -> None:
    """Note on an error which receiver raised it, where that is written, and how far the run was."""
    # A sender's counter may be a failing property and an error may refuse to be changed (a frozen dataclass does);
    # neither may take the place of what went wrong.
    with contextlib.suppress(Exception):
        counters = {name: getattr(sender, name, None) for name in ("epoch", "iter")}
        progress = "".join(f", {name} {count}" for name, count in counters.items() if isinstance(count, int))
        note = f"raised by receiver {connection.name} ({connection.location}) at {connection.site!r}{progress}"
        if getattr(error, "__notes__", [])[-1:] != [note]:  # a receiver in an endless recursion says it once
            error.add_note(note)


def check_result(connection: Connection, result: Any) -> None:
    """Refuse what a receiver returned in the belief that it is run or taken: an emission takes no result.

    Raises:
        HookError: it is a coroutine or a generator, or where a batch or checkpoint is to be changed, another one.
    """
    who = f"{connection.name} in {connection.location} returned"
    if isinstance(result, Coroutine):
        result.close()  # or Python warns besides
        raise HookError(
            f"{who} a coroutine at {connection.site!r}, which nobody awaits; make it an async def itself, without a "
            "plain function around it, or connect it with offload=True."
        )
    if isinstance(result, Generator | AsyncGenerator) or isinstance(getattr(result, "gen", None), Generator):
        raise HookError(f"{who} a generator at {connection.site!r}, of which nothing runs; write it without yield.")
    changed = _CHANGED.get(connection.site)
    if changed and (isinstance(result, list | tuple | Mapping) or hasattr(result, "detach")):
        instead = "do it in the step" if changed == "data_batch" else "assign to its keys"
        raise HookError(
            f"{who} a {type(result).__name__} at {connection.site!r}, which nobody takes; change {changed} in place "
            f"and return nothing, or {instead}."
        )


def check_wanted(connection: Connection, given: Collection[str]) -> None:
    """Refuse an emission that lacks what the receiver, or its ``when``, can't do without."""
    wants, when_wants = connection.read(given)
    missing = wants.missing(given) | when_wants.missing(given)
    if missing:
        raise SignatureError(
            f"{connection.name} in {connection.location} needs {listed(map(repr, sorted(missing)))}; "
            f"this emission of {connection.site!r} carries {listed(given)}."
        )

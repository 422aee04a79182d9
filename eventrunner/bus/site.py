"""Sites: where receivers are connected, and from where they are called.

A ``Site`` is a ``blinker.Signal`` whose receivers have an order (priority, then connection), are held strongly unless
asked otherwise, and get exactly the arguments that they name.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable
from types import FunctionType
from typing import Any, TypeVar, get_args

import blinker
from blinker._utilities import make_id as identity
from blinker._utilities import make_ref
from blinker.base import ANY, ANY_ID

from eventrunner.bus.connection import Connection, Key, Table, connection_of
from eventrunner.bus.emissions import Emissions, Emitters
from eventrunner.bus.freeze import Context
from eventrunner.bus.options import parse_options
from eventrunner.bus.plan import EMIT, EMIT_ALL, SEND, SEND_ASYNC, Emit, Mode, checked_payload
from eventrunner.bus.priority import Priority
from eventrunner.bus.signature import Receiver, where
from eventrunner.bus.signature import label as label_of
from eventrunner.bus.sites import NOT_SENDERS, RUN_SITES, Unit
from eventrunner.errors import HookError, OptionError, did_you_mean, listed

__all__ = ["ANY", "ANY_ID", "Site", "identity"]

F = TypeVar("F", bound=Receiver)
_PRUNED = 256
"""How many empty sets are left alone."""
_OF_RUNS = {spec.name for spec in RUN_SITES}
_orders = itertools.count()  # one counter for all sites, so that order of connection is one order


class Site(blinker.Signal):
    """A named place in a run, to which receivers are connected.

    blinker's interface works as documented there, with these differences: receivers run in order of priority and
    then of connection; ``weak`` is False by default; ``connected_to`` takes back only what it connected; ``muted``
    nests; a receiver gets only the arguments that it names. A receiver is released with the last of its senders.

    Args:
        doc: When it is emitted.
        name: Its name on the bus.
        payload: The names of the keyword arguments of an emission; None leaves them open, and then a receiver is
            checked at each emission against what that carries.
        unit: What ``every=`` counts.
        context: What it shares with the other sites of its bus; a site on its own shares nothing.
    """

    def __init__(
        self,
        doc: str | None = None,
        *,
        name: str = "",
        payload: Iterable[str] | None = None,
        unit: Unit = "emission",
        context: Context | None = None,
    ) -> None:
        if unit not in get_args(Unit):
            near = did_you_mean(str(unit), get_args(Unit))
            raise OptionError(f"site {name!r} with unit={unit!r}: it counts {listed(get_args(Unit))}{near or '.'}")
        self.name, self.unit = name, unit
        self._context = Context(ANY_ID, identity) if context is None else context
        self._table = Table(ANY_ID, self._context.barrier_changed)
        names = None if payload is None else checked_payload(name, payload)
        self._emissions = Emissions(name, names, self._table, self._context, identity, unit)
        self._context.add(name, self._table, self._emissions.changed, names or ())
        self._set_muted, self._mutes = False, 0
        self._prune_at = _PRUNED
        super().__init__(doc)

    def __repr__(self) -> str:
        return f"<Site {self.name or hex(id(self))} with {len(self._table)} connections>"

    @property
    def payload(self) -> tuple[str, ...] | None:
        """The names of the keyword arguments of an emission, or None where they are open."""
        return self._emissions.payload

    @property
    def traits(self) -> tuple[str, Unit, tuple[str, ...] | None, frozenset[str]]:
        """All of the site that a reading of a receiver depends on: what comes last isn't meant for the sender."""
        elsewhere = self._context.names | (NOT_SENDERS if self.name in _OF_RUNS else frozenset())
        return self.name, self.unit, self._emissions.payload, elsewhere

    @functools.cached_property
    def receiver_connected(self) -> Site:
        """Emitted by the site at the end of each :meth:`connect`, with its receiver, sender and weak."""
        return _own_site("receiver_connected", "receiver", "sender", "weak")

    @functools.cached_property
    def receiver_disconnected(self) -> Site:
        """Emitted by the site at the end of each :meth:`disconnect`, with its receiver and sender."""
        return _own_site("receiver_disconnected", "receiver", "sender")

    # Connecting

    def connect(
        self,
        receiver: F,
        sender: Any = ANY,
        weak: bool = False,  # blinker's default is True: a lambda would be dropped at once
        *,
        priority: int | str | Priority = Priority.NORMAL,
        every: int | str | None = None,
        start: int = 0,
        once: bool = False,
        when: Receiver | None = None,
        label: str | None = None,
        offload: bool | None = None,
        mutates: tuple[str, ...] | None = None,
        ranks: str = "all",
        collective: bool = False,
        **lane_options: Any,
    ) -> F:
        """Connect *receiver*, called when *sender* (default: anybody) emits this site; return the receiver.

        Connecting it again to the same sender replaces its options and keeps its place. During an emission, a change
        takes effect at the next one. On an error nothing has changed.

        An offloaded receiver runs in the background, in a lane: jobs of one lane never overlap or overtake. It gets
        frozen arguments: copies of containers and tensors, on the host, and instead of a Runner its ``RunView``. What
        it raises is raised to the sender at its next iteration, with a note of where it came from. ``send`` and
        ``send_async`` collect results, so they call every receiver themselves.

        Args:
            receiver: Any callable; it gets the arguments that its signature names.
            sender: Only this sender's emissions. Where the same receiver is also connected to anybody, the
                connection to the sender counts, and the receiver is called once.
            weak: Hold the receiver weakly and drop the connection when it is collected.
            priority: 0 (runs first) to 100, a name or a ``Priority``.
            every: Each n-th in the site's unit, or a least time between two calls such as ``"10min"``.
            start: The first number (from 1, in the site's unit) that may pass; ``every`` counts from it.
            once: Only the first emission that the other filters let pass; none any more in a resumed run where that
                has been. What such a receiver changed is there again if it is saved (weights, optimizer, schedules,
                ``requires_grad``); an exchanged dataloader or an attribute isn't: do that without ``once``.
            when: A predicate that names what it wants, as a receiver does.
            label: The name that plans and errors show instead of the receiver's own.
            offload: Run it in a lane; an ``async def`` always does, and is awaited there.
            mutates: What the receiver writes to, out of ``model``, ``optimizer``, ``average`` and ``gradients``; ``()``
                for nothing. One that doesn't say is taken to write to anything: where a save is still copying
                weights, it runs when they are copied.
            ranks: Which ranks of a run call it: ``"all"``, ``"main"``, which is rank 0, or ``"local_main"``, the first
                one of each machine. With several ranks, a receiver that isn't called by all is refused every
                collective in its own thread, before it is sent: the other ranks would take it for their next one.
            collective: It communicates with the other ranks: all call it, at the same emissions and inline, so that
                ``ranks``, ``offload``, ``when``, ``weak`` and an ``every`` by time are refused. When a session begins,
                all ranks must have the same such receivers.
            **lane_options: Of an offloaded receiver: ``lane``, the lane's name (by default each receiver has its
                own); ``barrier``, a site that isn't emitted until the lane is done; ``max_pending`` (1,000) jobs, and
                what a further one does, ``on_full``: ``"wait"``, ``"coalesce"`` (take the newest one's place),
                ``"drop_oldest"`` or ``"error"``; ``on_error``: ``"raise"``, ``"warn"`` or ``"disable_after=<k>"``;
                ``retries`` (0); ``worker``: ``"thread"``, for what waits for disks and networks, or ``"process"``,
                for what computes in Python: there the script is imported, so what it runs must stand under
                ``if __name__ == "__main__":``.

        Raises:
            HookError: the receiver can't be called, is a generator function, or can't be held weakly.
            SignatureError: it asks for something that the site doesn't offer.
            UnknownSiteError: the barrier is at no site of the bus.
            OptionError: an option that there isn't, or a value that it can't have.
        """
        filters: dict[str, Any] = {"every": every, "start": start, "once": once, "when": when}
        ways: dict[str, Any] = {"offload": offload, "mutates": mutates, "ranks": ranks, "collective": collective}
        connection = self.check(receiver, priority=priority, label=label, **filters, **ways, **lane_options)
        if weak and (connection.task is not None or collective):
            reason = "it may be gone on one rank alone" if collective else "a lane holds what it runs"
            raise OptionError(f"connecting {connection.name} to {self.name!r} with weak=True: {reason}.")
        self.admit(connection, receiver, sender, weak)
        return receiver

    def admit(
        self, connection: Connection, receiver: Receiver, sender: Any = ANY, weak: bool = False
    ) -> Connection | None:
        """Connect *receiver* as :meth:`check` has read it, each reading once; return the connection that there is."""
        # A sender is there, and would be made once more; anybody may come to be where it isn't.
        if sender is not ANY and connection.task is not None:
            self._context.check_workers([connection])
        key = self._key(receiver, sender)
        connection.sender = None if _has_own_id(sender) else sender
        if weak:
            connection.target, connection.weak = self._reference(receiver), True
        with self._context.changes:
            old = self._table.get(key)
            connection.order = next(_orders) if old is None else old.order
            self._place(key, connection)
            try:
                super().connect(receiver, sender, weak)
            except BaseException:  # a receiver of receiver_connected failed
                self._place(key, old)
                raise
            return self._table.get(key)

    def check(self, receiver: Receiver, **options: Any) -> Connection:
        """Raise what :meth:`connect` would raise for these options; what it returns is connected by :meth:`admit`."""
        if not callable(receiver):
            raise HookError(f"connecting {receiver!r} to {self.name!r}: a receiver must be callable.")
        try:
            checked = parse_options(**options)
            name, unit, payload, elsewhere = self.traits
            connection = connection_of(receiver, name, unit, payload, checked, elsewhere)
        except OptionError as error:
            raise OptionError(
                f"connecting {label_of(receiver)} in {where(receiver)} to {self.name!r}: {error}"
            ) from None
        self._context.check_barrier(connection)
        return connection

    @contextlib.contextmanager
    def connected_to(self, receiver: Receiver, sender: Any = ANY, **options: Any) -> Generator[None, None, None]:
        """Connect *receiver* for the length of a ``with`` block, then put back what was there before."""
        key = self._key(receiver, sender)
        with self._context.changes:
            before = self._table.get(key)
            self.connect(receiver, sender, **options)
        try:
            yield None
        finally:
            with self._context.changes:
                self._place(key, before)
            if before is None and "receiver_disconnected" in self.__dict__:
                self.receiver_disconnected.send(self, receiver=receiver, sender=sender)

    def has_receivers_for(self, sender: Any) -> bool:
        """Return whether an emission by *sender* would reach a receiver."""
        return self._table.reaches(ANY_ID if sender is ANY else identity(sender))

    def receivers_for(self, sender: Any) -> Generator[Receiver, None, None]:
        """Return the live receivers that *sender* reaches, in the order in which they run."""
        for connection in self.connections_for(sender):
            receiver = connection.receiver
            if receiver is not None:
                yield receiver

    def connection(self, receiver: Receiver, sender: Any = ANY) -> Connection | None:
        """Return the connection of a receiver to just this sender, or to anybody; None where there is none."""
        return self._table.get(self._key(receiver, sender))

    def connections_for(self, sender: Any) -> list[Connection]:
        """Return the connections that *sender* reaches, in the order in which they run; for ANY those to anybody."""
        return self._table.reached_by(identity(sender))

    def all_connections(self) -> list[Connection]:
        """Every connection, whatever its sender, in the order in which they run."""
        return self._table.all()

    # Emitting

    def emit(self, sender: Any = None, /, **payload: Any) -> None:
        """Call the receivers in order and collect nothing: the fast form of :meth:`send`.

        Raises:
            SignatureError: the payload has a name that the site doesn't declare, or lacks one that a receiver needs.
        """
        self._entry(EMIT)(sender, **payload)

    def emit_all(self, sender: Any = None, /, **payload: Any) -> list[BaseException]:
        """Call every receiver, those after a failing one too, and return what they raised.

        For the sites at which a run is left: each of them has something to close.

        Raises:
            SignatureError: as in :meth:`emit`, before any receiver is called.
        """
        errors: list[BaseException] = self._entry(EMIT_ALL)(sender, **payload)
        return errors

    def send(self, sender: Any = None, /, *, _async_wrapper: Any = None, **payload: Any) -> list[tuple[Receiver, Any]]:
        """Call the receivers in order and return ``(receiver, result)`` pairs, as blinker does.

        Raises:
            SignatureError: as in :meth:`emit`, before any receiver is called.
            RuntimeError: a receiver is an ``async def`` and no ``_async_wrapper`` was given (blinker's contract).
        """
        results: list[tuple[Receiver, Any]] = self._entry(SEND)(sender, _async_wrapper=_async_wrapper, **payload)
        return results

    async def send_async(
        self, sender: Any = None, /, *, _sync_wrapper: Any = None, **payload: Any
    ) -> list[tuple[Receiver, Any]]:
        """Await the receivers one after another, in order; plain ones through ``_sync_wrapper``."""
        results: list[tuple[Receiver, Any]] = await self._entry(SEND_ASYNC)(
            sender, _sync_wrapper=_sync_wrapper, **payload
        )
        return results

    def _entry(self, mode: Mode) -> Emit:
        """Compile one of the methods above for this very site, in whose place it is called from now on."""
        entry = self._emissions.entry(mode)
        if getattr(type(self), mode.name) is getattr(Site, mode.name):  # a subclass may do more in its own
            self.__dict__[mode.name] = entry
        return entry

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not isinstance(value, FunctionType)}  # as there

    @property
    def is_muted(self) -> bool:
        """Whether emissions reach nobody: it was set so, or a :meth:`muted` block is open."""
        return self._emissions.muted

    @is_muted.setter
    def is_muted(self, value: bool) -> None:
        self._mute(value, 0)

    @contextlib.contextmanager
    def muted(self) -> Generator[None, None, None]:
        """Emissions reach nobody within the block; blocks nest, and may overlap."""
        self._mute(self._set_muted, 1)
        try:
            yield None
        finally:
            self._mute(self._set_muted, -1)

    def _mute(self, value: bool, blocks: int) -> None:
        with self._context.changes:
            self._set_muted = value
            self._mutes += blocks
            self._emissions.muted = self._set_muted or self._mutes > 0
            self._emissions.changed()

    def refresh(self) -> None:
        """Have the next emissions compiled anew."""
        with self._context.changes:
            self._emissions.changed()

    def attach(self, emitters: Emitters) -> None:
        """Keep the attribute of *emitters* that has this site's name current; called within the context's changes."""
        self._emissions.attach(emitters)

    # The table of connections, and blinker's own beside it; changed within the context's changes

    def _key(self, receiver: Receiver, sender: Any) -> Key:
        sender_id = ANY_ID if sender is ANY else identity(sender)
        if sender is not ANY and sender_id == ANY_ID:
            raise OptionError(f"connecting to {self.name!r} with sender={sender!r}: blinker can't tell 0 from anybody.")
        if sender is not ANY and sender_id != id(sender):
            self._emissions.by_id = False
        return identity(receiver), sender_id

    def _reference(self, receiver: Receiver) -> weakref.ref[Receiver]:
        try:
            return make_ref(receiver, self._make_cleanup_receiver(identity(receiver)))
        except TypeError:
            raise HookError(
                f"connecting {label_of(receiver)} to {self.name!r} with weak=True: "
                f"a {type(receiver).__name__} can't be referred to weakly; leave it out."
            ) from None

    def _place(self, key: Key, connection: Connection | None) -> None:
        """Make *connection* the one of a receiver and a sender, or see that there is none."""
        receiver_id, sender_id = key
        self._table.put(key, connection)
        if connection is not None:
            self._by_sender[sender_id].add(receiver_id)
            self._by_receiver[receiver_id].add(sender_id)
            self.receivers[receiver_id] = connection.target
        elif sender_id in self._by_sender and receiver_id in self._by_receiver:  # subscripting would create buckets
            self._by_sender[sender_id].discard(receiver_id)
            self._by_receiver[receiver_id].discard(sender_id)
        self._prune()
        if connection is None:
            self._hold(receiver_id)
        self._emissions.changed(sender_id)

    def _hold(self, receiver_id: Hashable) -> None:
        """Have blinker's table of receivers agree with the connections, which hold their receivers themselves."""
        left = self._table.of_receiver(receiver_id)
        if left:
            self.receivers[receiver_id] = next(iter(left.values())).target
        else:
            self.receivers.pop(receiver_id, None)

    def _disconnect(self, receiver_id: Hashable, sender_id: Hashable) -> None:
        with self._context.changes:
            super()._disconnect(receiver_id, sender_id)
            for key in self._table.of_receiver(receiver_id):
                if sender_id in (ANY_ID, key[1]):
                    self._table.put(key, None)
            self._hold(receiver_id)
            self._prune()
            self._emissions.changed(sender_id)

    def _prune(self) -> None:
        """Drop the empty sets that blinker leaves behind, once there are many; looking for them looks at all."""
        if len(self._by_sender) + len(self._by_receiver) > self._prune_at:
            self._cleanup_bookkeeping()
            self._prune_at = 2 * (len(self._by_sender) + len(self._by_receiver)) + _PRUNED

    def _make_cleanup_receiver(self, receiver_id: Hashable) -> Callable[[weakref.ref[Any]], None]:
        cleanup, changes = super()._make_cleanup_receiver(receiver_id), self._context.changes
        return lambda reference: changes.leave(functools.partial(cleanup, reference))

    def _make_cleanup_sender(self, sender_id: Hashable) -> Callable[[weakref.ref[Any]], None]:
        cleanup, changes = super()._make_cleanup_sender(sender_id), self._context.changes

        def forget(reference: weakref.ref[Any]) -> None:
            cleanup(reference)
            for key in self._table.of_sender(sender_id):
                self._place(key, None)
                if not self._by_receiver.get(key[0], True):
                    del self._by_receiver[key[0]]

        return lambda reference: changes.leave(functools.partial(forget, reference))

    def _clear_state(self) -> None:
        with self._context.changes:
            super()._clear_state()
            self._table.clear()
            self._emissions.changed()


def _own_site(name: str, *payload: str) -> Site:
    site = Site(name=name)
    site._emissions.payload = payload  # noqa: SLF001  # has "sender" in it, which a site of one's own can't have
    return site


def _has_own_id(sender: Any) -> bool:
    """Return whether nothing else can come to have the identity of *sender* while a connection to it lasts."""
    if sender is ANY or isinstance(sender, str | int):
        return True
    try:
        make_ref(sender)
    except TypeError:
        return False
    return True

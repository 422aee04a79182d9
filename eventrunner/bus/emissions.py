"""Emissions: which plans a site has compiled, for whom, and when they are compiled anew.

A plan is compiled at its first use, for a sender and what its emission carries, and kept until connections change.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from eventrunner.bus.connection import Connection, Table
from eventrunner.bus.freeze import Context
from eventrunner.bus.ledger import Ledger, Samples
from eventrunner.bus.plan import EMIT, SENDER_NAME, Emit, Mode, check_parameters, compile_plan
from eventrunner.bus.sites import Unit
from eventrunner.errors import SignatureError, UnknownSiteError, did_you_mean, listed

__all__ = ["Emissions", "Emitters"]

_MISSING = object()  # in the place of what an emission doesn't carry


def _compile_entry(mode: Mode, payload: Sequence[str], way: _Way, others: Callable[..., Any]) -> Emit:
    """Build the method of a site for one *mode*, called with the sender and the payload by keyword.

    What carries all of the payload goes straight to the sender's plan; anything else to *others*, with the payload in
    a dict. A site can be reached by many senders, few of which have connections of their own, so what has none in
    ``way.plans`` has anybody's.
    """
    wrapper = f"{mode.wrapper}=None, " if mode.wrapper else ""
    extra = f", {mode.wrapper}" if mode.wrapper else ""
    carried = "{" + "".join(f"{name!r}: {name}, " for name in payload) + "**more_}"
    lines = [
        f"def entry({SENDER_NAME}=None, /, *, {wrapper}{''.join(f'{name}=missing_, ' for name in payload)}**more_):",
        f"    if {' or '.join(('more_', *(f'{name} is missing_' for name in payload)))}:",
        f"        return others_({SENDER_NAME}{extra}, {carried})",
        "    plans_ = way_.plans",
        f"    return plans_.get(id({SENDER_NAME}), plans_.anybody)({', '.join((SENDER_NAME + extra, *payload))})",
    ]
    if not wrapper and not payload:
        lines[0] = f"def entry({SENDER_NAME}=None, /, **more_):"
    namespace: dict[str, Any] = {"missing_": _MISSING, "way_": way, "others_": others}
    exec(compile("\n".join(lines), f"<{mode.name}>", "exec"), namespace)
    entry: Emit = namespace.pop("entry")
    entry.__name__, entry.__qualname__ = mode.name, f"Site.{mode.name}"
    return entry


class Emitters:
    """The compiled emissions of a bus for one sender: an attribute per site.

    The attribute is None where nothing would be called, so a loop pays an attribute load and a truth test for a site
    without receivers: ``if emitters.after_train_iter: emitters.after_train_iter(runner, index, batch, outputs)``. All
    of the site's payload must be given, by keyword or, which is faster, in the order of its declaration. Kept current
    by the sites; read the attribute anew at each emission. With a ledger, the time that each receiver takes is kept
    there.
    """

    def __init__(self, sender_id: Hashable, ledger: Ledger | None = None) -> None:
        self._sender_id, self._ledger = sender_id, ledger
        self._turns: dict[str, _Turns] = {}

    def __getattr__(self, name: str) -> Emit | None:  # for type checkers: every declared site is set by its Site
        reason = did_you_mean(name, vars(self)) or " is declared on this bus."
        raise UnknownSiteError(f"emitter of {name!r}: no such site{reason}")


class _Turns:
    """Two plans of one emission, of which one is called and the other waits for its turn; the emitters keep them."""

    timed: Emit
    whole: Emit

    def __init__(self, site: str, emitters: Emitters) -> None:
        self._site, self._emitters = site, weakref.ref(emitters)

    def switch(self, timed: bool) -> None:
        """Have the one called next, unless the emission has been compiled anew."""
        emitters = self._emitters()
        if emitters is not None:
            current, site, plan = emitters.__dict__, self._site, self.timed if timed else self.whole
            if current[site] is self.timed or current[site] is self.whole:
                current[site] = plan  # nothing is called in between, so no other thread gets in between


class _Plans(dict[Hashable, Emit]):
    """What was compiled in one mode since the connections changed last.

    By sender and payload; and, of emissions that carry all of the payload, by the id of each sender that has
    connections of its own, with *anybody*'s for all others.
    """

    def __init__(self, anybody: Emit) -> None:
        super().__init__()
        self.anybody = anybody


@dataclass(slots=True)
class _Way:
    """The plans of a site in one mode; old ones are left to the threads that are at them when connections change."""

    plans: _Plans


class Emissions:
    """The compiled emissions of one site, by sender and payload, and the ``Emitters`` that hold some of them.

    Args:
        site: The site's name.
        payload: What an emission may carry; None for anything.
        table: The site's connections; :meth:`changed` must be called when they change.
        context: What it shares with the other sites.
        identity: What tells senders apart.
        unit: What the site counts.
    """

    def __init__(
        self,
        site: str,
        payload: tuple[str, ...] | None,
        table: Table,
        context: Context,
        identity: Callable[[Any], Hashable],
        unit: Unit,
    ) -> None:
        self.site, self.payload, self.table, self.context = site, payload, table, context
        self.muted = False
        self.by_id = True
        """Whether every sender with connections of its own is told by its ``id``: not so a string, for one."""
        self._identity, self._unit = identity, unit
        self._ways: dict[Mode, _Way] = {}
        self._entries: dict[Mode, Emit] = {}
        self._emitters: weakref.WeakSet[Emitters] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ways": {}, "_entries": {}}  # functions are shared by copies, and these are of one site

    def entry(self, mode: Mode) -> Emit:
        """Return the site's method for *mode*, which stays right when connections change."""
        if mode in self._entries:
            return self._entries[mode]
        way = self._way(mode)

        def others(sender: Any, *rest: Any) -> Any:
            *wrapper, payload = rest
            given = {name: value for name, value in payload.items() if value is not _MISSING}
            return self.find(mode, self._identity(sender), tuple(given))(sender, *wrapper, **given)

        entry = self._entries[mode] = _compile_entry(mode, self.payload or (), way, others)
        return entry

    def find(self, mode: Mode, sender_id: Hashable, given: tuple[str, ...]) -> Emit:
        """Return the plan for one sender, compiled at its first use.

        Raises:
            SignatureError: *given* has a name that it can't have, or lacks one that a receiver needs.
        """
        plans = self._way(mode).plans  # first: what another thread changes from here on makes these of no further use
        barriers = self.context.barriers_at(self.site, sender_id)
        if not barriers and not self.table.has_sender(sender_id):
            sender_id = self.table.anybody
        key = (sender_id, given)
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = self._compiled(sender_id, given, barriers, mode)
            if given == self.payload and self.by_id and not self.context.has_barriers:
                self._shorten(plans, sender_id, plan, mode)
        return plan

    def _shorten(self, plans: _Plans, sender_id: Hashable, plan: Emit, mode: Mode) -> None:
        """Have the site's method find *plan* by itself."""
        if sender_id != self.table.anybody:
            plans[sender_id] = plan
            return
        first = self._first(mode)
        for own in self.table.senders():
            plans.setdefault(own, first)
        plans.anybody = plan

    def _way(self, mode: Mode) -> _Way:
        way = self._ways.get(mode)
        if way is None:
            way = self._ways.setdefault(mode, _Way(_Plans(self._first(mode))))
        return way

    def _first(self, mode: Mode) -> Emit:
        """Stands for a plan that isn't compiled yet."""

        def first(sender: Any, *rest: Any) -> Any:
            return self.find(mode, self._identity(sender), self.payload or ())(sender, *rest)

        return first

    def _compiled(
        self,
        sender_id: Hashable,
        given: tuple[str, ...],
        barriers: Sequence[str],
        mode: Mode = EMIT,
        samples: Samples | None = None,
        whole: bool = False,
    ) -> Emit:
        for name in given:
            if self.payload is not None and name not in self.payload:
                raise SignatureError(
                    f"an emission of {self.site!r} carries {name!r}; the site declares "
                    f"{listed(self.payload)}{did_you_mean(name, self.payload) or '.'}"
                )
        check_parameters(self.site, given)
        reached = self._reached(sender_id)
        return compile_plan(self.site, reached, given, self.context, barriers, mode, samples, whole)

    def _reached(self, sender_id: Hashable) -> list[Connection]:
        return [] if self.muted else self.context.here(self.table, sender_id)

    def _accounted(self, emitters: Emitters, sender_id: Hashable, given: tuple[str, ...], ledger: Ledger) -> Emit:
        """Compile a plan whose inline calls are timed: at the sites of single iterations, in turns with another one."""
        barriers = self.context.barriers_at(self.site, sender_id)
        inline = [connection for connection in self._reached(sender_id) if connection.task is None]
        if not inline:
            return self._compiled(sender_id, given, barriers)
        if self._unit != "iter" or self.payload is None:
            return self._compiled(sender_id, given, barriers, samples=ledger.samples(inline))
        conditional = {index for index, connection in enumerate(inline) if connection.is_conditional}
        turns = _Turns(self.site, emitters)
        own = weakref.ref(turns)  # what the plans hold must not hold them

        def switch(timed: bool) -> None:
            if (current := own()) is not None:
                current.switch(timed)

        samples = ledger.samples(inline, conditional, switch)
        turns.timed = self._compiled(sender_id, given, barriers, samples=samples)
        turns.whole = self._compiled(sender_id, given, barriers, samples=samples, whole=True)
        emitters._turns[self.site] = turns  # noqa: SLF001  # every public name may be a site's
        return turns.timed

    def attach(self, emitters: Emitters) -> None:
        """Keep the attribute of *emitters* that has the site's name current."""
        self._emitters.add(emitters)
        self._refresh(emitters)

    def changed(self, sender_id: Hashable = None) -> None:
        """Forget what was compiled; called, as :meth:`attach` is, by one thread at a time.

        Where only what is connected to one sender has changed, only its ``Emitters`` are out of date.
        """
        for mode, way in tuple(self._ways.items()):
            # Not cleared: another thread may be about to put in what it has compiled of the old ones.
            way.plans = _Plans(self._first(mode))
        for emitters in self._emitters:
            if sender_id in (None, self.table.anybody, emitters._sender_id):  # noqa: SLF001  # see _refresh
                self._refresh(emitters)

    def _refresh(self, emitters: Emitters) -> None:
        sender_id = emitters._sender_id  # noqa: SLF001  # every public name may be a site's
        quiet = self.muted or not self.table.reaches(sender_id)
        if not quiet and self.table.has_scoped:
            quiet = not self._reached(sender_id)
        if quiet and self.context.has_barriers:
            quiet = not self.context.barriers_at(self.site, sender_id)
        emitters._turns.pop(self.site, None)  # noqa: SLF001
        # A new one, even where one still waits: another thread may be about to put what it has compiled in its place.
        emitters.__dict__[self.site] = None if quiet else _Uncompiled(self, emitters)

    def compile_for(self, emitters: Emitters, given: tuple[str, ...]) -> Emit:
        """Compile what *emitters* have: timed, where they have a ledger."""
        sender_id, ledger = emitters._sender_id, emitters._ledger  # noqa: SLF001  # as above
        if ledger is None:
            return self.find(EMIT, sender_id, given)
        return self._accounted(emitters, sender_id, given, ledger)


class _Uncompiled:
    """Stands for the emission of a site for one sender: compiled when first called, not at each connection before."""

    __slots__ = ("__weakref__", "_emissions", "_owner", "_sender_id")

    def __init__(self, emissions: Emissions, emitters: Emitters) -> None:
        self._emissions, self._owner = emissions, weakref.ref(emitters)  # which hold this one
        self._sender_id = emitters._sender_id  # noqa: SLF001  # as above

    def __call__(self, sender: Any, /, *ordered: Any, **payload: Any) -> None:
        emissions, emitters = self._emissions, self._owner()
        given = tuple(payload) if emissions.payload is None else emissions.payload
        if emitters is None:
            plan = emissions.find(EMIT, self._sender_id, given)
        else:
            plan, current, site = emissions.compile_for(emitters, given), emitters.__dict__, emissions.site
            if emissions.payload is not None and current[site] is self:
                current[site] = plan  # nothing is called in between, so no other thread gets in between
        plan(sender, *ordered, **payload)

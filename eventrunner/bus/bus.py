"""The bus: a namespace of sites.

This module and those below it know nothing of torch or of training: whatever has named moments can be run on it.
"""

from __future__ import annotations

import contextlib
import inspect
import keyword
import operator
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from eventrunner.bus.describe import Plan
from eventrunner.bus.emissions import Emitters
from eventrunner.bus.freeze import Context
from eventrunner.bus.ledger import Ledger
from eventrunner.bus.options import Filter
from eventrunner.bus.plan import checked_payload
from eventrunner.bus.scope import Place
from eventrunner.bus.signature import Receiver, short_path, where
from eventrunner.bus.site import ANY, ANY_ID, Site, identity
from eventrunner.bus.sites import CATALOGUE, SiteSpec, Unit
from eventrunner.errors import HookError, OptionError, UnknownSiteError, did_you_mean, listed
from eventrunner.foreign import site_hint
from eventrunner.lanes.lanes import Lanes

__all__ = ["ANY", "Bus", "Emitters", "Site", "default_bus", "on"]

F = TypeVar("F", bound=Receiver)


class Bus:
    """A namespace of sites, each an attribute: ``bus.after_train_epoch.connect(f)``.

    Args:
        catalogue: The sites to begin with; by default those of a training run. ``Bus(())`` begins empty.
    """

    def __init__(self, catalogue: Iterable[SiteSpec] = CATALOGUE) -> None:
        self._sites: dict[str, Site] = {}
        self._context = Context(ANY_ID, identity)
        self._emitters: weakref.WeakSet[Emitters] = weakref.WeakSet()
        for spec in catalogue:
            self.site(spec.name, spec.payload, spec.doc, spec.unit)

    def __repr__(self) -> str:
        return f"<Bus with {len(self._sites)} sites>"

    def __iter__(self) -> Iterator[Site]:
        return iter(tuple(self._sites.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __getattr__(self, name: str) -> Site:
        if name.startswith("_"):
            raise AttributeError(f"Bus has no attribute {name!r}")
        return self.find(name, f"bus.{name}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._sites]

    def site(self, name: str, payload: Iterable[str] | None = (), doc: str = "", unit: Unit | None = None) -> Site:
        """Declare a site, or return the one that was declared with the same payload and unit.

        Args:
            name: An identifier that is not an attribute of ``Bus``.
            payload: The names of its keyword arguments; None leaves them open.
            doc: When it is emitted.
            unit: What ``every=`` counts at it: ``sender.epoch``, ``sender.iter`` or, by default, the emissions.

        Raises:
            OptionError: the name can't be one, or is declared with another payload or unit.
        """
        if not _is_site_name(name):
            raise OptionError(f"bus.site({name!r}): the name must be an identifier that Bus doesn't use itself.")
        names = None if payload is None else checked_payload(name, payload)
        with self._context.changes:
            known = self._sites.get(name)
            if known is None:
                known = Site(doc, name=name, payload=names, unit=unit or "emission", context=self._context)
                self._sites[name] = known
                for emitters in self._emitters:
                    known.attach(emitters)
                return known
        if known.payload != names or unit not in (None, known.unit):
            declared = "any payload" if known.payload is None else listed(known.payload, "no payload")
            raise OptionError(
                f"bus.site({name!r}): the site exists with {declared} and unit {known.unit!r}; declare it once."
            )
        return known

    def draft(self, name: str) -> Site:
        """Return a site that isn't declared, to check what would be connected to it if it were."""
        return Site(name=name, context=self._context.draft())

    def find(self, name: str | Site, attempt: str) -> Site:
        """Return the site called *name*; *attempt* says in an error what was being done, and where.

        Raises:
            UnknownSiteError: there is none; names the nearest, or what another framework's name is called here.
            OptionError: *name* is not a name.
        """
        if isinstance(name, Site):
            return name
        if not isinstance(name, str):
            raise OptionError(f"{attempt}: {name!r} is not the name of a site, as in @on('after_train').")
        found = self._sites.get(name)
        if found is not None:
            return found
        hint = site_hint(name)
        reason = hint + "." if hint else "no such site" + (did_you_mean(name, self._sites) or " is declared.")
        raise UnknownSiteError(f"{attempt}: {reason}")

    def on(self, site: str | Site, *, sender: Any = ANY, depth: int = 1, **options: Any) -> Callable[[F], F]:
        """Decorate a function to be called at *site*; options as in :meth:`Site.connect`. Decorators stack.

        ``depth`` is how many calls up the decorator stands, for the error.

        Raises:
            UnknownSiteError: there is no such site; says so where the decorator stands.
            HookError: the function is a method: a plain function of a class has no object to be called on.
        """
        frame = sys._getframe(depth)  # noqa: SLF001
        place = f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}"
        found = self.find(site, f"@on({getattr(site, 'name', site)!r}) in {place}")

        def connect(receiver: F) -> F:
            _refuse_method(receiver, found.name)
            found.connect(receiver, sender, **options)
            return receiver

        return connect

    def emitters(self, sender: Any, ledger: Ledger | None = None) -> Emitters:
        """Return the compiled emissions for *sender*, kept current for as long as the returned object lives.

        With a *ledger*, what each receiver costs is written there. Where the sender has ``ranks``, these say which
        rank this process is, for every emission of the bus; where none has, the environment does.
        """
        emitters, place = Emitters(identity(sender), ledger), Place.of(sender)
        with self._context.changes:
            if place not in (None, self._context.place):
                self._context.place = place
                self.refresh()
            self._emitters.add(emitters)
            for site in self:
                site.attach(emitters)
        return emitters

    def open_lanes(
        self, sender: Any = None, *, lanes: Lanes | None = None, backend: str = "asyncio", deadline: float = 600.0
    ) -> contextlib.AbstractContextManager[Lanes]:
        """Run offloaded receivers in the background within a ``with`` block; a run opens its own.

        However the block is left, what is in the lanes is done first, and what failed there is raised. Outside of
        such a block an offloaded receiver is called at once.

        Args:
            sender: Whose emissions; by default everybody's who has no lanes of its own.
            lanes: Those to use; by default new ones, made with the following two.
            backend: The event loop of ``async def`` receivers: ``"asyncio"`` or ``"trio"``.
            deadline: Seconds that leaving the block waits before it gives up with an error; and for which a lane
                that a sender waits for, at a barrier or because it is full, may finish no job before that is one.

        Raises:
            OptionError: the sender has lanes already, or a value can't be.
        """
        return self._context.opened(sender, Lanes(backend, deadline) if lanes is None else lanes)

    @property
    def guards(self) -> list[Callable[[], Any]]:
        """Called before an inline receiver that may write to what is being copied; what copies adds one."""
        return self._context.guards

    def wait_for_copies(self) -> None:
        """Call the guards: return when nothing is being copied that somebody is about to write to."""
        self._context.wait_for_copies()

    def refresh(self) -> None:
        """Have every emission compiled anew."""
        for site in self:
            site.refresh()

    def describe(self, sender: Any = ANY) -> Plan:
        """Return what would run for *sender* (default: all that is connected), site by site in order."""
        return Plan.of(
            connection
            for site in self
            for connection in (site.all_connections() if sender is ANY else site.connections_for(sender))
        )

    def plan(self, sender: Any = ANY) -> Plan:
        """Print and return :meth:`describe`: the very connections that an emission is compiled from."""
        plan = self.describe(sender)
        print(plan)
        return plan

    def state_dict(self, sender: Any) -> dict[str, Any]:
        """Return the state of the filters that *sender*'s emissions pass through, by site and receiver."""
        return {key: found.state_dict(sender) for key, found in self._filters(sender)}

    def load_state_dict(self, sender: Any, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; a filter that isn't in *state* is left as it is."""
        for key, found in self._filters(sender):
            if key in state:
                found.load_state_dict(sender, state[key])

    def _filters(self, sender: Any) -> Iterator[tuple[str, Filter]]:
        """Each under its site, file and name; those that share all three by order of connection, not of priority."""
        for site in self:
            counts: dict[str, int] = {}
            for connection in sorted(site.connections_for(sender), key=operator.attrgetter("order")):
                if connection.filter is not None:
                    file = os.path.basename(connection.location).partition(":")[0]  # the folder may have moved
                    name = f"{file}:{connection.name}"
                    nth = counts[name] = counts.get(name, 0) + 1
                    yield f"{site.name}/{name}#{nth}", connection.filter


def _is_site_name(name: object) -> bool:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        return False
    return not name.startswith("_") and not hasattr(Bus, name)


def _refuse_method(receiver: Receiver, site: str) -> None:
    qualname = getattr(receiver, "__qualname__", "")
    owner, _, name = qualname.rpartition(".")
    if inspect.isfunction(receiver) and owner and not owner.endswith("<locals>"):
        first = next(iter(inspect.signature(receiver).parameters), "")
        if first == "self":
            raise HookError(
                f"@on({site!r}) on method {owner.rpartition('.')[2]}.{name} in {where(receiver)}: a method is "
                "connected by naming it after the site in a Hook, with @options(...) for its own priority or filters."
            )


default_bus = Bus()
"""The bus that ``on`` connects to and that a Runner uses unless it is given another."""

on = default_bus.on

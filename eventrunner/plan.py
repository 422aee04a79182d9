"""Plans: the ordered calls of one site for one sender, compiled to a function.

The generated function has the payload as named parameters and one line per receiver, so an emission costs its calls
and nothing else: no loop, no unpacking, no lookup. Which receiver failed is read off the traceback's line number, so
that nothing is written down while all goes well.
"""

from __future__ import annotations

import keyword
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventrunner.connection import Connection, Table, annotate, check_wanted
from eventrunner.errors import OptionError, SignatureError, UnknownSiteError, did_you_mean, listed
from eventrunner.ledger import LAPS, Ledger
from eventrunner.offload import Context

__all__ = ["Emissions", "Emit", "Emitters", "Plan", "PlanRow", "checked_payload", "compile_plan"]

Emit = Callable[..., None]

_SENDER = "sender_"


def compile_plan(
    site: str,
    connections: Sequence[Connection],
    given: Sequence[str],
    context: Context,
    barriers: Sequence[str] = (),
    ledger: Ledger | None = None,
) -> Callable[..., None]:
    """Build ``emit(sender, <given>)`` that waits for the lanes *barriers* and then calls *connections* in order.

    With a *ledger*, the time of each inline call is added to its account there.

    Raises:
        SignatureError: a receiver can't do without something that is not *given*.
    """
    namespace: dict[str, Any] = {"guards_": context.guards, "settle_": context.settle, "wait_": context.wait}
    source = _Source(namespace, given, context, timed=ledger is not None)
    for lane in barriers:
        source.lines.append(f"wait_({_SENDER}, {lane!r}, {site!r})")
    for index, connection in enumerate(connections):
        check_wanted(connection, given)
        source.add(index, connection)
    laps = None if ledger is None else ledger.laps(source.inline)
    if laps is not None and source.inline:
        namespace.update(clock_=time.perf_counter, taken_=laps.taken, take_=laps.taken.append, add_up_=laps.add_up)
        source.lines += [f"take_(({', '.join(source.moments)}))", f"if len(taken_) >= {LAPS}: add_up_()"]
    found = "locals()" if source.moments else "None"
    lines = [
        f"def emit({', '.join((_SENDER, '/', *given))}):",
        "    try:",
        *("        " + line for line in source.lines or ["pass"]),
        "    except BaseException as error_:",
        f"        failed_(error_, {_SENDER}, {found})",
        "        raise",
    ]

    owners, moments = source.owners, source.moments  # not the source, whose namespace will have this function in it

    def failed(error: BaseException, sender: Any, found: Mapping[str, Any] | None) -> None:
        if laps is not None and found is not None:
            laps.taken.append([found.get(moment) for moment in moments])
            laps.add_up()
        # The first traceback entry is the generated frame: it was reached from there, and nothing is below it yet.
        line = error.__traceback__.tb_lineno if error.__traceback__ else 0
        if line in owners:
            annotate(error, owners[line], sender)

    namespace["failed_"] = failed
    exec(compile("\n".join(lines), f"<receivers of {site}>", "exec"), namespace)
    emit: Callable[..., None] = namespace.pop("emit")  # left there, a cycle would keep receivers until a collection
    emit.__qualname__ = f"{site}.emit"  # what a TypeError about its arguments calls it
    return emit


class _Source:
    """The source lines of a plan, as it grows.

    Attributes:
        lines: The lines, without the indentation of a function's body.
        owners: Whose each line is, by its number in the function, whose body begins at the third.
        inline: The connections that are called and timed, in order.
        moments: The variables of when each of them began and ended.
    """

    def __init__(self, namespace: dict[str, Any], given: Sequence[str], context: Context, timed: bool) -> None:
        self.namespace, self.given, self.context, self.timed = namespace, given, context, timed
        self.lines: list[str] = []
        self.owners: dict[int, Connection] = {}
        self.inline: list[Connection] = []
        self.moments: list[str] = []
        self._now = ""  # the variable that has the present moment

    def add(self, index: int, connection: Connection) -> None:
        """Call *connection* after those that were added before."""
        before = len(self.lines)
        indent = self._condition(index, connection)
        if connection.task is not None:
            self._offload(index, connection, indent)
        else:
            self._call(index, connection, indent)
        if indent or connection.task is not None:
            self._now = ""  # what else was done has taken time, too
        self.owners.update(dict.fromkeys(range(before + 3, len(self.lines) + 3), connection))

    def _condition(self, index: int, connection: Connection) -> str:
        """Whether it is called at all; returns how far what depends on that is indented."""
        tests = []
        if connection.weak:
            self.namespace[f"reference_{index}_"] = connection.target
            self.lines.append(f"receiver_{index}_ = reference_{index}_()")
            tests.append(f"receiver_{index}_ is not None")
        else:
            self.namespace[f"receiver_{index}_"] = connection.target
        if connection.filter is not None:
            self.namespace[f"passes_{index}_"] = connection.filter.passes
            tests.append(f"passes_{index}_({_SENDER})")
        if connection.options.when is not None:
            self.namespace[f"when_{index}_"] = connection.options.when
            tests.append(connection.read(self.given)[1].source(f"when_{index}_", _SENDER, self.given))
        if not tests:
            return ""
        if self.timed and connection.task is None:
            self.lines.append(f"began_{index}_ = ended_{index}_ = None")
        self.lines.append(f"if {' and '.join(tests)}:")
        if connection.filter is not None:
            self.namespace[f"fired_{index}_"] = connection.filter.fired
            self.lines.append(f"    fired_{index}_({_SENDER})")
        return "    "

    def _offload(self, index: int, connection: Connection, indent: str) -> None:
        self.namespace[f"receiver_{index}_"] = self.context.offloader(connection)
        call = connection.read(self.given)[0].source(f"receiver_{index}_", _SENDER, self.given, f"{_SENDER}, ")
        self.lines.append(indent + call)

    def _call(self, index: int, connection: Connection, indent: str) -> None:
        receiver, shortcut = f"receiver_{index}_", connection.shortcut
        call = connection.read(self.given)[0].source(receiver, _SENDER, self.given)
        if shortcut is not None and shortcut[1] == tuple(self.given):
            self.namespace[receiver] = shortcut[0]
            call = f"{receiver}({', '.join((_SENDER, *self.given, repr(shortcut[2])))})"
        guard = ["if guards_: settle_()"] if connection.options.may_write else []
        if not self.timed:
            self.lines += [indent + line for line in (*guard, call)]
            return
        began, ended = f"began_{index}_", f"ended_{index}_"
        if guard and self._now and not indent:
            begin = [f"{began} = {self._now}", f"if guards_: settle_(); {began} = clock_()"]
        elif guard or indent or not self._now:
            begin = [*guard, f"{began} = clock_()"]
        else:
            begin, began = [], self._now
        self.lines += [indent + line for line in (*begin, call, f"{ended} = clock_()")]
        self.inline.append(connection)
        self.moments += [began, ended]
        self._now = ended


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

    def __getattr__(self, name: str) -> Emit | None:  # for type checkers: every declared site is set by its Site
        reason = did_you_mean(name, vars(self)) or " is declared on this bus."
        raise UnknownSiteError(f"emitter of {name!r}: no such site{reason}")


class Emissions:
    """The compiled emissions of one site, by sender and payload, and the ``Emitters`` that hold some of them.

    Args:
        site: The site's name.
        payload: What an emission may carry; None for anything.
        table: The site's connections; :meth:`changed` must be called when they change.
        context: What it shares with the other sites.
    """

    def __init__(self, site: str, payload: tuple[str, ...] | None, table: Table, context: Context) -> None:
        self.site, self.payload, self.table, self.context = site, payload, table, context
        self.muted = False
        self._plans: dict[tuple[Hashable, tuple[str, ...]], Emit] = {}
        self._emitters: weakref.WeakSet[Emitters] = weakref.WeakSet()

    def plan(self, sender_id: Hashable, given: tuple[str, ...]) -> Emit:
        """``emit(sender, <given>)`` for one sender, compiled at its first use.

        Raises:
            SignatureError: *given* has a name that it can't have, or lacks one that a receiver needs.
        """
        plans = self._plans  # first: what another thread changes from here on makes these of no further use
        barriers = self.context.barriers_at(self.site, sender_id)
        if not barriers and not self.table.has_sender(sender_id):
            sender_id = self.table.anybody
        key = (sender_id, given)
        plan = plans.get(key)
        if plan is None:
            plan = plans[key] = self._compiled(sender_id, given, barriers)
        return plan

    def _compiled(
        self, sender_id: Hashable, given: tuple[str, ...], barriers: Sequence[str], ledger: Ledger | None = None
    ) -> Emit:
        self.check(given)
        _check_parameters(self.site, given)
        connections = [] if self.muted else self.table.reached_by(sender_id)
        return compile_plan(self.site, connections, given, self.context, barriers, ledger)

    def check(self, given: Iterable[str]) -> None:
        """Refuse a payload with a name that the site doesn't declare."""
        for name in given:
            if self.payload is not None and name not in self.payload:
                raise SignatureError(
                    f"an emission of {self.site!r} carries {name!r}; the site declares "
                    f"{listed(self.payload)}{did_you_mean(name, self.payload) or '.'}"
                )

    def due(self, sender_id: Hashable, given: Collection[str]) -> list[Connection]:
        """The connections that an emission reaches, in order, none of which lacks a payload."""
        self.check(given)
        connections = [] if self.muted else self.table.reached_by(sender_id)
        for connection in connections:
            check_wanted(connection, given)
        return connections

    def attach(self, emitters: Emitters) -> None:
        """Keep the attribute of *emitters* that has the site's name current."""
        self._emitters.add(emitters)
        self._refresh(emitters)

    def changed(self) -> None:
        """Forget what was compiled; called, as :meth:`attach` is, by one thread at a time."""
        self._plans = {}  # not cleared: another thread may be about to put in what it has compiled of the old ones
        for emitters in self._emitters:
            self._refresh(emitters)

    def _refresh(self, emitters: Emitters) -> None:
        sender_id = emitters._sender_id  # noqa: SLF001  # every public name may be a site's
        quiet = (self.muted or not self.table.reaches(sender_id)) and not self.context.barriers_at(self.site, sender_id)
        emitters.__dict__[self.site] = None if quiet else self._stub(emitters, sender_id)

    def _stub(self, emitters: Emitters, sender_id: Hashable) -> Emit:
        """Compile at the first emission, not at each of the many connections before it."""
        owner = weakref.ref(emitters)  # the emitters hold the stub, which must not hold them

        def first(sender: Any, /, *ordered: Any, **payload: Any) -> None:
            bound = owner()
            given = tuple(payload) if self.payload is None else self.payload
            ledger = None if bound is None else bound._ledger  # noqa: SLF001  # as above
            if ledger is None:
                plan = self.plan(sender_id, given)
            else:
                plan = self._compiled(sender_id, given, self.context.barriers_at(self.site, sender_id), ledger)
            if self.payload is not None and bound is not None and bound.__dict__[self.site] is first:
                bound.__dict__[self.site] = plan  # nothing is called in between, so no other thread gets in between
            plan(sender, *ordered, **payload)

        return first


def checked_payload(site: str, payload: Iterable[str]) -> tuple[str, ...]:
    """The names of a payload that is being declared.

    Raises:
        OptionError: a name that can't be one, or is there twice.
    """
    if isinstance(payload, str):
        raise OptionError(f"site {site!r} with payload={payload!r}: give a tuple of names, as in ({payload!r},).")
    names = tuple(payload)
    for name in names:
        if not _is_parameter(name) or name in ("runner", "sender"):
            raise OptionError(
                f"site {site!r} with payload name {name!r}: it must be an identifier that doesn't end in an "
                "underscore and is not 'runner' or 'sender', which every receiver may have anyway."
            )
        if names.count(name) > 1:
            raise OptionError(f"site {site!r} with payload name {name!r} twice: name each once.")
    return names


def _is_parameter(name: object) -> bool:
    """Whether it can name a parameter, and is none that generated code uses itself."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and not name.endswith("_")


def _check_parameters(site: str, given: Iterable[str]) -> None:
    for name in given:
        if not _is_parameter(name):
            raise SignatureError(
                f"an emission of {site!r} carries {name!r}; a payload's name is an identifier that doesn't end in an "
                "underscore."
            )


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of a plan."""

    site: str
    priority: int
    receiver: str
    location: str
    filters: str
    lane: str = ""
    barrier: str = ""

    @property
    def described(self) -> str:
        """The filters, and where it runs, in words."""
        until = f", waited for at {self.barrier}" if self.barrier else ""
        return ", ".join(part for part in (self.filters, f"in lane {self.lane!r}{until}" if self.lane else "") if part)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs where, in the order in which it runs; ``str()`` is a table by site."""

    rows: tuple[PlanRow, ...]

    @classmethod
    def of(cls, connections: Iterable[Connection]) -> Plan:
        """The plan of *connections*, which come site by site and in order."""
        return cls(
            tuple(
                PlanRow(
                    site=c.site,
                    priority=c.options.priority,
                    receiver=c.name,
                    location=c.location,
                    filters=c.options.described(c.unit),
                    lane=c.task.lane if c.task is not None else "",
                    barrier=c.barrier,
                )
                for c in connections
            )
        )

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max((len(row.receiver) for row in self.rows), default=0)
        place = max((len(row.location) for row in self.rows), default=0)
        lines: list[str] = []
        for index, row in enumerate(self.rows):
            if not index or row.site != self.rows[index - 1].site:
                lines.append(row.site)
            text = f"  {row.priority:>3} {row.receiver:<{width}}  {row.location:<{place}}  {row.described}"
            lines.append(text.rstrip())
        return "\n".join(lines)

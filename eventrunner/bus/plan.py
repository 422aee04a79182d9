"""Plans: the ordered calls of one site for one sender, compiled to a function.

The generated function has the payload as named parameters and one line per receiver, so an emission costs its calls
and nothing else: no loop, no unpacking, no lookup. All ways to emit are compiled here, from the same lines: who is due,
who waits for a copy, and what is offloaded is decided once. Which receiver failed is read off the traceback's line
number, so that nothing is written down while all goes well.
"""

from __future__ import annotations

import functools
import keyword
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventrunner.bus.connection import Connection, Table, annotate, check_result, check_wanted
from eventrunner.bus.freeze import Context
from eventrunner.bus.ledger import Ledger, Samples
from eventrunner.bus.sites import Unit
from eventrunner.errors import OptionError, SignatureError, UnknownSiteError, did_you_mean, listed

__all__ = [
    "EMIT",
    "EMIT_ALL",
    "SEND",
    "SEND_ASYNC",
    "Emissions",
    "Emit",
    "Emitters",
    "Mode",
    "Plan",
    "PlanRow",
    "checked_payload",
    "compile_plan",
]

Emit = Callable[..., Any]

_SENDER = "sender_"
_MISSING = object()  # in the place of what an emission doesn't carry


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to emit.

    Attributes:
        name: The method of a ``Site``.
        collects: The list that is made and returned: of results, of errors, or none.
        wrapper: The argument that turns a receiver of the other kind, plain or ``async def``, into one that can be
            called; empty where there is no such argument.
    """

    name: str
    collects: str = ""
    wrapper: str = ""

    @property
    def extra(self) -> str:
        """What a plan's function takes behind the sender."""
        return ", wrapper_" if self.wrapper else ""


EMIT, EMIT_ALL = Mode("emit"), Mode("emit_all", "errors_")
SEND, SEND_ASYNC = Mode("send", "results_", "_async_wrapper"), Mode("send_async", "results_", "_sync_wrapper")
_RESERVED = ("runner", "sender", SEND.wrapper, SEND_ASYNC.wrapper)


def compile_plan(
    site: str,
    connections: Sequence[Connection],
    given: Sequence[str],
    context: Context,
    barriers: Sequence[str] = (),
    mode: Mode = EMIT,
    samples: Samples | None = None,
    whole: bool = False,
) -> Emit:
    """Build ``emit(sender, <given>)`` that waits for the lanes *barriers* and then calls *connections* in order.

    In the modes that have a wrapper it comes behind the sender.

    Args:
        site: The site's name.
        connections: Who is called, in order.
        given: The payload that an emission carries.
        context: What the site shares with others.
        barriers: The lanes that are waited for.
        mode: The way to emit.
        samples: Where the time of each inline call goes.
        whole: The time of all of them together goes there instead.

    Raises:
        SignatureError: a receiver can't do without something that is not *given*.
    """
    namespace: dict[str, Any] = {"guards_": context.guards, "wait_for_copies_": context.wait_for_copies}
    namespace.update(wait_=context.wait, refuse_=_refuse_kind)
    source = _Source(namespace, given, context, mode, None if samples is None else samples.clock, whole)
    for lane in barriers:
        source.attempt([f"wait_({_SENDER}, {lane!r}, {site!r})"])
    if whole:
        source.lines.append("began_ = clock_()")
    for index, connection in enumerate(connections):
        check_wanted(connection, given)
        source.add(index, connection)
    if samples is not None:
        source.take(samples)
    if mode.collects:
        source.lines.append(f"return {mode.collects}")
    found = "locals()" if source.moments else "None"
    lines = [
        f"{'async ' if mode is SEND_ASYNC else ''}def emit({', '.join((_SENDER + mode.extra, '/', *given))}):",
        "    try:",
        *("        " + line for line in source.lines or ["pass"]),
        "    except BaseException as error_:",
        f"        failed_(error_, {_SENDER}, {found})",
        "        raise",
    ]

    # Not the source, whose namespace will have this function in it.
    owners, moments, returns = source.owners, source.moments, source.returns

    def failed(error: BaseException, sender: Any, found: Mapping[str, Any] | None) -> BaseException:
        # The first traceback entry is the generated frame: it was reached from there, and nothing is below it yet.
        line = error.__traceback__.tb_lineno if error.__traceback__ else 0
        if samples is not None and whole:
            samples.returned([receiver for receiver, at in returns.items() if at < line])
        elif samples is not None and found is not None:
            samples.timed.append([found.get(moment) for moment in moments])
            samples.aggregate()
        if line in owners:
            annotate(error, owners[line], sender)
        return error

    namespace["failed_"] = failed
    exec(compile("\n".join(lines), f"<receivers of {site}>", "exec"), namespace)
    emit: Emit = namespace.pop("emit")  # left there, a cycle would keep receivers until a collection
    emit.__qualname__ = f"{site}.{mode.name}"  # what a TypeError about its arguments calls it
    return emit


class _Source:
    """The source lines of a plan, as it grows.

    Attributes:
        lines: The lines, without the indentation of a function's body.
        owners: Whose each line is, by its number in the function, whose body begins at the third.
        moments: The variables of when each inline receiver began and ended.
        returns: In which line each of those that are called each time is, where they are timed as a whole.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        given: Sequence[str],
        context: Context,
        mode: Mode,
        clock: Callable[[], float] | None,
        whole: bool,
    ) -> None:
        self.namespace, self.given, self.context, self.mode = namespace, given, context, mode
        self.timed, self.whole = clock is not None and not whole, whole
        self.lines: list[str] = [f"{mode.collects} = []"] if mode.collects else []
        self.owners: dict[int, Connection] = {}
        self.moments: list[str] = []
        self.returns: dict[int, int] = {}
        self._inline = 0  # receivers, so far
        self._now = ""  # the variable that has the present moment
        if clock is not None:
            namespace.update(clock_=clock, waited_=functools.partial(_waited, context.wait_for_copies, clock))

    def attempt(self, lines: list[str]) -> None:
        """Add lines after which the emission goes on where they fail, in the mode that is for that."""
        if self.mode is EMIT_ALL:
            rescue = f"errors_.append(failed_(error_, {_SENDER}, None))"
            lines = ["try:", *("    " + line for line in lines), "except BaseException as error_:", "    " + rescue]
        self.lines += lines

    def add(self, index: int, connection: Connection) -> None:
        """Call *connection* after those that were added before."""
        if self.mode.wrapper and self._is_of_other_kind(connection):
            self.lines.append(f"if wrapper_ is None: refuse_({connection.awaits})")
        before = len(self.lines)
        offloads = connection.task is not None and not self.mode.wrapper  # who wants results calls it
        setup, tests = self._condition(index, connection)
        lines = self._offload(index, connection) if offloads else self._call(index, connection, bool(tests))
        if tests:
            lines = [*setup, f"if {' and '.join(tests)}:", *("    " + line for line in lines)]
        if self.whole and (tests or offloads):
            lines = ["apart_ = clock_()", *lines, "began_ += clock_() - apart_"]
        self.attempt(lines)
        if tests or offloads:
            self._now = ""  # what else was done has taken time, too
        self.owners.update(dict.fromkeys(range(before + 3, len(self.lines) + 3), connection))

    def _is_of_other_kind(self, connection: Connection) -> bool:
        return connection.awaits is (self.mode is SEND)

    def _condition(self, index: int, connection: Connection) -> tuple[list[str], list[str]]:
        """Return the lines that come first, and on what it depends whether it is called."""
        setup, tests = [], []
        if connection.weak:
            self.namespace[f"reference_{index}_"] = connection.target
            setup.append(f"receiver_{index}_ = reference_{index}_()")
            tests.append(f"receiver_{index}_ is not None")
        else:
            self.namespace[f"receiver_{index}_"] = connection.target
        if connection.filter is not None:
            self.namespace[f"passes_{index}_"] = connection.filter.passes
            tests.append(f"passes_{index}_({_SENDER})")
        if connection.options.when is not None:
            self.namespace[f"when_{index}_"] = connection.options.when
            tests.append(connection.read(self.given)[1].source(f"when_{index}_", _SENDER, self.given))
        if tests and self.timed and connection.task is None:
            setup.append(f"began_{index}_ = ended_{index}_ = None")
        return setup, tests

    def _fired(self, index: int, connection: Connection) -> list[str]:
        if connection.filter is None:
            return []
        self.namespace[f"fired_{index}_"] = connection.filter.fired
        return [f"fired_{index}_({_SENDER})"]

    def _offload(self, index: int, connection: Connection) -> list[str]:
        self.namespace[f"receiver_{index}_"] = self.context.offloader(connection)
        call = connection.read(self.given)[0].source(f"receiver_{index}_", _SENDER, self.given, f"{_SENDER}, ")
        return [*self._fired(index, connection), call]

    def _call(self, index: int, connection: Connection, is_conditional: bool) -> list[str]:
        call, fired = self._source(index, connection), self._fired(index, connection)
        guard = ["if guards_: wait_for_copies_()"] if connection.options.may_write else []
        if self.whole:
            return self._counted(call, [*fired, *guard], is_conditional)
        if not self.timed:
            return [*fired, *guard, call]
        began, ended = f"began_{index}_", f"ended_{index}_"
        if guard and self._now and not is_conditional:
            begin = [f"{began} = {self._now}", f"if guards_: wait_for_copies_(); {began} = clock_()"]
        elif guard or is_conditional or not self._now:
            begin = [*fired, *guard, f"{began} = clock_()"]
        else:
            begin, began = [], self._now
        self.moments += [began, ended]
        self._now = ended
        return [*begin, call, f"{ended} = clock_()"]

    def _counted(self, call: str, before: list[str], is_conditional: bool) -> list[str]:
        """Return a call in an emission that is timed as a whole; a conditional one is timed for itself."""
        receiver, self._inline = self._inline, self._inline + 1
        if is_conditional:
            return [*before, "now_ = clock_()", call, f"hit_(({receiver}, clock_() - now_))"]
        lines = ["if guards_: began_ = waited_(began_)", call] if before else [call]
        self.returns[receiver] = len(self.lines) + len(lines) + 2
        return lines

    def take(self, samples: Samples) -> None:
        """Hand over what was timed."""
        taken = samples.whole if self.whole else samples.timed
        self.namespace.update(taken_=taken, take_=taken.append, hit_=samples.hits.append, turn_=samples.turn)
        what = "clock_() - began_" if self.whole else f"({', '.join(self.moments)})"
        self.lines += [f"take_({what})", f"if len(taken_) >= {samples.size(self.whole)}: turn_()"]

    def _source(self, index: int, connection: Connection) -> str:
        """Return the call itself, and what becomes of its result, as source text."""
        receiver, wants, shortcut = f"receiver_{index}_", connection.read(self.given)[0], connection.shortcut
        if self.mode.wrapper:
            function = f"wrapper_({receiver})" if self._is_of_other_kind(connection) else receiver
            wait = "await " if self.mode is SEND_ASYNC else ""
            return f"results_.append(({receiver}, {wait}{wants.source(function, _SENDER, self.given)}))"
        call = wants.source(receiver, _SENDER, self.given)
        if shortcut is not None and shortcut[1] == tuple(self.given):
            self.namespace[receiver] = shortcut[0]
            call = f"{receiver}({', '.join((_SENDER, *self.given, repr(shortcut[2])))})"
        self.namespace[f"check_{index}_"] = functools.partial(check_result, connection)
        return f"if (result_ := {call}) is not None: check_{index}_(result_)"


def _waited(wait: Callable[[], None], clock: Callable[[], float], began: float) -> float:
    """Wait for copies; return when what began before would have begun without."""
    now = clock()
    wait()
    return began + clock() - now


def _refuse_kind(awaits: bool) -> None:
    raise RuntimeError(f"Cannot send to a {'' if awaits else 'non-'}coroutine function.")


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
        f"def entry({_SENDER}=None, /, *, {wrapper}{''.join(f'{name}=missing_, ' for name in payload)}**more_):",
        f"    if {' or '.join(('more_', *(f'{name} is missing_' for name in payload)))}:",
        f"        return others_({_SENDER}{extra}, {carried})",
        "    plans_ = way_.plans",
        f"    return plans_.get(id({_SENDER}), plans_.anybody)({', '.join((_SENDER + extra, *payload))})",
    ]
    if not wrapper and not payload:
        lines[0] = f"def entry({_SENDER}=None, /, **more_):"
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
        _check_parameters(self.site, given)
        reached = self._reached(sender_id)
        return compile_plan(self.site, reached, given, self.context, barriers, mode, samples, whole)

    def _reached(self, sender_id: Hashable) -> list[Connection]:
        return [] if self.muted else self.table.reached_by(sender_id)

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
        if quiet and self.context.has_barriers:
            quiet = not self.context.barriers_at(self.site, sender_id)
        emitters._turns.pop(self.site, None)  # noqa: SLF001
        if quiet:
            emitters.__dict__[self.site] = None
        elif type(emitters.__dict__.get(self.site)) is not _Uncompiled:
            emitters.__dict__[self.site] = _Uncompiled(self, emitters)

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


def checked_payload(site: str, payload: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a payload that is being declared.

    Raises:
        OptionError: a name that can't be one, or is there twice.
    """
    if isinstance(payload, str):
        raise OptionError(f"site {site!r} with payload={payload!r}: give a tuple of names, as in ({payload!r},).")
    names = tuple(payload)
    for name in names:
        if not _is_parameter(name) or name in _RESERVED:
            raise OptionError(
                f"site {site!r} with payload name {name!r}: it must be an identifier that doesn't end in an "
                "underscore and is not 'runner' or 'sender', which every receiver may have anyway."
            )
        if names.count(name) > 1:
            raise OptionError(f"site {site!r} with payload name {name!r} twice: name each once.")
    return names


def _is_parameter(name: object) -> bool:
    """Return whether it can name a parameter, and is none that generated code uses itself."""
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
        """Return the plan of *connections*, which come site by site and in order."""
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

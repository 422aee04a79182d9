"""Plans: the ordered calls of one site for one sender, compiled to a function.

The generated function has the payload as named parameters and one line per receiver, so an emission costs its calls
and nothing else: no loop, no unpacking, no lookup. All ways to emit are compiled here, from the same lines: who is due,
who waits for a copy, and what is offloaded is decided once. Which receiver failed is read off the traceback's line
number, so that nothing is written down while all goes well.
"""

from __future__ import annotations

import functools
import keyword
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventrunner.bus.connection import Connection, annotate, check_result, check_wanted
from eventrunner.bus.freeze import Context
from eventrunner.bus.ledger import Samples
from eventrunner.errors import OptionError, SignatureError

__all__ = [
    "EMIT",
    "EMIT_ALL",
    "SEND",
    "SENDER_NAME",
    "SEND_ASYNC",
    "Emit",
    "Mode",
    "check_parameters",
    "checked_payload",
    "compile_plan",
]

Emit = Callable[..., Any]

SENDER_NAME = "sender_"
"""What generated functions call the sender."""


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
        source.attempt([f"wait_({SENDER_NAME}, {lane!r}, {site!r})"])
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
        f"{'async ' if mode is SEND_ASYNC else ''}def emit({', '.join((SENDER_NAME + mode.extra, '/', *given))}):",
        "    try:",
        *("        " + line for line in source.lines or ["pass"]),
        "    except BaseException as error_:",
        f"        failed_(error_, {SENDER_NAME}, {found})",
        "        raise",
    ]

    namespace["failed_"] = _failed(source, samples)
    exec(compile("\n".join(lines), f"<receivers of {site}>", "exec"), namespace)
    emit: Emit = namespace.pop("emit")  # left there, a cycle would keep receivers until a collection
    emit.__qualname__ = f"{site}.{mode.name}"  # what a TypeError about its arguments calls it
    return emit


def _failed(source: _Source, samples: Samples | None) -> Callable[..., BaseException]:
    """Return what a plan calls where a receiver fails: it notes on the error whose it is, and counts what returned."""
    # Not the source itself, whose namespace will have this function in it.
    owners, moments, returns, whole = source.owners, source.moments, source.returns, source.whole

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

    return failed


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
            rescue = f"errors_.append(failed_(error_, {SENDER_NAME}, None))"
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
            tests.append(f"passes_{index}_({SENDER_NAME})")
        if connection.options.when is not None:
            self.namespace[f"when_{index}_"] = connection.options.when
            tests.append(connection.read(self.given)[1].source(f"when_{index}_", SENDER_NAME, self.given))
        if tests and self.timed and connection.task is None:
            setup.append(f"began_{index}_ = ended_{index}_ = None")
        return setup, tests

    def _fired(self, index: int, connection: Connection) -> list[str]:
        if connection.filter is None:
            return []
        self.namespace[f"fired_{index}_"] = connection.filter.fired
        return [f"fired_{index}_({SENDER_NAME})"]

    def _offload(self, index: int, connection: Connection) -> list[str]:
        self.namespace[f"receiver_{index}_"] = self.context.offloader(connection)
        call = connection.read(self.given)[0].source(f"receiver_{index}_", SENDER_NAME, self.given, f"{SENDER_NAME}, ")
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
        guard, function = self.context.guard_of(connection), receiver
        if guard is not None:
            self.namespace[f"guard_{index}_"] = guard
            function = f"guard_{index}_({receiver})"
        if self.mode.wrapper:
            function = f"wrapper_({function})" if self._is_of_other_kind(connection) else function
            wait = "await " if self.mode is SEND_ASYNC else ""
            return f"results_.append(({receiver}, {wait}{wants.source(function, SENDER_NAME, self.given)}))"
        call = wants.source(function, SENDER_NAME, self.given)
        if shortcut is not None and shortcut[1] == tuple(self.given):
            self.namespace[receiver] = shortcut[0]
            call = f"{function}({', '.join((SENDER_NAME, *self.given, repr(shortcut[2])))})"
        self.namespace[f"check_{index}_"] = functools.partial(check_result, connection)
        return f"if (result_ := {call}) is not None: check_{index}_(result_)"


def _waited(wait: Callable[[], None], clock: Callable[[], float], began: float) -> float:
    """Wait for copies; return when what began before would have begun without."""
    now = clock()
    wait()
    return began + clock() - now


def _refuse_kind(awaits: bool) -> None:
    raise RuntimeError(f"Cannot send to a {'' if awaits else 'non-'}coroutine function.")


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


def check_parameters(site: str, given: Iterable[str]) -> None:
    """Refuse an emission that carries a name which can't be a parameter's.

    Raises:
        SignatureError: *given* has such a name.
    """
    for name in given:
        if not _is_parameter(name):
            raise SignatureError(
                f"an emission of {site!r} carries {name!r}; a payload's name is an identifier that doesn't end in an "
                "underscore."
            )

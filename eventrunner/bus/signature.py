"""What a receiver asks for, read once from its signature when it connects.

A receiver names what it wants: ``def f(runner, outputs)``. The sender goes to the parameter called ``runner`` or
``sender``, or else to a first positional parameter whose name is no payload's, of whatever site; a payload goes to the
parameter of its name; ``**kwargs`` takes the rest of the payload, never the sender. Left alone are other parameters
with a default (the idiom ``i=i``), and what ``functools.partial`` has bound.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

from eventrunner.errors import SignatureError, did_you_mean, listed
from eventrunner.lanes.task import is_async

__all__ = [
    "SENDER",
    "Receiver",
    "Wants",
    "is_async",
    "is_plain",
    "label",
    "read_wants",
    "short_path",
    "where",
    "working_directory",
]

Receiver = Callable[..., Any]

SENDER = ""
"""Stands for the sender in :attr:`Wants.positional`."""

_SENDER_NAMES = ("runner", "sender")
_PACKAGE_PARENT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))
# A misspelt payload name is told from a name of the receiver's own by nearness, in the two places where it may have
# one. In the second, print's "sep" is no slip of "step".
_NEAR_FIRST = 0.75
_NEAR_DEFAULT = 0.86


@dataclass(frozen=True, slots=True)
class Wants:
    """The arguments of a receiver's call; by default the sender and the whole payload.

    ``positional`` is what goes by position as far as all before it is given, ``SENDER`` for the sender; ``keyword`` the
    keyword that takes the sender where it doesn't go so, and ``names`` the payload names of which that is true.
    ``required`` are those that have no default, ``fixed`` those that must not be passed even where ``rest``, a
    ``**kwargs``, would take them.
    """

    positional: tuple[str, ...] = (SENDER,)
    keyword: str | None = None
    names: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    rest: bool = True

    def missing(self, given: Iterable[str]) -> frozenset[str]:
        """Return the names that the receiver can't do without and *given* lacks."""
        return self.required.difference(given)

    def source(self, function: str, sender: str, given: Collection[str], before: str = "") -> str:
        """Return the source text of one call of *function*, with *before* in front of its arguments."""
        parts = [sender if name == SENDER else name for name in self._by_position(given)]
        parts += [f"{name}={name}" for name in self._by_keyword(given)]
        if self.keyword is not None and SENDER not in self._by_position(given):
            parts.append(f"{self.keyword}={sender}")
        return f"{function}({before}{', '.join(parts)})"

    def _by_position(self, given: Collection[str]) -> tuple[str, ...]:
        # What comes after a name that isn't given would be taken for it; such parameters have defaults.
        return tuple(itertools.takewhile(lambda name: name == SENDER or name in given, self.positional))

    def _by_keyword(self, given: Collection[str]) -> list[str]:
        rest = [n for n in given if n in self.names or (self.rest and n not in self.fixed and n not in self.positional)]
        placed = self._by_position(given)
        return [name for name in rest if name not in placed]


def read_wants(receiver: Receiver, site: str, payload: tuple[str, ...], elsewhere: Collection[str] = ()) -> Wants:
    """Read what *receiver* wants of the *payload* of *site*.

    A wrapped function is read by what it wraps, and one whose signature can't be read (some built-ins) gets all. A
    parameter that has the name of something *elsewhere*, in another site's payload, isn't meant for the sender.

    Raises:
        SignatureError: it asks for something that the site doesn't offer.
    """
    try:
        parameters = list(inspect.signature(receiver).parameters.values())
    except (TypeError, ValueError):
        return Wants()
    return _Reader(receiver, site, payload, elsewhere).read(parameters)


class _Reader:
    """Sorts the parameters of one receiver."""

    def __init__(self, receiver: Receiver, site: str, payload: tuple[str, ...], elsewhere: Collection[str]) -> None:
        self.receiver, self.site, self.payload, self.elsewhere = receiver, site, payload, elsewhere
        self.fixed = frozenset(receiver.keywords) if isinstance(receiver, functools.partial) else frozenset[str]()
        self.unclaimed: frozenset[str] = frozenset()
        self.positional: list[str] = []
        self.keyword: str | None = None
        self.names: set[str] = set()
        self.required: set[str] = set()
        self.rest = False
        self.in_order = is_plain(receiver)  # Python calls it faster by position, and so far all parameters can go so

    def read(self, parameters: list[inspect.Parameter]) -> Wants:
        parameters = [parameter for parameter in parameters if parameter.name not in self.fixed]
        self.unclaimed = frozenset(self.payload).difference(parameter.name for parameter in parameters)
        sender = self._sender(parameters)
        for parameter in parameters:
            if parameter is sender:
                self._pass_sender(parameter, first=parameter is parameters[0])
            else:
                self._sort(parameter)
        names, required = frozenset(self.names), frozenset(self.required)
        return Wants(tuple(self.positional), self.keyword, names, required, self.fixed, self.rest)

    def _sender(self, parameters: list[inspect.Parameter]) -> inspect.Parameter | None:
        named = [p for p in parameters if p.name in _SENDER_NAMES and p.name not in self.payload]
        named = [p for p in named if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if named or not parameters:
            return named[0] if named else None
        first = parameters[0]
        if first.kind is first.VAR_POSITIONAL:
            return first
        by_position = first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
        known = first.name in self.payload or first.name in self.elsewhere
        own = not known and not self._near(first.name, _NEAR_FIRST)
        return first if by_position and own and first.default is first.empty else None

    def _pass_sender(self, parameter: inspect.Parameter, first: bool) -> None:
        in_order = first or self.in_order
        if parameter.kind is parameter.POSITIONAL_ONLY or (in_order and parameter.kind is not parameter.KEYWORD_ONLY):
            self.positional.append(SENDER)
        if parameter.kind is parameter.KEYWORD_ONLY or (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not first
        ):
            self.keyword = parameter.name

    def _sort(self, parameter: inspect.Parameter) -> None:
        if parameter.kind is parameter.VAR_KEYWORD:
            self.rest = True
        elif parameter.kind is parameter.VAR_POSITIONAL:
            return
        elif parameter.name in self.payload:
            self._take(parameter)
        elif parameter.default is parameter.empty or self._near(parameter.name, _NEAR_DEFAULT):
            raise self._unknown(parameter.name)
        else:
            self.in_order = False
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self.positional.append(parameter.name)  # never given, so that nothing behind it takes its place

    def _take(self, parameter: inspect.Parameter) -> None:
        if parameter.kind is not parameter.POSITIONAL_ONLY:
            self.names.add(parameter.name)
            self.in_order = self.in_order and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        if parameter.kind is parameter.POSITIONAL_ONLY or self.in_order:
            self.positional.append(parameter.name)
        if parameter.default is parameter.empty:
            self.required.add(parameter.name)

    def _near(self, name: str, cutoff: float) -> str:
        return did_you_mean(name, self.unclaimed, cutoff)

    def _unknown(self, name: str) -> SignatureError:
        offers = ("runner", *self.payload)
        return SignatureError(
            f"{label(self.receiver)} in {where(self.receiver)} asks for {name!r}; "
            f"{self.site!r} offers {listed(offers)}{did_you_mean(name, offers) or '.'}"
        )


def is_plain(receiver: Receiver) -> bool:
    """Return whether the signature is that of the very code that a call reaches: a wrapper might take keywords only."""
    function = receiver.__func__ if type(receiver) is MethodType else receiver
    return type(function) is FunctionType and vars(function).keys().isdisjoint(("__wrapped__", "__signature__"))


def _innermost(receiver: Receiver) -> Any:
    """Return the function behind partials, wrappers, bound methods and callable objects."""
    found: Any = receiver
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found)
    found = getattr(found, "__func__", found)
    if not hasattr(found, "__code__") and not isinstance(found, type):
        found = type(found).__call__
    return inspect.unwrap(found)


def label(receiver: Receiver) -> str:
    """Return a short name of a receiver for messages and plans: the function's, or the class's of a callable object."""
    owner = getattr(receiver, "__self__", None)
    if owner is not None and not inspect.ismodule(owner):
        cls = owner if isinstance(owner, type) else type(owner)
        return f"{cls.__name__}.{getattr(receiver, '__name__', '?')}"
    while isinstance(receiver, functools.partial):
        receiver = receiver.func
    name: str = getattr(receiver, "__qualname__", type(receiver).__name__)
    return name.rpartition("<locals>.")[2]


def where(receiver: Receiver) -> str:
    """``file:line`` of a receiver's code, as short as it is unambiguous; the module's name for a built-in."""
    code = getattr(_innermost(receiver), "__code__", None)
    if code is None:
        return str(getattr(receiver, "__module__", None) or type(receiver).__module__)
    return f"{short_path(code.co_filename)}:{code.co_firstlineno}"


def short_path(filename: str) -> str:
    """Return a path relative to the package's folder or the working directory, if it lies below one of them."""
    for base in (_PACKAGE_PARENT, working_directory()):
        if filename.startswith(base + os.sep):
            return filename[len(base) + 1 :]
    return filename


def working_directory() -> str:
    """Return it; that of the package where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return _PACKAGE_PARENT

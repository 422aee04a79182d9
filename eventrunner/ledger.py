"""The ledger: how often each inline receiver was called, and how long that took."""

from __future__ import annotations

import itertools
import operator
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eventrunner.connection import Connection

__all__ = ["LAPS", "Entry", "InlineSpan", "Laps", "Ledger"]

LAPS = 64
"""So many emissions of a plan are kept as they were before they are added up."""
_LONGEST = 200_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One receiver at one site: its calls that returned, and their seconds."""

    name: str
    location: str
    site: str
    calls: int
    seconds: float


InlineSpan = tuple[str, str, float, float]
"""Receiver, site, and when the call began and ended, by ``time.perf_counter``."""

Lap = Sequence[float | None]
"""One emission: when each inline receiver of the plan began and ended; None where it wasn't called."""


class _Cell:
    """The sums of one receiver at one site."""

    def __init__(self, name: str, location: str, site: str) -> None:
        self.name, self.location, self.site = name, location, site
        self.calls, self.seconds = 0, 0.0


class Laps:
    """The latest emissions of one plan.

    To append a tuple of the moments, of which the clock is read once between two receivers, is cheaper than to add to
    two sums a receiver; sums are made of many emissions at once.
    """

    def __init__(self, cells: Sequence[_Cell], ledger: Ledger) -> None:
        self.taken: list[Lap] = []
        self._cells, self._ledger = cells, ledger

    def add_up(self) -> None:
        """Add what was taken to its receivers' accounts."""
        with self._ledger.adding:  # another thread may be at it, too
            laps = self.taken[:]
            del self.taken[: len(laps)]
            columns: list[Any] = list(zip(*laps, strict=True))
            for cell, began, ended in zip(self._cells, columns[::2], columns[1::2], strict=False):
                self._add(cell, began, ended)

    def _add(self, cell: _Cell, began: Sequence[Any], ended: Sequence[Any]) -> None:
        try:
            seconds = sum(map(operator.sub, ended, began))
        except TypeError:  # it wasn't called each time
            called = [pair for pair in zip(began, ended, strict=True) if pair[1] is not None]
            began, ended = [pair[0] for pair in called], [pair[1] for pair in called]
            seconds = sum(map(operator.sub, ended, began))
        cell.calls += len(ended)
        cell.seconds += seconds
        if self._ledger.spans is not None:
            names = itertools.repeat(cell.name), itertools.repeat(cell.site)
            self._ledger.spans.extend(zip(*names, began, ended, strict=False))

    def __del__(self) -> None:
        self.add_up()  # its plan was compiled anew, and the last emission of this one is over


class Ledger:
    """What the inline receivers of one sender have cost.

    A call costs about a tenth of a microsecond more where it is kept account of. ``spans`` is None unless every
    single call is to be recorded, for a trace; the last 200,000 are kept.
    """

    def __init__(self) -> None:
        self.spans: deque[InlineSpan] | None = None
        self.adding = threading.RLock()  # a collection of garbage may end another plan's laps amid it
        self._cells: dict[tuple[str, str, str], _Cell] = {}
        self._laps: weakref.WeakSet[Laps] = weakref.WeakSet()

    def record(self) -> None:
        """Record every call from now on."""
        self._add_up()
        self.spans = deque(maxlen=_LONGEST) if self.spans is None else self.spans

    def recorded(self) -> list[InlineSpan]:
        """The calls that were recorded, site by site in order."""
        self._add_up()
        return list(self.spans or ())

    def reset(self) -> None:
        """Begin anew."""
        self._add_up()
        for cell in self._cells.values():
            cell.calls, cell.seconds = 0, 0.0
        if self.spans is not None:
            self.spans.clear()

    def laps(self, connections: Sequence[Connection]) -> Laps:
        """What a plan that calls these inline takes its times in."""
        keys = [(each.name, each.location, each.site) for each in connections]
        laps = Laps([self._cells.setdefault(key, _Cell(*key)) for key in keys], self)
        self._laps.add(laps)
        return laps

    def entries(self) -> list[Entry]:
        """The accounts of all receivers that were called, the costliest first."""
        self._add_up()
        called = [Entry(*key, cell.calls, cell.seconds) for key, cell in self._cells.items() if cell.calls]
        return sorted(called, key=lambda entry: -entry.seconds)

    def _add_up(self) -> None:
        for laps in tuple(self._laps):
            laps.add_up()

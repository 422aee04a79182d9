"""The ledger: how often each inline receiver was called, and how long that took.

To read the clock between all receivers costs more than to call them. So at the sites of single iterations most
emissions are timed as a whole, and some of them receiver by receiver; what the others took is divided as it was among
these. As a receiver that works hard now and then does so in emissions that take long, each emission is compared with
those alone that took about as long. Calls are counted exactly.
"""

from __future__ import annotations

import itertools
import math
import operator
import statistics
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eventrunner.bus.connection import Connection

__all__ = ["TIMED", "WHOLE", "Entry", "InlineSpan", "Ledger", "Samples"]

TIMED, WHOLE = 63, 2048
"""So many emissions are timed receiver by receiver, and then so many as a whole; both together are a prime number, so
that no receiver which works hard each so many iterations does so always, or never, in the former."""

_START = 512  # emissions that are timed by receiver before any is as a whole
_USUAL = -1000  # the key of the emissions of usual length, far from those of the long ones
_LONG = 4.0  # times the usual, and an emission is long
_FIRST, _EACH = 8, 16  # long ones that are to be timed by receiver: the first few, and then each so many
_FREE, _EXTRA = 2048, 32  # emissions that may be timed by receiver until there are: so many, and each so many
_MOST_SPANS = 200_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One receiver at one site: its calls that returned, their seconds, and whether these are an estimate."""

    name: str
    location: str
    site: str
    calls: int
    seconds: float
    estimated: bool = False


InlineSpan = tuple[str, str, float, float]
"""Receiver, site, and when the call began and ended, by the ledger's clock."""

Moments = Sequence[Any]
"""One emission: when each inline receiver of the plan began and ended; None where it wasn't called."""


class _Cell:
    """The sums of one receiver at one site."""

    def __init__(self, name: str, location: str, site: str) -> None:
        self.name, self.location, self.site = name, location, site
        self.reset()

    def reset(self) -> None:
        self.calls, self.seconds, self.estimated = 0, 0.0, False


class _Stratum:
    """Emissions that took about as long as each other: how those timed by receiver did, and what the others took."""

    def __init__(self, receivers: Iterable[int]) -> None:
        self.seconds = dict.fromkeys(receivers, 0.0)
        self.timed, self.untimed, self.whole = 0, 0, 0.0

    @property
    def owes(self) -> bool:
        """Whether more of them are to be timed by receiver."""
        return self.timed < min(self.untimed, _FIRST + self.untimed // _EACH)


class Samples:
    """The latest emissions of one plan, and what is known of those before.

    Args:
        cells: The accounts of its inline receivers, in order.
        ledger: Whose accounts they are.
        conditional: Which of the receivers aren't called each time; their calls are all timed.
        switch: Has the next emissions timed by receiver, or as a whole; None where all are timed by receiver.

    Attributes:
        timed: The moments of emissions timed by receiver.
        whole: The seconds of others, without those of conditional receivers.
        hits: Which of these were called in the latter, and their seconds.
    """

    def __init__(
        self,
        cells: Sequence[_Cell],
        ledger: Ledger,
        conditional: Collection[int] = (),
        switch: Callable[[bool], None] | None = None,
    ) -> None:
        self.timed: list[Moments] = []
        self.whole: list[float] = []
        self.hits: list[tuple[int, float]] = []
        self.clock = ledger.clock
        self._cells, self._ledger, self._switch = cells, ledger, switch
        self._always = [index for index in range(len(cells)) if index not in conditional]
        self._strata: dict[int, _Stratum] = {}
        self._limit = math.inf  # what takes longer is long
        self._timed = self._untimed = 0  # emissions

    def turn(self) -> None:
        """Aggregate, and time the next emissions the other way if it is their turn."""
        after_whole = bool(self.whole)
        self.aggregate()
        if self._switch is not None:
            self._switch(after_whole or self._ledger.spans is not None or self._owes)

    def size(self, whole: bool) -> int:
        """How many emissions make a turn."""
        return WHOLE if whole else TIMED

    def record(self) -> None:
        """Have the next emissions timed by receiver, and all as long as the ledger records."""
        if self._switch is not None:
            self._switch(True)

    def returned(self, receivers: Collection[int]) -> None:
        """Count these calls of an emission that failed; their seconds aren't known."""
        with self._ledger.adding:
            for index in receivers:
                self._cells[index].calls += 1

    def aggregate(self) -> None:
        """Add the latest emissions to what is known."""
        with self._ledger.adding:  # another thread may be at it, too
            for key, timed in self._grouped(_taken(self.timed)).items():
                self._add(self._stratum(key), timed)
            whole, hits = _taken(self.whole), _taken(self.hits)
            if whole or hits:
                self._add_whole(whole, hits)

    def estimates(self) -> Iterator[tuple[_Cell, float]]:
        """Yield seconds of receivers in emissions that were timed as a whole."""
        for key, stratum in self._strata.items():
            if stratum.whole:
                for index, share in self._shares(key).items():
                    yield self._cells[index], share * stratum.whole

    def reset(self) -> None:
        """Forget what is known, and learn anew."""
        self._strata.clear()
        self._timed = self._untimed = 0
        self.record()

    def __del__(self) -> None:  # its plan was compiled anew, and the last emission of this one is over
        self.aggregate()
        for cell, seconds in self.estimates():
            cell.seconds += seconds
            cell.estimated = True

    @property
    def _owes(self) -> bool:
        if self._timed < _START:
            return True
        allowed = self._timed < _FREE + self._untimed // _EXTRA
        return allowed and any(stratum.owes for stratum in self._strata.values())

    def _grouped(self, timed: Sequence[Moments]) -> dict[int, Sequence[Moments]]:
        """Emissions timed by receiver, with those together that took about as long."""
        self._timed += len(timed)
        if self._switch is None or not timed:
            return {_USUAL: timed} if timed else {}
        lengths = [sum(_seconds(moments, index) for index in self._always) for moments in timed]
        self._limit = min(self._limit, _LONG * statistics.median(lengths))  # the first of all take longer
        groups: dict[int, list[Moments]] = {}
        for moments, length in zip(timed, lengths, strict=True):
            groups.setdefault(self._key(length), []).append(moments)
        return {**groups}

    def _add(self, stratum: _Stratum, timed: Sequence[Moments]) -> None:
        stratum.timed += len(timed)
        columns = list(zip(*timed, strict=True))
        for index, cell in enumerate(self._cells):
            began, ended = columns[2 * index : 2 * index + 2]
            if None in ended:  # it wasn't called each time
                began = tuple(then for then, now in zip(began, ended, strict=True) if now is not None)
                ended = tuple(now for now in ended if now is not None)
            seconds = sum(map(operator.sub, ended, began))
            if index in stratum.seconds:
                stratum.seconds[index] += seconds
            cell.calls += len(ended)
            cell.seconds += seconds
            if self._ledger.spans is not None:
                names = itertools.repeat(cell.name), itertools.repeat(cell.site)
                self._ledger.spans.extend(zip(*names, began, ended, strict=False))

    def _add_whole(self, whole: Sequence[float], hits: Sequence[tuple[int, float]]) -> None:
        for index in self._always:
            self._cells[index].calls += len(whole)
        for index, seconds in hits:
            self._cells[index].calls += 1
            self._cells[index].seconds += seconds
        long = [seconds for seconds in whole if seconds > self._limit]
        usual = self._stratum(_USUAL)
        usual.untimed += len(whole) - len(long)
        usual.whole += sum(whole) - sum(long)
        for seconds in long:
            stratum = self._stratum(self._key(seconds))
            stratum.untimed += 1
            stratum.whole += seconds
        self._untimed += len(whole)

    def _key(self, seconds: float) -> int:
        """Return that of a stratum: of the usual emissions, or of long ones within a factor of four."""
        return _USUAL if seconds <= self._limit else math.frexp(seconds)[1] // 2

    def _stratum(self, key: int) -> _Stratum:
        found = self._strata.get(key)
        if found is None:
            found = self._strata[key] = _Stratum(self._always)
        return found

    def _shares(self, key: int) -> dict[int, float]:
        """How emissions of a stratum are divided, or those of the nearest one of which some were timed by receiver."""
        known = [each for each, stratum in self._strata.items() if any(stratum.seconds.values())]
        if not known:
            return {}
        seconds = self._strata[min(known, key=lambda each: abs(each - key))].seconds
        total = sum(seconds.values())
        return {index: each / total for index, each in seconds.items()}


def _taken(latest: list[Any]) -> list[Any]:
    """All that is in a list, taken out of it; more may be put in meanwhile."""
    found = latest[:]
    del latest[: len(found)]
    return found


def _seconds(moments: Moments, receiver: int) -> float:
    """Return what an emission took of a receiver: nothing, where one before it failed."""
    began, ended = moments[2 * receiver : 2 * receiver + 2]
    return 0.0 if ended is None else float(ended - began)


class Ledger:
    """What the inline receivers of one sender have cost.

    Args:
        clock: Tells the seconds, from any beginning.

    Attributes:
        spans: None unless every single call is to be recorded, for a trace; the last 200,000 are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.spans: deque[InlineSpan] | None = None
        self.adding = threading.RLock()  # a collection of garbage may end another plan's samples during it
        self._cells: dict[tuple[str, str, str], _Cell] = {}
        self._samples: weakref.WeakSet[Samples] = weakref.WeakSet()

    def record(self) -> None:
        """Record every call from now on."""
        for samples in self._aggregated():
            samples.record()
        self.spans = deque(maxlen=_MOST_SPANS) if self.spans is None else self.spans

    def recorded(self) -> list[InlineSpan]:
        """Return the calls that were recorded, site by site in order."""
        self._aggregated()
        return list(self.spans or ())

    def reset(self) -> None:
        """Begin anew."""
        for samples in self._aggregated():
            samples.reset()
        for cell in self._cells.values():
            cell.reset()
        if self.spans is not None:
            self.spans.clear()

    def samples(
        self,
        connections: Sequence[Connection],
        conditional: Collection[int] = (),
        switch: Callable[[bool], None] | None = None,
    ) -> Samples:
        """Return what a plan that calls these inline takes its times in; see :class:`Samples`."""
        keys = [(each.name, each.location, each.site) for each in connections]
        samples = Samples([self._cells.setdefault(key, _Cell(*key)) for key in keys], self, conditional, switch)
        self._samples.add(samples)
        return samples

    def entries(self) -> list[Entry]:
        """Return the accounts of all receivers that were called, the costliest first."""
        more: defaultdict[_Cell, float] = defaultdict(float)
        for samples in self._aggregated():
            for cell, seconds in samples.estimates():
                more[cell] += seconds
        called = [
            Entry(*key, cell.calls, cell.seconds + more.get(cell, 0.0), cell.estimated or cell in more)
            for key, cell in self._cells.items()
            if cell.calls
        ]
        return sorted(called, key=lambda entry: -entry.seconds)

    def _aggregated(self) -> list[Samples]:
        found = list(self._samples)
        for samples in found:
            samples.aggregate()
        return found

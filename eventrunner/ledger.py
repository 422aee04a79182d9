"""The ledger: how often each inline receiver was called, and how long that took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eventrunner.connection import Connection

__all__ = ["Entry", "InlineSpan", "Ledger"]

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


class Ledger:
    """What the inline receivers of one sender have cost.

    A call costs a tenth of a microsecond more where it is kept account of. ``spans`` is None unless every single call
    is to be recorded, for a trace; the last 200,000 are kept.
    """

    def __init__(self) -> None:
        self.spans: deque[InlineSpan] | None = None
        self._cells: dict[tuple[str, str, str], list[float]] = {}

    def record(self) -> None:
        """Record every call from now on; plans compiled before must be compiled anew."""
        self.spans = deque(maxlen=_LONGEST) if self.spans is None else self.spans

    def reset(self) -> None:
        """Begin anew."""
        for cell in self._cells.values():
            cell[:] = [0, 0.0]
        if self.spans is not None:
            self.spans.clear()

    def timed(self, call: str, index: int, connection: Connection, namespace: dict[str, Any]) -> Iterator[str]:
        """The source lines that make a call and add it to its receiver's account."""
        key = (connection.name, connection.location, connection.site)
        namespace[f"cell_{index}_"] = self._cells.setdefault(key, [0, 0.0])
        namespace["clock_"] = time.perf_counter
        yield "began_ = clock_()"
        yield call
        if self.spans is None:
            yield f"cell_{index}_[1] += clock_() - began_"
        else:
            namespace["spans_"] = self.spans
            yield "ended_ = clock_()"
            yield f"cell_{index}_[1] += ended_ - began_"
            yield f"spans_.append(({connection.name!r}, {connection.site!r}, began_, ended_))"
        yield f"cell_{index}_[0] += 1"

    def entries(self) -> list[Entry]:
        """The accounts of all receivers that were called, the costliest first."""
        called = [Entry(*key, int(calls), seconds) for key, (calls, seconds) in self._cells.items() if calls]
        return sorted(called, key=lambda entry: -entry.seconds)

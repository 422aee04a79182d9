"""Arenas: host memory for the files of a save, kept from one save to the next.

Memory that was written to before is ten times faster to write to than new memory, so an arena is given back to the pool
and never to the system, and its views of the tensors' places are made once for as long as the plan is the same.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eventrunner.checkpoint.image import allocate, memory_of, write_header
from eventrunner.checkpoint.parts import Part, Plan
from eventrunner.errors import LaneTimeoutError, OptionError

__all__ = ["Arena", "Pool"]

_SLACK = 1024 * 1024
_GLANCE = 0.2  # seconds after which who waits looks again for how long


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A part's file in an arena: its bytes, and the places in it as tensors."""

    part: Part
    start: int
    file: memoryview
    targets: list[Tensor]


@dataclass(slots=True, eq=False)
class Arena:
    """One piece of memory, of one user at a time.

    Attributes:
        pinned: Whether devices can copy to it while the host does other things.
        nbytes: Its size.
        targets: The places for the own leaves of the plan that it is ready for, in their order.
    """

    pinned: bool = False
    nbytes: int = 0
    targets: list[Tensor] = field(default_factory=list)
    _memory: Tensor = field(default_factory=_nothing)
    _mapped: list[_Mapped] = field(default_factory=list)

    def holds(self, nbytes: int, pinned: bool) -> bool:
        """Whether so much can be put in it."""
        return self.nbytes >= nbytes and self.pinned >= pinned

    def grow(self, nbytes: int, pinned: bool) -> None:
        """Take new memory in place of the old, a little larger, so that a tree that grows a little still fits."""
        # The old goes first: both together would be twice what is needed.
        self.targets, self._mapped, self._memory, self.nbytes = [], [], _nothing(), 0
        size = nbytes + nbytes // 64 + _SLACK
        self._memory, self.nbytes, self.pinned = allocate(size, pinned), size, pinned

    def prefault(self) -> None:
        """Have the system give all of the memory. It is by one thread and without the GIL."""
        ctypes.memset(self._memory.data_ptr(), 0, self.nbytes)

    def map(self, plan: Plan) -> None:
        """Make the arena ready for a plan; what it has for another stays where both have the same part."""
        wanted = list(zip(plan.parts, plan.starts[:-1], strict=True))
        if [(one.part, one.start) for one in self._mapped] == wanted:
            return
        known = {(one.part, one.start): one for one in self._mapped}
        self._mapped = [known.get(place) or self._map(*place) for place in wanted]
        self.targets = [target for one in self._mapped for target in one.targets]

    def _map(self, part: Part, start: int) -> _Mapped:
        file = self._memory[start : start + part.layout.nbytes]
        if part.specs:
            write_header(file, part.layout)
        return _Mapped(part, start, memory_of(file), list(_targets(file, part)))

    @property
    def files(self) -> dict[str, memoryview]:
        """The bytes of each file that there is."""
        return {mapped.part.file: mapped.file for mapped in self._mapped if mapped.part.specs}


def _targets(file: Tensor, part: Part) -> Iterator[Tensor]:
    for name, spec in part.specs.items():
        place = part.layout.places[name]
        data = file[place : place + spec.nbytes]
        yield data.view(spec.dtype).view(spec.shape)


class Pool:
    """Up to so many arenas, made when there is no free one. Every method may be called in any thread.

    Attributes:
        waits: How often :meth:`acquire` had to wait for an arena.
        waited: How many seconds that took.
        patience: How many seconds it waits at most; None for as long as it takes.
        until: The moment of ``time.perf_counter`` after which nobody waits, who waits already included.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise OptionError(f"arenas={size} leaves no memory to copy to; it takes 1 or more.")
        self.waits, self.waited = 0, 0.0
        self.patience: float | None = None
        self.until = math.inf
        self._size = size
        self._count = 0
        self._free: list[Arena] = []
        self._preparing = False
        self._changed = threading.Condition()

    def acquire(self, nbytes: int, pinned: bool) -> Arena:
        """An arena that holds so much, for the caller alone until it is released.

        Waits if all are in use, and for one that is being prepared.

        Raises:
            LaneTimeoutError: for longer than :attr:`patience`, or beyond :attr:`until`.
        """
        with self._changed:
            if not self._available():
                began = time.perf_counter()
                came = self._wait(began)
                self.waits, self.waited = self.waits + 1, self.waited + time.perf_counter() - began
                if not came:
                    waited = time.perf_counter() - began
                    raise LaneTimeoutError(
                        f"a save waited {waited:.1f} s for the ones before it, which are still being written; find "
                        "what holds up the disk."
                    )
            arena = self._pick(nbytes, pinned)
        try:
            if not arena.holds(nbytes, pinned):
                arena.grow(nbytes, pinned)
        except BaseException:
            self.release(arena)
            raise
        return arena

    def _wait(self, began: float) -> bool:
        """Whether an arena came in time, which a signal's handler may have shortened meanwhile."""
        most = math.inf if self.patience is None else began + self.patience
        while not self._available():
            left = min(most, self.until) - time.perf_counter()
            if left <= 0:
                return False
            self._changed.wait_for(self._available, min(left, _GLANCE))
        return True

    def release(self, arena: Arena) -> None:
        """Let another have the arena."""
        with self._changed:
            self._free.append(arena)
            self._changed.notify_all()

    def prepare(self, nbytes: int, pinned: bool) -> None:
        """See to it that there is an arena that holds so much, with all its pages; nothing if all are in use."""
        with self._changed:
            if not self._available() or any(arena.holds(nbytes, pinned) for arena in self._free):
                return
            arena = self._pick(nbytes, pinned)
            self._preparing = True
        try:
            arena.grow(nbytes, pinned)
            arena.prefault()
        finally:
            self._preparing = False
            self.release(arena)

    def _available(self) -> bool:
        return bool(self._free) or (self._count < self._size and not self._preparing)

    def _pick(self, nbytes: int, pinned: bool) -> Arena:
        """A free one, if it can be one that holds it and of those the last that was released; otherwise a new one."""
        if not self._free:
            self._count += 1
            return Arena()
        best = max(reversed(self._free), key=lambda arena: arena.holds(nbytes, pinned))
        self._free.remove(best)
        return best

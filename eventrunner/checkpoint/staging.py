"""Staging: the bytes of a save's files, whole, in host memory that is laid out as the files are.

Memory that was written to before is ten times faster to write to than new memory, so a buffer is given back to the pool
and never to the system, and its views of the tensors' places are made once for as long as the plan is the same.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.layout import PAGE, Layout, Shaped, entries_of, lay_out, paged
from eventrunner.checkpoint.manifest import TensorEntry
from eventrunner.checkpoint.plan import Encoded, FilePlan, SavePlan
from eventrunner.errors import LaneTimeoutError, OptionError
from eventrunner.lanes.deadline import POLL, Deadline

__all__ = ["BufferPool", "StagedCheckpoint", "StagingBuffer", "allocate", "memory_of", "stage"]

_HUGE = 2 * 1024 * 1024
_SLACK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StagedCheckpoint:
    """What a save writes.

    Attributes:
        document: What ``state.json`` holds.
        files: The bytes of each safetensors file, by name. They must not change while they are in use.
        tensors: Every tensor in the files, for the manifest.
        views: The tensors themselves, by file and name, in the memory of the files.
    """

    document: Mapping[str, Any]
    files: Mapping[str, memoryview]
    tensors: tuple[TensorEntry, ...]
    views: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of the files, headers and their padding included."""
        return sum(data.nbytes for data in self.files.values())


def allocate(nbytes: int, pinned: bool = False) -> Tensor:
    """Return host memory of so many bytes that begins at a page; ``pinned`` for copies from a CUDA device.

    The operating system gives a page when it is first written to, which costs ten times the writing itself: write to
    all of it before it matters. Huge pages are asked for, where that is possible.
    """
    if pinned:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    memory = mmap.mmap(-1, max(nbytes, PAGE))
    if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=max(nbytes, PAGE))[:nbytes]


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without a copy; the view keeps them alive."""
    exporter: Any = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())  # numpy may not be there
    exporter.owner = tensor
    return memoryview(exporter).cast("B")


def stage(encoded: Encoded) -> StagedCheckpoint:
    """Copy what was encoded into memory of its own."""
    layouts = {file: lay_out(content) for file, content in encoded.tensors.items()}
    memory = allocate(sum(paged(layout.nbytes) for layout in layouts.values()))
    files, views, start = {}, {}, 0
    for file, layout in layouts.items():
        content = encoded.tensors[file]
        data = memory[start : start + layout.nbytes]
        views[file] = _views(data, layout, content)
        for name, tensor in content.items():
            views[file][name].copy_(tensor)
        files[file], start = memory_of(data), start + paged(layout.nbytes)
    return StagedCheckpoint(encoded.document, files, entries_of(encoded.tensors), views)


def _views(file: Tensor, layout: Layout, tensors: Mapping[str, Shaped]) -> dict[str, Tensor]:
    """Write what stands before the tensors of a file, and return their places in it, in the order of *tensors*."""
    memory_of(file)[: len(layout.header)] = layout.header
    views: dict[str, Tensor] = {}
    for dtype, names in itertools.groupby(layout.places, key=lambda name: tensors[name].dtype):
        run = list(names)
        begin, sizes = layout.places[run[0]], [tensors[name].nbytes // dtype.itemsize for name in run]
        region = file[begin : begin + sum(sizes) * dtype.itemsize].view(dtype)
        for name, view in zip(run, region.split_with_sizes(sizes), strict=True):  # one call for many views
            shape = tuple(tensors[name].shape)
            views[name] = view if len(shape) == 1 else view.view(shape)
    return {name: views[name] for name in tensors}


def _no_memory() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class _MappedFile:
    """A file in a buffer: its bytes, and the places in it as tensors."""

    plan: FilePlan
    start: int
    data: memoryview
    views: dict[str, Tensor]


@dataclass(slots=True, eq=False)
class StagingBuffer:
    """One piece of memory, of one user at a time.

    Attributes:
        pinned: Whether devices can copy to it while the host does other things.
        nbytes: Its size.
        targets: The places for the own leaves of the plan that it is ready for, in their order.
    """

    pinned: bool = False
    nbytes: int = 0
    targets: list[Tensor] = field(default_factory=list)
    _memory: Tensor = field(default_factory=_no_memory)
    _mapped: list[_MappedFile] = field(default_factory=list)

    def holds(self, nbytes: int, pinned: bool) -> bool:
        """Return whether so much can be put in it."""
        return self.nbytes >= nbytes and self.pinned >= pinned

    def grow(self, nbytes: int, pinned: bool) -> None:
        """Take new memory in place of the old, a little larger, so that a tree that grows a little still fits."""
        # The old goes first: both together would be twice what is needed.
        self.targets, self._mapped, self._memory, self.nbytes = [], [], _no_memory(), 0
        size = nbytes + nbytes // 64 + _SLACK
        self._memory, self.nbytes, self.pinned = allocate(size, pinned), size, pinned

    def prefault(self) -> None:
        """Have the system give all of the memory. It is by one thread and without the GIL."""
        ctypes.memset(self._memory.data_ptr(), 0, self.nbytes)

    def map(self, plan: SavePlan) -> None:
        """Make the buffer ready for a plan; what it has for another stays where both have the same file."""
        wanted = list(zip(plan.files, plan.starts[:-1], strict=True))
        if [(one.plan, one.start) for one in self._mapped] == wanted:
            return
        known = {(one.plan, one.start): one for one in self._mapped}
        self._mapped = [known.get(place) or self._map(*place) for place in wanted]
        self.targets = [view for one in self._mapped for view in one.views.values()]

    def _map(self, plan: FilePlan, start: int) -> _MappedFile:
        file = self._memory[start : start + plan.layout.nbytes]
        return _MappedFile(plan, start, memory_of(file), _views(file, plan.layout, plan.specs))

    @property
    def files(self) -> dict[str, memoryview]:
        """The bytes of each file that there is."""
        return {one.plan.file: one.data for one in self._mapped if one.plan.specs}

    @property
    def views(self) -> dict[str, dict[str, Tensor]]:
        """The tensors in each file that there is, by name."""
        return {one.plan.file: one.views for one in self._mapped if one.plan.specs}


class BufferPool:
    """Up to so many buffers, made when there is no free one. Every method may be called in any thread.

    Attributes:
        waits: How often :meth:`acquire` had to wait for a buffer.
        waited: How many seconds that took.
        deadline: How long it waits at most.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise OptionError(f"buffers={size} leaves no memory to copy to; it takes 1 or more.")
        self.waits, self.waited = 0, 0.0
        self.deadline = Deadline()
        self._size = size
        self._count = 0
        self._free: list[StagingBuffer] = []
        self._preparing = False
        self._changed = threading.Condition()

    def acquire(self, nbytes: int, pinned: bool) -> StagingBuffer:
        """Return a buffer that holds so much, for the caller alone until it is released.

        Waits if all are in use, and for one that is being prepared.

        Raises:
            LaneTimeoutError: for longer than the deadline allows.
        """
        with self._changed:
            if not self._available():
                began = time.perf_counter()
                came = self._wait()
                self.waits, self.waited = self.waits + 1, self.waited + time.perf_counter() - began
                if not came:
                    waited = time.perf_counter() - began
                    raise LaneTimeoutError(
                        f"a save waited {waited:.1f} s for the ones before it, which are still being written; find "
                        "what blocks the disk."
                    )
            buffer = self._pick(nbytes, pinned)
        try:
            if not buffer.holds(nbytes, pinned):
                buffer.grow(nbytes, pinned)
        except BaseException:
            self.release(buffer)
            raise
        return buffer

    def _wait(self) -> bool:
        """Return whether a buffer came in time, which a signal's handler may have shortened meanwhile."""
        since = time.monotonic()
        while not self._available():
            if (left := self.deadline.left(since)) <= 0:
                return False
            self._changed.wait_for(self._available, min(left, POLL))
        return True

    def release(self, buffer: StagingBuffer) -> None:
        """Give the buffer back to the pool."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    def prepare(self, nbytes: int, pinned: bool) -> None:
        """See to it that there is a buffer that holds so much, with all its pages; nothing if all are in use."""
        with self._changed:
            if not self._available() or any(buffer.holds(nbytes, pinned) for buffer in self._free):
                return
            buffer = self._pick(nbytes, pinned)
            self._preparing = True
        try:
            buffer.grow(nbytes, pinned)
            buffer.prefault()
        finally:
            self._preparing = False
            self.release(buffer)

    def _available(self) -> bool:
        return bool(self._free) or (self._count < self._size and not self._preparing)

    def _pick(self, nbytes: int, pinned: bool) -> StagingBuffer:
        """Return a free one, of those that hold it the last that was released if there are any; otherwise a new one."""
        if not self._free:
            self._count += 1
            return StagingBuffer()
        best = max(reversed(self._free), key=lambda buffer: buffer.holds(nbytes, pinned))
        self._free.remove(best)
        return best

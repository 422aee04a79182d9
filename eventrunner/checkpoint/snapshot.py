"""A copy of a run's state in host memory that training can no longer change.

Copying is as much of a save as the training must wait for. Here it is one pass over memory that is there already; what
changes only at an optimizer's step can be copied in the background, during the next forward and backward.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash
from torch import Tensor

from eventrunner.checkpoint.codec import walk
from eventrunner.checkpoint.copies import Once, copy_from_device, copy_now, copy_single_threaded, is_large
from eventrunner.checkpoint.layout import DTYPES
from eventrunner.checkpoint.plan import SavePlan, make_plan
from eventrunner.checkpoint.staging import BufferPool, StagedCheckpoint, StagingBuffer, memory_of
from eventrunner.checkpoint.tensors import is_dense, packed, stored
from eventrunner.checkpoint.tree import Branch, leaves_of
from eventrunner.errors import CheckpointError
from eventrunner.lanes.deadline import Deadline

__all__ = ["Snapshot", "Snapshotter"]

_LEAST = 1024
"""Bytes below which a tensor is not worth copying later."""


Skeletons = tuple[tuple[str, ...], list[dict[str, Any]]]
"""The keys at the top of a tree, and what its walk has left, by file and key."""


@dataclass(slots=True)
class _Copies:
    """What is being copied."""

    late: Once
    events: list[tuple[torch.device, torch.cuda.Event]] = field(default_factory=list)
    awaited: bool = True
    """Whether the devices' own streams wait for the events: then training may write to all tensors."""
    digests: list[int] = field(default_factory=list)

    def have_devices_wait(self) -> None:
        """Let no device do what it is given from now on before it has copied; the host waits for nothing."""
        for device, event in self.events:
            torch.cuda.current_stream(device).wait_event(event)
        self.awaited = True

    def end(self) -> None:
        """Return when nothing writes to the buffer any more."""
        self.late.cancel()
        self.wait_for_devices()

    def wait_for_devices(self) -> None:
        """Return when the devices have copied."""
        for _, event in self.events:
            event.synchronize()


@dataclass(slots=True)
class _Split:
    """How the own leaves of a plan are copied, by their place among them.

    Attributes:
        changed: Those that torch can't copy as they are.
        now: Those on the CPU that are copied at once.
        late: Those that are left to another thread.
        large: And those of which each is left to it as one block of memory.
        devices: Those on each CUDA device that are copied before it goes on, and those that are while it does.
    """

    changed: list[int] = field(default_factory=list)
    now: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    large: list[int] = field(default_factory=list)
    devices: dict[torch.device, tuple[list[int], list[int]]] = field(default_factory=dict)


class Snapshot:
    """One copy of a tree; see :class:`Snapshotter`.

    Attributes:
        nbytes: The bytes of the files, headers and their padding included.
    """

    def __init__(
        self, plan: SavePlan, skeletons: Skeletons, copies: _Copies, buffer: StagingBuffer, pool: BufferPool
    ) -> None:
        self.nbytes = plan.nbytes
        self._plan = plan
        self._keys, self._skeletons = skeletons
        self._buffer: StagingBuffer | None = buffer
        self._pool = pool
        self._copies = copies
        self._releasing = threading.Lock()

    @property
    def copied(self) -> bool:
        """Whether training may write to every tensor: it is copied, or its device has to wait for the copy."""
        return self._copies.late.done and self._copies.awaited

    @property
    def failed(self) -> bool:
        """Whether the copying raised: then there is nothing to be waited for."""
        return self._copies.late.failed

    def wait(self) -> float:
        """Return when training may write to the tensors again; on the training thread.

        What no thread has begun to copy is copied here. For tensors on a CUDA device nothing is waited for: its
        current stream does.

        Returns:
            The seconds waited.

        Raises:
            Exception: what the copying raised, in whichever thread.
        """
        began = time.perf_counter()
        self._copies.late.wait()
        self._copies.have_devices_wait()
        return time.perf_counter() - began

    def staged(self) -> StagedCheckpoint:
        """Return the document and the bytes of the files, in the buffer itself: they last until :meth:`release`.

        To be called in the thread that writes: it waits for devices, and turns all that is no tensor into a document.

        Raises:
            CheckpointError: the snapshot was released.
            Exception: what the copying raised.
        """
        buffer = self._waited_for()
        document = self._plan.document(self._keys, self._skeletons)
        entries = tuple(entry for file in self._plan.files for entry in file.entries)
        return StagedCheckpoint(document, buffer.files, entries, buffer.views)

    def check(self) -> None:
        """Compare what is in the buffer with the hashes that were taken of the tensors, if they were.

        Raises:
            CheckpointError: a tensor was written to while it was being copied, or the snapshot was released.
            Exception: what the copying raised.
        """
        buffer = self._waited_for()
        for (file, name), digest, target in zip(self._plan.names, self._copies.digests, buffer.targets, strict=False):
            if digest != _digest(target):
                raise CheckpointError(
                    f"the copy of {name!r} for {file} is not what the tensor was when the snapshot was taken; copy it "
                    "at once, or let nothing write to it before wait() has returned."
                )

    def release(self) -> None:
        """Let the next snapshot have the memory; its bytes are no more. Once is enough; any thread may."""
        with self._releasing:
            buffer, self._buffer = self._buffer, None
        if buffer is not None:
            try:
                self._copies.end()
            finally:
                self._pool.release(buffer)

    def _waited_for(self) -> StagingBuffer:
        self._copies.late.wait()
        self._copies.wait_for_devices()
        if self._buffer is None:
            raise CheckpointError("the snapshot was released, and its memory may hold another; use it before that.")
        return self._buffer


class Snapshotter:
    """Copies trees of state into host memory that is kept from one save to the next.

    For one training thread. Names and places are worked out once, and again only for a file in which something other
    than values has changed: a key, a size, a dtype, the order in memory, or which tensors are the same. Beside the
    buffers nothing is allocated for a tensor's bytes.

    Args:
        buffers: How many snapshots there may be at once. The memory for one is allocated when it is first needed.
    """

    def __init__(self, buffers: int = 2) -> None:
        self._pool = BufferPool(buffers)
        self._plan: SavePlan | None = None
        self._splits: dict[bool, tuple[SavePlan, list[bool], _Split]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @property
    def waits(self) -> int:
        """How often :meth:`take` waited because all buffers were in use."""
        return self._pool.waits

    @property
    def waited(self) -> float:
        """How many seconds it did."""
        return self._pool.waited

    @property
    def deadline(self) -> Deadline:
        """How long :meth:`take` waits for a buffer; by default for as long as it takes."""
        return self._pool.deadline

    @deadline.setter
    def deadline(self, deadline: Deadline) -> None:
        self._pool.deadline = deadline

    def prepare(self, nbytes: int, pinned: bool = False) -> None:
        """Allocate a buffer, and have the system give its pages, which the first copy would wait for otherwise.

        Does nothing if there is a free one that is large enough. To be called in another thread than the training's,
        where it holds no GIL; a :meth:`take` that comes meanwhile waits for it.

        Args:
            nbytes: Its size: that of the tensors is enough.
            pinned: Whether for tensors on a CUDA device.
        """
        self._pool.prepare(nbytes, pinned)

    def take(
        self,
        tree: Mapping[str, Any],
        *,
        lazy: Collection[int] = (),
        in_background: Callable[[Callable[[], None]], None] | None = None,
        verify: bool = False,
    ) -> Snapshot:
        """Copy *tree*: exactly what a save of it would bring back, so a save later is as good as one now.

        Containers are copied before this returns, scalars are shared, and so is no tensor but those that are *lazy*.
        If all buffers are in use, it waits until one is released. The host waits for no device; a device goes on when
        it has copied what isn't lazy.

        Args:
            tree: What :func:`eventrunner.checkpoint.codec.encode` takes.
            lazy: The ``data_ptr()`` of tensors that nothing writes to before :meth:`Snapshot.wait` has returned;
                best as a set. Those of them on the CPU that are dense and not tiny are copied by *in_background*.
            in_background: Has the job that it is given done in another thread. Without it all is copied at once.
            verify: Whether hashes of all tensors are taken for :meth:`Snapshot.check`; waits for devices.

        Raises:
            CheckpointError: there is something in the tree that a checkpoint can't hold; the message has the path.
            LaneTimeoutError: no buffer was released in time.
        """
        branches = walk(tree)
        leaves = leaves_of(branches)
        self._plan = plan = make_plan(tree, branches, leaves, self._plan)
        sources = leaves if len(plan.own) == len(leaves) else [leaves[i] for i in plan.own]
        split = self._split_of(plan, sources, branches, lazy if in_background else ())
        buffer = self._pool.acquire(plan.starts[-1], bool(split.devices))
        copies = _Copies(Once(_nothing))
        try:
            buffer.map(plan)
            self._copy(buffer.targets, sources, split, copies, verify)
            if in_background and (split.late or split.large):
                in_background(copies.late.run)
            else:
                copies.late.run()
        except BaseException:
            copies.end()
            self._pool.release(buffer)
            raise
        skeletons = tuple(tree), [branch.skeleton for branch in branches]
        return Snapshot(plan, skeletons, copies, buffer, self._pool)

    def _split_of(
        self, plan: SavePlan, sources: Sequence[Tensor], branches: Sequence[Branch], lazy: Collection[int]
    ) -> _Split:
        mask: list[bool] = []
        if lazy:
            is_lazy = (lazy if isinstance(lazy, Set) else frozenset(lazy)).__contains__
            pointers = [pointer for branch in branches for pointer in branch.pointers]
            mask = list(map(is_lazy, pointers if len(sources) == len(pointers) else [pointers[i] for i in plan.own]))
        known, its_mask, split = self._splits.get(bool(mask), (None, [], None))
        if split is None or known is not plan or its_mask != mask:
            is_plain = not mask and all(file.metadata.is_plain for file in plan.files)
            split = _Split(now=list(range(len(sources)))) if is_plain else _split(sources, mask)
            self._splits[bool(mask)] = plan, mask, split
        return split

    def _copy(
        self, targets: Sequence[Tensor], sources: Sequence[Tensor], split: _Split, copies: _Copies, verify: bool
    ) -> None:
        if split.changed:
            sources = list(sources)
            for i in split.changed:
                sources[i] = _copyable(sources[i])
        if verify:
            copies.digests = [_digest(stored(source)) for source in sources]
        for device, (first, later) in split.devices.items():
            self._copy_from(device, first, targets, sources, copies)
            copies.have_devices_wait()
            if later:
                self._copy_from(device, later, targets, sources, copies)
                copies.awaited = False
        if len(split.now) == len(sources):
            copy_now(targets, sources)
        else:
            copy_now([targets[i] for i in split.now], [sources[i] for i in split.now])
            late, large = ([(targets[i], sources[i]) for i in some] for some in (split.late, split.large))
            watched = [(i, sources[i], _version(sources[i])) for i in (*split.late, *split.large)]
            copies.late = Once(functools.partial(_copy_watched, copy_single_threaded(late, large), watched, self._plan))

    def _copy_from(
        self,
        device: torch.device,
        places: Sequence[int],
        targets: Sequence[Tensor],
        sources: Sequence[Tensor],
        copies: _Copies,
    ) -> None:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        some = [targets[i] for i in places], [sources[i] for i in places]
        copies.events.append((device, copy_from_device(*some, self._streams[device])))


def _split(sources: Sequence[Tensor], mask: Sequence[bool]) -> _Split:
    split = _Split()
    for i, source in enumerate(sources):
        if source.dtype not in DTYPES or source.device.type not in ("cpu", "cuda"):
            split.changed.append(i)
        if source.is_cuda:
            now, late = split.devices.setdefault(source.device, ([], []))
            (late if mask and mask[i] else now).append(i)
        elif mask and mask[i] and source.is_cpu and source.nbytes >= _LEAST and is_dense(source):
            (split.large if is_large(source) else split.late).append(i)
        else:
            split.now.append(i)
    return split


def _copyable(source: Tensor) -> Tensor:
    return packed(source) if source.is_cpu or source.is_cuda else stored(source)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001  # torch documents it as what autograd uses


def _copy_watched(
    copy: Callable[[], None], watched: Sequence[tuple[int, Tensor, int | None]], plan: SavePlan | None
) -> None:
    """Copy, and see that nothing was written to meanwhile, as far as autograd's counters tell.

    Fused optimizers and writes through ``.data`` move no counter, so this is a net, and the barrier what holds.
    """
    copy()
    for place, tensor, version in watched:
        if version is not None and version != tensor._version:  # noqa: SLF001
            name = "a tensor" if plan is None else repr(plan.names[place][1])
            raise CheckpointError(
                f"{name} was written to while a save was copying it; write to weights in an optimizer's step or in a "
                "receiver, which wait for the copy, or save with mode='eager'."
            )


def _digest(tensor: Tensor) -> int:
    return xxhash.xxh3_64_intdigest(memory_of(tensor))


def _nothing() -> None:
    """Leave nothing to be copied later."""

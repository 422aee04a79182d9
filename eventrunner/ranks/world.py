"""Ranks: which process of how many this is, and what they do together.

A group that exists is used and left alone. Where a launcher has started several processes and there is none, one is
made, on a control store of its own. With one process everything here answers at once and communicates nothing.
"""

from __future__ import annotations

import atexit
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eventrunner.errors import OptionError, RankError
from eventrunner.ranks.control import PrefixStore, TCPStore, launched, open_control
from eventrunner.ranks.guard import guarded

__all__ = ["ALONE", "Ranks", "join", "keep_group"]

_MEET = 300.0  # seconds in which all processes of a launch must have come


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a run. Where a method says so, every rank must call it, in the same place.

    Attributes:
        rank: This process's number, from 0.
        local_rank: Its number on this machine; None where no launcher has said.
        world: How many there are.
        control: The store by which they speak beside the collectives; None with one process. Each thread takes a
            ``clone()`` of its own.
        sessions: Numbers for what they begin together, the same on all as all begin the same.
    """

    rank: int = 0
    local_rank: int | None = None
    world: int = 1
    control: Any = None
    sessions: Iterator[int] = field(default_factory=itertools.count)

    guard = staticmethod(guarded)
    """What keeps a receiver from communicating: the bus asks for it where only some ranks call one."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which speaks and writes for all."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.world > 1

    def barrier(self) -> None:
        """Wait until every rank is here. All ranks must call it."""
        if self.several:
            dist.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return the object that rank *src* gave, on every rank; it must pickle. All ranks must call it."""
        if not self.several:
            return obj
        box = [obj]
        dist.broadcast_object_list(box, src=src)
        return box[0]

    def gather(self, obj: Any) -> list[Any]:
        """Return what each rank gave, by rank, on every rank; it must pickle. All ranks must call it."""
        if not self.several:
            return [obj]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, obj)
        return found

    @torch.no_grad()
    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its mean over the ranks, in place. All ranks must call it, with tensors of equal shapes.

        One message per device and dtype, at the price of one temporary copy of the tensors.

        Raises:
            OptionError: a tensor is not of a floating-point type; nothing was sent.
        """
        for tensor in tensors:
            if not tensor.is_floating_point():
                raise OptionError(f"mean_ takes floating-point tensors, not one of {tensor.dtype}.")
        if not self.several:
            return
        for group in _by_kind(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            flat /= self.world
            means = torch.split_with_sizes(flat, [tensor.numel() for tensor in group])
            for tensor, mean in zip(group, means, strict=True):
                tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def broadcast_(self, tensors: Sequence[Tensor], src: int = 0) -> None:
        """Set each tensor to that of rank *src*, in place. All ranks must call it, with tensors of equal shapes."""
        if self.several:
            for tensor in tensors:
                dist.broadcast(tensor, src=src)

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Return on every rank what *function* gives on rank 0, or raise what it raises. All ranks must call it.

        What it gives or raises must pickle.
        """
        if not self.several:
            return function()
        result: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                result = function()
            except Exception as raised:  # noqa: BLE001  # raised below, on every rank
                error = raised
        result, told = self.broadcast((result, error))
        if told is not None:
            raise error or told
        return result

    def check_same(self, what: str, own: Any) -> None:
        """Refuse something that isn't the same on all ranks. All ranks must call it.

        Raises:
            RankError: on every rank; names two that differ, and what each has.
        """
        found = self.gather(own)
        for rank, other in enumerate(found):
            if other != found[0]:
                first, second = _difference(found[0], other)
                raise RankError(f"{what} is {first} on rank 0 and {second} on rank {rank}; give all ranks the same.")


ALONE = Ranks()
"""A single process."""


_known: tuple[Any, Ranks] | None = None  # the group, and the ranks of it


def join(timeout: float = _MEET) -> Ranks:
    """Return the ranks of the run that this process belongs to; called again, the same.

    A group that exists is used. Where a launcher says that there are several processes and there is none, it is made:
    gloo for tensors on the CPU and, where there are GPUs, NCCL for theirs. The process destroys that one at its exit,
    unless it fails.

    Args:
        timeout: Seconds in which all of them must have come.

    Raises:
        RankError: they haven't.
    """
    global _known
    control = None
    if not (dist.is_available() and dist.is_initialized()):
        if not launched():
            return ALONE
        control = _make_group(timeout)
    if dist.get_world_size() == 1:
        return ALONE
    group = dist.group.WORLD
    if _known is None or _known[0] is not group:
        control = control or _open_beside_group()
        _known = group, Ranks(dist.get_rank(), _local_rank(), dist.get_world_size(), control)
    return _known[1]


def _make_group(timeout: float) -> Any:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    control = open_control(rank, world, timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", control.clone()), rank=rank, world_size=world)
    atexit.register(_leave, dist.group.WORLD)
    return control


def _leave(group: Any) -> None:
    """At exit: destroy the group that was made here, which may block where another rank has failed."""
    if getattr(sys, "last_value", None) is None and dist.is_initialized() and dist.group.WORLD is group:
        dist.destroy_process_group()


def keep_group() -> None:
    """Have this process, which fails, end without destroying the group: that would wait for the others."""
    atexit.unregister(_leave)


def _open_beside_group() -> Any:
    """Return a store for the ranks of a group that was made before: rank 0 serves it, and says where."""
    box: list[Any] = [None]
    store = None
    if dist.get_rank() == 0:
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        box = [(host, store.port)]
    dist.broadcast_object_list(box, src=0)
    return store or TCPStore(box[0][0], box[0][1], wait_for_workers=False)


def _local_rank() -> int | None:
    found = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    return None if found is None else int(found)


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """Return what differs, as text: of two lists the first items that do."""
    if isinstance(one, list) and isinstance(other, list):
        pairs = itertools.zip_longest(one, other, fillvalue="nothing more")
        one, other = next(pair for pair in pairs if pair[0] != pair[1])
    return str(one), str(other)


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return groups of one device and dtype, in the order of first appearance, which is the same on all ranks."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())

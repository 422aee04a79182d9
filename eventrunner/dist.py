"""Ranks: which process of how many this is, and what they do together.

The only importer of ``torch.distributed``. A process group is the caller's to make (``torchrun`` and
``torch.distributed.init_process_group``) and to destroy. Without one, or with one rank, everything here answers at
once and communicates nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from eventrunner.errors import OptionError

__all__ = ["all_reduce_mean_", "barrier", "broadcast_object", "is_distributed", "is_main", "rank", "world_size"]


def _has_group() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Return this process's number, from 0; 0 without a process group."""
    return torch_dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return torch_dist.get_world_size() if _has_group() else 1


def is_distributed() -> bool:
    """Return whether there is more than one process."""
    return world_size() > 1


def is_main() -> bool:
    """Return whether this is rank 0, which speaks and writes for all."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here. All ranks must call it."""
    if is_distributed():
        torch_dist.barrier()


@torch.no_grad()
def all_reduce_mean_(tensors: list[Tensor]) -> None:
    """Set each tensor to its mean over the ranks, in place. All ranks must call it, with tensors of equal shapes.

    One message per device and dtype, at the price of one temporary copy of the tensors.

    Raises:
        OptionError: a tensor is not of a floating-point type; nothing was sent.
    """
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise OptionError(f"all_reduce_mean_ takes floating-point tensors, not one of {tensor.dtype}.")
    if not is_distributed():
        return
    for group in _by_kind(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        torch_dist.all_reduce(flat)
        flat /= world_size()
        means = torch.split_with_sizes(flat, [tensor.numel() for tensor in group])
        for tensor, mean in zip(group, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


def broadcast_object(obj: Any, src: int = 0) -> Any:
    """Return the object that rank ``src`` gave, on every rank; it must pickle. All ranks must call it."""
    if not is_distributed():
        return obj
    box = [obj]
    torch_dist.broadcast_object_list(box, src=src)
    return box[0]


def _by_kind(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Yield groups of one device and dtype, in the order of first appearance, which is the same on all ranks."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())

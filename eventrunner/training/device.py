"""Where a run computes, and how its batches get there."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from eventrunner.errors import OptionError

__all__ = ["batch_mover", "resolve_device", "to_device"]

_LEAVES = (str, bytes, int, float, type, type(None))
"""What needs no look inside, though a class may have a ``to``."""

_ASYNC_TYPES = ("cuda", "xpu")
"""Where a copy from pinned memory overlaps with the host, in order with what computes on it."""


def resolve_device(device: str | torch.device | None, local_rank: int | None = None) -> torch.device:
    """Return the device that is meant, tried out: an empty tensor was made there.

    An accelerator comes back with its index (``cuda`` as ``cuda:0``), as its tensors have it.

    Args:
        device: None for the accelerator if there is one, else the CPU.
        local_rank: This process's number on its machine; by default it computes on the accelerator of that number.

    Raises:
        OptionError: torch knows no such device, or this machine has none.
    """
    if device is None:
        device = _default_device(local_rank)
    if not isinstance(device, (str, torch.device)):
        raise OptionError(f"device={device!r} must be None, a torch.device or a name such as 'cpu' or 'cuda:0'.")
    try:
        known = torch.device(device)
    except RuntimeError:
        raise OptionError(
            f"device={device!r} is no device that torch knows; examples are 'cpu', 'cuda', 'cuda:1' and 'mps'."
        ) from None
    try:
        return torch.empty(0, device=known).device
    except (RuntimeError, AssertionError, ImportError) as error:
        raise OptionError(
            f"device={str(device)!r} isn't available here; leave device= out to use {str(_default_device())!r}."
        ) from error


def batch_mover(device: torch.device) -> Callable[[Any], Any] | None:
    """Return a function that takes a batch to the device, or None for the CPU, where batches are made anyway.

    Tensors in pinned memory (``DataLoader(pin_memory=True)``) are copied to CUDA and XPU without the host waiting.
    """
    if device.type == "cpu":
        return None
    return functools.partial(to_device, device=device, non_blocking=device.type in _ASYNC_TYPES)


def to_device(batch: Any, device: torch.device, non_blocking: bool = False) -> Any:
    """Return the batch with every tensor in it on the device; the very object where nothing had to move.

    Looks into mappings, lists, tuples and dataclass objects, of any depth; what had to change is a shallow copy of the
    same type. Other objects with a ``to`` method are asked for ``to(device)``; what is left stays as it is.

    Args:
        batch: anything; it isn't changed.
        device: where to.
        non_blocking: don't wait for the copies. Without effect towards the CPU, where a tensor that has not arrived
            would be read.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=non_blocking and device.type != "cpu")
    if isinstance(batch, _LEAVES):
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    rebuild, parts = _take_apart(batch)
    moved = {key: to_device(part, device, non_blocking) for key, part in parts.items()}
    changed = {key: part for key, part in moved.items() if part is not parts[key]}
    return rebuild(batch, changed) if changed else batch


_Parts = Mapping[Any, Any]


def _take_apart(batch: Any) -> tuple[Callable[[Any, _Parts], Any], _Parts]:
    """Return how to rebuild a container with some of its parts changed, and its parts by key, index or field."""
    if isinstance(batch, Mapping):
        return _rebuild_mapping, batch
    if isinstance(batch, list):
        return _rebuild_list, dict(enumerate(batch))
    if isinstance(batch, tuple):
        return _rebuild_tuple, dict(enumerate(batch))
    if dataclasses.is_dataclass(batch):
        return _rebuild_dataclass, {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return _rebuild_list, {}


def _rebuild_mapping(batch: Mapping[Any, Any], changed: _Parts) -> Any:
    if not isinstance(batch, MutableMapping):
        return type(batch)({**batch, **changed})  # type: ignore[call-arg]
    moved = copy.copy(batch)
    moved.update(changed)
    return moved


def _rebuild_list(batch: list[Any], changed: _Parts) -> Any:
    moved = copy.copy(batch)
    for index, part in changed.items():
        moved[index] = part
    return moved


def _rebuild_tuple(batch: tuple[Any, ...], changed: _Parts) -> Any:
    moved = (changed.get(index, part) for index, part in enumerate(batch))
    return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)


def _rebuild_dataclass(batch: Any, changed: _Parts) -> Any:
    # dataclasses.replace would run __init__, which may have other arguments than there are fields.
    moved = copy.copy(batch)
    for name, part in changed.items():
        object.__setattr__(moved, name, part)  # frozen ones too: nobody else has seen this copy
    return moved


def _default_device(local_rank: int | None = None) -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return torch.device("cpu")
    return found if local_rank is None else torch.device(found.type, local_rank % torch.accelerator.device_count())

"""What of a tensor is stored, and how."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.decoder import TAG, Node
from eventrunner.checkpoint.layout import DTYPES, Spec

__all__ = [
    "identity",
    "is_dense",
    "node_of",
    "packed",
    "problem_with",
    "replace_tensors",
    "shared_with",
    "spec_of",
    "stored",
]


def problem_with(value: Tensor) -> str:
    """What it is that can't be stored; empty if it can."""
    if value.is_nested or value.layout not in (torch.strided, torch.sparse_coo):
        return f"a tensor of layout {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')}"
    if value.is_quantized:
        return "a quantized tensor"
    return "a tensor on the meta device, without data" if value.is_meta else ""


def shared_with(array: Any) -> Tensor:
    """A tensor of a numpy array's memory; of a copy where torch takes only that (read-only, odd strides).

    Raises:
        TypeError, ValueError: a dtype that torch doesn't have.
    """
    if array.flags.writeable:  # of one that isn't, torch warns
        with contextlib.suppress(ValueError):
            return torch.from_numpy(array)
    return torch.from_numpy(array.copy(order="K"))


def replace_tensors(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Return *value* with what *replace* returns in the place of each tensor; containers are copied."""
    if isinstance(value, Tensor):
        return replace(value)
    if type(value) in (dict, OrderedDict, Counter):
        copy = type(value)({key: replace_tensors(below, replace) for key, below in value.items()})
        if versions := getattr(value, "_metadata", None):
            vars(copy)["_metadata"] = versions
        return copy
    if type(value) in (list, tuple):
        return type(value)(replace_tensors(below, replace) for below in value)
    return value


def identity(value: Tensor) -> Hashable:
    """Equal for tensors that look at the same memory in the same way."""
    place = (value.device, value.data_ptr(), value.shape, value.stride())
    return (*place, value.dtype, value.is_conj(), value.is_neg())


def packed(value: Tensor) -> Tensor:
    """The tensor as its file has it, on its own device: elements in the order of the dimensions; a copy if need be."""
    data = value.detach().resolve_conj().resolve_neg().contiguous()
    if data.dtype in DTYPES:
        return data
    # Without elements it may have any strides, and then torch sees no bytes in it.
    return data.reshape(-1).view(torch.uint8) if data.numel() else data.new_empty(0, dtype=torch.uint8)


def stored(value: Tensor) -> Tensor:
    """The tensor as its file has it, on the CPU; a copy if need be."""
    return packed(value).cpu()


def spec_of(value: Tensor) -> Spec:
    """What :func:`stored` gives, without doing it; aligned for the tensor's own dtype."""
    if value.dtype in DTYPES:
        return Spec(value.dtype, tuple(value.shape), value.nbytes, value.itemsize)
    return Spec(torch.uint8, (value.nbytes,), value.nbytes, value.itemsize)


def node_of(value: Tensor, file: str, name: str) -> Node:
    """The document's node for a tensor."""
    node: dict[str, Node] = {TAG: "tensor"}
    if order := _memory_order(value):
        node["order"] = order
    if value.dtype not in DTYPES:
        node |= {"dtype": str(value.dtype), "shape": list(value.shape)}
    return {**node, "file": file, "name": name}


def is_dense(value: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, in any order of the dimensions."""
    return value.is_contiguous() or value.stride() == _strides_of_a_copy(value)


def _memory_order(value: Tensor) -> list[int] | None:
    """The dimensions from the outermost in memory to the innermost, where that is not simply their order."""
    if value.is_contiguous():
        return None
    strides = _strides_of_a_copy(value)
    order = sorted(range(value.dim()), key=lambda dim: -strides[dim])
    return order if order != list(range(value.dim())) else None


def _strides_of_a_copy(value: Tensor) -> tuple[int, ...]:
    return torch.empty_like(value, device="meta").stride()

"""What tensors look like, which of them are the same one, and what of them is stored."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from eventrunner.checkpoint.layout import DTYPES, Spec

__all__ = [
    "Addresses",
    "Aliases",
    "TensorMetadata",
    "aliases_among",
    "coinciding",
    "has_problems",
    "interned",
    "is_dense",
    "memory_order",
    "packed",
    "problem_with",
    "shared_with",
    "spec_of",
    "still_aliases",
    "stored",
]

T = TypeVar("T")

_dtype_of = attrgetter("dtype")
_is_nested = attrgetter("is_nested")
_KNOWN = 4096  # of what tensors look like in a tree there are few kinds


class TensorMetadata:
    """What some tensors look like, without the tensors: size, strides, dtype, device, and what kind they are.

    To compare five properties of each in Python takes longer than to copy tensors of 1 KiB, so torch's own guard does
    it where there is one. It is not public, and also says no where it makes no difference here: those that it lets
    pass are alike, and only others are looked at in Python.

    Attributes:
        sizes: Of each tensor.
        strides: Of each tensor.
        dtypes: Of each tensor.
        is_plain: Whether all are on the CPU, of dtypes that are stored as they are.
    """

    def __init__(self, tensors: Sequence[Tensor], pointers: Sequence[int]) -> None:
        self._facts = _facts(tensors, pointers)
        self.sizes, self.strides, devices, self.dtypes, _ = self._facts
        self.is_plain = set(devices) <= {-1} and DTYPES.keys() >= set(self.dtypes)
        self._guard: Any = None

    def fits(self, tensors: Sequence[Tensor], pointers: Sequence[int]) -> bool:
        """Return whether these look the same, one by one."""
        if True in map(_is_nested, tensors):  # they have no size, and the guard ends the process if it asks for it
            return False
        if self._guard is not None and self._guard.check(*tensors):
            return True
        same = self._facts == _facts(tensors, pointers)
        if same:
            self._guard = _guard(tensors, self.sizes, self.strides)
            if self._guard is not None and not self._guard.check(*tensors):  # as where one occurs twice
                self._guard = None
        return same


def interned(items: Iterable[T]) -> list[T]:
    """Return the items, and for equal ones the same object: many new containers have Python collect its garbage."""
    known: dict[T, T] = {}
    return [known.setdefault(item, item) for item in items]


def _facts(tensors: Sequence[Tensor], pointers: Sequence[int]) -> tuple[list[Any], ...]:
    sizes, strides = (interned(map(fact, tensors)) for fact in (Tensor.size, Tensor.stride))
    devices, dtypes = (list(map(fact, tensors)) for fact in (Tensor.get_device, _dtype_of))
    return sizes, strides, devices, dtypes, list(map(bool, pointers))  # no address: no elements, or on the meta device


def _guard(tensors: Sequence[Tensor], sizes: Sequence[torch.Size], strides: Sequence[tuple[int, ...]]) -> Any:
    lists = {one: list(one) for one in {*sizes, *strides}}
    known = {
        "dynamic_dims_sizes": [lists[one] for one in sizes],
        "dynamic_dims_strides": [lists[one] for one in strides],
    }
    try:
        return importlib.import_module("torch._C._dynamo.guards").TensorGuards(*tensors, **known)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return None


Aliases = Mapping[int, int]
"""By a tensor's number, that of an earlier one."""


@dataclass(frozen=True)
class Addresses:
    """The addresses of some tensors; 0 stands for no memory."""

    pointers: list[int]

    @cached_property
    def distinct(self) -> frozenset[int]:
        """Those that there are."""
        return frozenset(self.pointers) - {0}

    @cached_property
    def repeated(self) -> bool:
        """Whether one occurs twice."""
        return len(self.distinct) + self.pointers.count(0) < len(self.pointers)


def coinciding(groups: Sequence[Addresses]) -> Aliases:
    """Return by tensor the first at the same address; without the first ones themselves, and those without memory."""
    if _all_distinct(groups):
        return {}
    first: dict[int, int] = {}
    pointers = (pointer for group in groups for pointer in group.pointers)
    return {i: seen for i, place in enumerate(pointers) if place and (seen := first.setdefault(place, i)) != i}


def _all_distinct(groups: Sequence[Addresses]) -> bool:
    if any(group.repeated for group in groups):
        return False
    return all(one.distinct.isdisjoint(other.distinct) for one, other in itertools.combinations(groups, 2))


def aliases_among(tensors: Sequence[Tensor], coinciding: Aliases) -> Aliases:
    """Return by tensor the first that looks at the same memory in the same way, of those that have its address."""
    known: dict[object, int] = {}
    candidates = sorted({*coinciding, *coinciding.values()})
    first = {i: known.setdefault(_identity(tensors[i]), i) for i in candidates}
    return {i: original for i, original in first.items() if original != i}


def still_aliases(tensors: Sequence[Tensor], aliases: Aliases) -> bool:
    """Return whether the same are aliases in others that look and coincide as those did, for all but two bits."""
    return all(_bits(tensors[i]) == _bits(tensors[original]) for i, original in aliases.items())


def _identity(value: Tensor) -> Hashable:
    return (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype, *_bits(value))


def _bits(value: Tensor) -> tuple[bool, bool]:
    return value.is_conj(), value.is_neg()


def has_problems(tensors: Sequence[Tensor]) -> bool:
    """Return whether there may be one among them that can't be stored."""
    odd = any(True in map(attrgetter(name), tensors) for name in ("is_nested", "is_quantized", "is_meta"))
    return odd or not {torch.strided, torch.sparse_coo}.issuperset(map(attrgetter("layout"), tensors))


def problem_with(value: Tensor) -> str:
    """Return what it is that can't be stored; empty if it can."""
    if value.is_nested or value.layout not in (torch.strided, torch.sparse_coo):
        return f"a tensor of layout {'nested' if value.is_nested else str(value.layout).removeprefix('torch.')}"
    if value.is_quantized:
        return "a quantized tensor"
    return "a tensor on the meta device, without data" if value.is_meta else ""


def shared_with(array: Any) -> Tensor:
    """Return a tensor of a numpy array's memory; of a copy where torch takes only that (read-only, odd strides).

    Raises:
        TypeError, ValueError: a dtype that torch doesn't have.
    """
    if array.flags.writeable:  # of one that isn't, torch warns
        with contextlib.suppress(ValueError):
            return torch.from_numpy(array)
    return torch.from_numpy(array.copy(order="K"))


def packed(value: Tensor) -> Tensor:
    """Return the tensor as its file has it, on its own device: contiguous; a copy if need be."""
    data = value.detach().resolve_conj().resolve_neg().contiguous()
    if data.dtype in DTYPES:
        return data
    # Without elements it may have any strides, and then torch sees no bytes in it.
    return data.reshape(-1).view(torch.uint8) if data.numel() else data.new_empty(0, dtype=torch.uint8)


def stored(value: Tensor) -> Tensor:
    """Return the tensor as its file has it, on the CPU; a copy if need be."""
    return packed(value).cpu()


def is_dense(value: Tensor) -> bool:
    """Return whether its elements fill a stretch of memory, in any order of the dimensions."""
    return value.is_contiguous() or value.stride() == _strides_of_a_copy(value)


@functools.lru_cache(_KNOWN)
def memory_order(size: torch.Size, strides: tuple[int, ...]) -> list[int] | None:
    """Return the dimensions from the outermost in memory to the innermost, where that is not simply their order."""
    value = torch.empty_strided(size, strides, device="meta")
    if value.is_contiguous():
        return None
    strides = _strides_of_a_copy(value)
    order = sorted(range(value.dim()), key=lambda dim: -strides[dim])
    return order if order != list(range(value.dim())) else None


def _strides_of_a_copy(value: Tensor) -> tuple[int, ...]:
    return torch.empty_like(value, device="meta").stride()


@functools.lru_cache(_KNOWN)
def spec_of(dtype: torch.dtype, size: torch.Size) -> Spec:
    """Return what :func:`stored` gives, without doing it; aligned for the tensor's own dtype."""
    nbytes = size.numel() * dtype.itemsize
    if dtype in DTYPES:
        return Spec(dtype, tuple(size), nbytes, dtype.itemsize)
    return Spec(torch.uint8, (nbytes,), nbytes, dtype.itemsize)

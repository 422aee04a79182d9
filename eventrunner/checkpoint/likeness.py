"""Whether tensors look as others did: size, dtype, device, strides, and what kind of tensor they are."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor

__all__ = ["Likeness"]

_dtype_of = attrgetter("dtype")
_is_nested = attrgetter("is_nested")


class Likeness:
    """What some tensors look like, without the tensors.

    To compare five properties of each in Python takes longer than to copy tensors of 1 KiB, so torch's own guard does
    it where there is one. It is not public, and also says no where it makes no difference here: whoever it lets pass
    is alike, and only others are looked at in Python.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._facts = _facts(tensors)
        self._guard = _guard(tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these look the same, one by one."""
        if True in map(_is_nested, tensors):  # they have no size, and the guard ends the process if it asks for it
            return False
        if self._guard is not None and self._guard.check(*tensors):
            return True
        same = self._facts == _facts(tensors)
        if same:
            self._guard = _guard(tensors)
            if self._guard is not None and not self._guard.check(*tensors):  # as where one occurs twice
                self._guard = None
        return same


def _facts(tensors: Sequence[Tensor]) -> tuple[list[Any], ...]:
    facts = (Tensor.size, Tensor.stride, Tensor.get_device, _dtype_of, _is_empty)
    return tuple(list(map(fact, tensors)) for fact in facts)


def _is_empty(tensor: Tensor) -> bool:
    return not tensor.data_ptr()  # so is a tensor on the meta device


def _guard(tensors: Sequence[Tensor]) -> Any:
    try:
        kind = importlib.import_module("torch._C._dynamo.guards").TensorGuards
        sizes, strides = ([list(fact(tensor)) for tensor in tensors] for fact in (Tensor.size, Tensor.stride))
        return kind(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return None

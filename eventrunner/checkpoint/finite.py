"""Whether the weights of a save are numbers, seen in the memory that it is written from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from eventrunner.checkpoint.staging import StagedCheckpoint

__all__ = ["has_finite_weights"]

_WEIGHTS = "model.safetensors"
_GRAIN = 32768  # elements up to which torch works in the calling thread alone: others are the training's


def has_finite_weights(staged: StagedCheckpoint, parameters: Callable[[], Collection[str]]) -> bool:
    """Return whether its parameters are finite: no inf and no nan.

    Args:
        staged: What is about to be written.
        parameters: Asked for their names in the model's state if something isn't finite: a buffer, such as a mask, may
            well have an inf in it.
    """
    tensors = staged.views.get(_WEIGHTS, {})
    odd = {name for name, tensor in tensors.items() if not all(map(_is_finite, _chunks(tensor)))}
    return odd.isdisjoint(parameters() if odd else ())


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
        yield from (flat,) if flat.numel() <= _GRAIN else torch.split(flat, _GRAIN)


def _is_finite(chunk: Tensor) -> bool:
    if chunk.itemsize == 1:  # an eight-bit float, which torch can't compare
        chunk = chunk.float()
    least, most = torch.aminmax(chunk)  # a nan is both
    return math.isfinite(least.item()) and math.isfinite(most.item())

"""A copy of a run's state in host memory that training can no longer change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventrunner.checkpoint.codec import decode, encode

__all__ = ["snapshot"]


def snapshot(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copy *tree* to host memory: exactly what a save of it would bring back, so a save later is as good as one now.

    Tensors are detached, on the CPU and owned by the result: nothing done to the live ones reaches it. Tensors that
    were one object, or looked at the same memory in the same way, are one in the copy; a view takes only its own
    elements. Containers are new, scalars are shared. Costs one copy of the bytes, on the calling thread, and waits
    for a device that still computes them.

    Raises:
        CheckpointError: there is something in the tree that a checkpoint can't hold; the message has the path to it.
    """
    encoded = encode(tree, copy=True)
    return decode(encoded.document, encoded.tensors)

"""A tree of state as JSON and tensors, and back, bit for bit. Nothing is ever pickled.

A value that JSON has is itself in the document. Any other is an object with a key ``"$"``, its tag:
``{"$": "tuple", "items": […]}``. A dict that has a key ``"$"`` of its own, or a key that isn't a string, is tagged
too, so that no tree can be mistaken for a tag. A tensor is ``{"$": "tensor", "file": …, "name": …}``; its bytes are
in that file under that name.

A tensor that occurs several times (same memory, shape and strides) is stored once and comes back as one object. A
view is stored by its own elements, without the rest of what it looks into. Dense tensors keep the order of their
dimensions in memory (``channels_last``, for one), as optimizers are slower where theirs and the gradient's differ.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eventrunner.checkpoint.decoder import Decoder
from eventrunner.checkpoint.parts import document_of, make_plan
from eventrunner.checkpoint.tensors import stored
from eventrunner.checkpoint.walk import walk
from eventrunner.errors import CorruptCheckpointError

__all__ = ["Encoded", "decode", "encode"]

_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tree taken apart.

    Attributes:
        document: What is plain or tagged; JSON can hold it. Keys as in the tree.
        tensors: By file, and in it by name: contiguous tensors on the CPU, of the dtypes that safetensors has. They
            share memory with the tree's own, which must not change while they are in use. No file is without tensors.
    """

    document: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def encode(tree: Mapping[str, Any]) -> Encoded:
    """Take *tree* apart into what JSON holds and what safetensors holds.

    The tensors below ``tree["state_dict"]`` go to ``model.safetensors``, under their plain keys; those below
    ``tree["optimizer"]`` to ``optimizer.safetensors`` under a path with dots; all others to ``state.safetensors``.

    Args:
        tree: Strings as keys at the top. Below that: tensors (dense, or sparse in COO layout), numbers, strings, bytes,
            None, dtypes, devices, numpy's
            scalars and arrays, and dicts, Counters, lists, tuples, Sizes and sets of them, up to 100 deep; keys and
            members of sets are scalars or tuples of them. An OrderedDict comes back as a dict, save a module's
            ``state_dict()``: that keeps the versions of its modules, which ``load_state_dict`` asks for. Parameters
            come back as tensors, without gradients. A subclass of any of these is refused.

    Raises:
        CheckpointError: something else is in the tree, or it contains itself; the message has the path to it.
    """
    walked = walk(tree)
    plan = make_plan(tree, walked)
    leaves = [leaf for part in walked for leaf in part.leaves]
    tensors = {
        part.file: {name: stored(leaves[i]) for name, i in zip(part.specs, part.own, strict=True)}
        for part in plan.parts
        if part.specs
    }
    return Encoded(document_of(tree, plan, [part.copies for part in walked]), tensors)


def decode(
    document: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], *, where: str = "the document"
) -> dict[str, Any]:
    """Put a tree together again; the opposite of :func:`encode`.

    Args:
        document: As :func:`encode` made it.
        tensors: By file and name; they become part of the tree without being copied.
        where: What the document is called in an error.

    Raises:
        CorruptCheckpointError: *document* is not what :func:`encode` makes, or doesn't fit *tensors*.
    """
    decoder = Decoder(tensors)
    try:
        return {key: decoder.node(node) for key, node in document.items()}
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, struct.error) as error:
        problem = f"{type(error).__name__}: {str(error)[:_SHOWN]}"
        raise CorruptCheckpointError(f"{where} is not a document that can be decoded ({problem}).") from error

"""From values to nodes of the document, by type."""

from __future__ import annotations

import base64
import json
import math
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.decoder import TAG, Node
from eventrunner.errors import CheckpointError

__all__ = [
    "MAX_DEPTH",
    "SCALARS",
    "TENSORS",
    "Encoder",
    "Hole",
    "Modules",
    "Sparse",
    "Trail",
    "hashable",
    "is_array",
    "is_scalar",
    "refusal",
]

MAX_DEPTH = 100
"""How deep a tree may be nested: enough for any state, and well within Python's own limit on recursion."""

_EXACT_INT = 2**53  # other readers of JSON hold a larger one as a float
_TAKES = (
    "it takes dense and sparse_coo tensors, numbers, strings, bytes, None and dicts, lists, tuples and sets of them"
)
_NUMPY_KINDS = frozenset("biufcUS")

Trail = tuple[object, ...]
Leaf = Callable[[Any, Trail], Node]


class Hole:
    """Stands in a copied tree where a tensor was, or a container of tensors alone."""


@dataclass(frozen=True, slots=True)
class Modules:
    """Stands in a copied tree for a module's ``state_dict()``: what is in it, and the versions of its modules."""

    content: Any
    versions: Any


@dataclass(frozen=True, slots=True)
class Sparse:
    """Stands in a tree for a tensor of layout sparse_coo."""

    indices: Any
    values: Any
    size: tuple[int, ...]
    coalesced: bool


def _path(trail: Trail) -> str:
    return "checkpoint" + "".join(f"[{key!r}]" for key in trail)


def refusal(trail: Trail, what: str) -> CheckpointError:
    """The error for something that a checkpoint can't hold."""
    return CheckpointError(f"{_path(trail)} is {what}, which a checkpoint can't hold; {_TAKES}.")


def _kind_of(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


@dataclass(slots=True)
class Encoder:
    """One pass over one tree, which must stay alive meanwhile, as containers are told apart by address.

    Attributes:
        leaf: Makes the node of a tensor or a hole, and the inner one of an array. Called in the order of the tree,
            once for each occurrence.
    """

    leaf: Leaf
    _open: set[int] = field(default_factory=set)

    def node(self, value: Any, trail: Trail) -> Node:
        """The node for *value*, to which the keys and indices of *trail* lead."""
        encode_it = _ENCODERS.get(type(value)) or _numpy_encoder(value)
        if encode_it is None:
            raise refusal(trail, _kind_of(value))
        return encode_it(self, value, trail)

    def below(self, container: Any, items: Iterable[tuple[object, Any]], trail: Trail) -> list[Node]:
        """The nodes of what lies in *container*, each given with the key or index that leads to it."""
        if id(container) in self._open:
            raise CheckpointError(f"{_path(trail)} leads back to a container that it lies in; a checkpoint is a tree.")
        if len(trail) >= MAX_DEPTH:
            raise CheckpointError(
                f"{_path(trail[:3])}… is nested more than {MAX_DEPTH} deep, the most that a checkpoint holds."
            )
        self._open.add(id(container))
        nodes = []
        for key, value in items:
            nodes.append(self.node(value, (*trail, key)))
        self._open.remove(id(container))
        return nodes


def _leaf(encoder: Encoder, value: Tensor | Hole, trail: Trail) -> Node:
    return encoder.leaf(value, trail)


def _array(encoder: Encoder, value: Any, trail: Trail) -> Node:
    return {TAG: "ndarray", "tensor": encoder.leaf(value, trail)}


def _as_is(encoder: Encoder, value: Any, trail: Trail) -> Node:
    return value


def _int(encoder: Encoder, value: int, trail: Trail) -> Node:
    return value if abs(value) <= _EXACT_INT else {TAG: "int", "hex": hex(value)}


def _float(encoder: Encoder, value: float, trail: Trail) -> Node:
    return value if math.isfinite(value) else {TAG: "float", "bits": struct.pack(">d", value).hex()}


def _complex(encoder: Encoder, value: complex, trail: Trail) -> Node:
    return {TAG: "complex", "parts": [encoder.node(value.real, trail), encoder.node(value.imag, trail)]}


def _bytes(encoder: Encoder, value: bytes, trail: Trail) -> Node:
    return {TAG: "bytes", "base64": base64.b64encode(value).decode()}


def _named(encoder: Encoder, value: torch.dtype | torch.device, trail: Trail) -> Node:
    return {TAG: type(value).__name__, "name": str(value)}


def _numpy_scalar(encoder: Encoder, value: Any, trail: Trail) -> Node:
    return {TAG: "numpy", "dtype": value.dtype.str, "value": encoder.node(value.item(), trail)}


def _list(encoder: Encoder, value: list[Any], trail: Trail) -> Node:
    return encoder.below(value, enumerate(value), trail)


def _tuple(encoder: Encoder, value: tuple[Any, ...], trail: Trail) -> Node:
    return {TAG: type(value).__name__.lower(), "items": encoder.below(value, enumerate(value), trail)}


def _set(encoder: Encoder, value: set[Any] | frozenset[Any], trail: Trail) -> Node:
    items = [hashable(encoder, item, trail) for item in value]
    return {TAG: type(value).__name__, "items": sorted(items, key=json.dumps)}  # one order from run to run


def _dict(encoder: Encoder, value: dict[Any, Any], trail: Trail) -> Node:
    if TAG in value or any(type(key) is not str for key in value):
        return {TAG: "dict", "items": _pairs(encoder, value, trail)}
    return dict(zip(value, encoder.below(value, value.items(), trail), strict=True))


def _ordered_dict(encoder: Encoder, value: OrderedDict[Any, Any], trail: Trail) -> Node:
    content = _dict(encoder, value, trail)
    versions = getattr(value, "_metadata", None)  # nn.Module.state_dict() puts it there
    return _versioned(encoder, content, versions, trail) if versions else content


def _modules(encoder: Encoder, value: Modules, trail: Trail) -> Node:
    return _versioned(encoder, encoder.node(value.content, trail), value.versions, trail)


def _versioned(encoder: Encoder, content: Node, versions: Any, trail: Trail) -> Node:
    return {TAG: "state_dict", "content": content, "metadata": encoder.node(versions, (*trail, "_metadata"))}


def _sparse(encoder: Encoder, value: Sparse, trail: Trail) -> Node:
    parts = {name: encoder.leaf(getattr(value, name), (*trail, name)) for name in ("indices", "values")}
    return {TAG: "sparse", "size": list(value.size), "coalesced": value.coalesced, **parts}


def _counter(encoder: Encoder, value: Counter[Any], trail: Trail) -> Node:
    return {TAG: "counter", "items": _pairs(encoder, value, trail)}


def _pairs(encoder: Encoder, value: dict[Any, Any], trail: Trail) -> list[Node]:
    keys = [hashable(encoder, key, trail) for key in value]
    return [list(pair) for pair in zip(keys, encoder.below(value, value.items(), trail), strict=True)]


def hashable(encoder: Encoder, value: Any, trail: Trail) -> Node:
    """The node for a key of a dict or a member of a set, to whose container *trail* leads."""
    if not _is_hashable(value):
        raise CheckpointError(
            f"{_path(trail)} has {_kind_of(value)} as a key or member, which a checkpoint can't hold; it "
            "takes strings, numbers, bytes, None and tuples of them there."
        )
    return encoder.node(value, trail)


def _is_hashable(value: Any) -> bool:
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(_is_hashable, value))
    return is_scalar(value)


def is_scalar(value: Any) -> bool:
    """Whether *value* can't change and has nothing in it."""
    return type(value) in SCALARS or _numpy_encoder(value) is _numpy_scalar


def is_array(value: Any) -> bool:
    """Whether *value* is an array of numpy's."""
    return _numpy_encoder(value) is _array


def _numpy_encoder(value: Any) -> _Encode | None:
    numpy = sys.modules.get("numpy")  # whoever has a numpy value has imported it
    if numpy is None:
        return None
    if type(value) is numpy.ndarray:
        return _array
    known = isinstance(value, numpy.generic) and value.dtype.kind in _NUMPY_KINDS
    return _numpy_scalar if known and not isinstance(value.item(), numpy.generic) else None


_Encode = Callable[[Encoder, Any, Trail], Node]

_SCALARS: dict[type, _Encode] = {
    type(None): _as_is,
    bool: _as_is,
    str: _as_is,
    int: _int,
    float: _float,
    complex: _complex,
    bytes: _bytes,
    torch.dtype: _named,
    torch.device: _named,
}
SCALARS = frozenset(_SCALARS)
TENSORS = frozenset((Tensor, torch.nn.Parameter))
_ENCODERS: dict[type, _Encode] = {
    **_SCALARS,
    **dict.fromkeys((*TENSORS, Hole), _leaf),
    list: _list,
    tuple: _tuple,
    torch.Size: _tuple,
    set: _set,
    frozenset: _set,
    dict: _dict,
    OrderedDict: _ordered_dict,
    Modules: _modules,
    Sparse: _sparse,
    Counter: _counter,
}
"""By exact type: a subclass would come back as something else than it was."""

"""The walk over a tree of state: its containers copied, its tensors listed, and its structure in a form to compare.

It runs on the training thread at each save, so its cost is the point: a dict of tensors alone, or a dict of such dicts
(a model's and an optimizer's state), is taken with a handful of calls into C, whatever its length. In the copy it is a
hole: where the structure is that of the last save, so is the node that the document has for it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.decoder import Node
from eventrunner.checkpoint.encoder import (
    MAX_DEPTH,
    SCALARS,
    TENSORS,
    Encoder,
    Hole,
    Modules,
    Sparse,
    Trail,
    hashable,
    is_array,
    is_scalar,
    refusal,
)
from eventrunner.checkpoint.tensors import problem_with, replace_tensors, shared_with
from eventrunner.errors import CheckpointError

__all__ = ["FILES", "Walked", "walk"]

FILES = {"state_dict": "model.safetensors", "optimizer": "optimizer.safetensors"}
"""By key at the top of a tree, the file for the tensors below it."""

_REST = "state.safetensors"
_HOLE = Hole()
_END = object()


class _OddError(CheckpointError):
    """There is something in the tree that can't be held; where and what is found out by encoding it."""


@dataclass(slots=True)
class Walked:
    """The parts of a tree whose tensors go to one file.

    Attributes:
        file: Its name.
        values: By key at the top of the tree, what was there, sparse tensors taken apart.
        copies: The same with holes for tensors.
        leaves: Every tensor, in the order of the tree, those that occur twice twice; arrays as tensors.
        holes: What was where the holes are.
        structure: Equal for trees that have the same leaves at the same places.
        pointers: The leaves' addresses; 0 for those without elements.
        arrays: The tensors of arrays, by the address of the array's object.
    """

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    copies: dict[str, Any] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)
    holes: list[Any] = field(default_factory=list)
    structure: list[object] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)
    arrays: dict[int, Tensor] = field(default_factory=dict)

    def hole(self, value: Any, structure: Iterable[object]) -> Hole:
        """What takes the place of *value*, whose tensors are among the leaves by now."""
        self.holes.append(value)
        self.structure += structure
        return _HOLE


def walk(tree: Mapping[str, Any]) -> list[Walked]:
    """Walk over *tree*: first what goes to the model's file, so that it has the tensors that others share with it.

    Raises:
        CheckpointError: there is something in the tree that a checkpoint can't hold; the message has the path to it.
    """
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"a checkpoint is a dict of state by name, not a {type(tree).__name__}.")
    if odd := [key for key in tree if type(key) is not str]:
        raise CheckpointError(f"the checkpoint has the key {odd[0]!r} at its top, where keys are strings.")
    parts = {file: Walked(file) for file in (*FILES.values(), _REST)}
    try:
        for key, value in tree.items():
            part = parts[FILES.get(key, _REST)]
            part.structure.append(key)
            part.values[key], part.copies[key] = value, _copy(part, value, 1)
        for part in parts.values():
            part.pointers = list(map(Tensor.data_ptr, part.leaves))
    except (_OddError, RuntimeError) as error:  # the latter from a tensor without memory of its own
        _refuse(tree)
        apart = replace_tensors(dict(tree), sparse := _Sparsely())
        if sparse.found:  # only now: to ask each tensor at each save would cost more than to begin again
            return walk(apart)
        raise CheckpointError(
            "the state changed while a checkpoint of it was being taken; let no other thread write to it meanwhile."
        ) from error
    return list(parts.values())


class _Sparsely:
    """Takes sparse tensors apart, and remembers whether there was one."""

    found = False

    def __call__(self, value: Tensor) -> Any:
        if value.layout is not torch.sparse_coo:
            return value
        self.found = True
        return Sparse(value._indices(), value._values(), tuple(value.shape), value.is_coalesced())  # noqa: SLF001


def _copy(part: Walked, value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in SCALARS:
        return value
    copy = _COPIERS.get(kind)
    if copy is None:
        return _numpy(part, value)
    if depth >= MAX_DEPTH and kind not in _FLAT:
        raise _OddError
    return copy(part, value, depth)


def _numpy(part: Walked, value: Any) -> Any:
    if is_scalar(value):
        return value
    if not is_array(value):
        raise _OddError
    if id(value) not in part.arrays:
        try:
            part.arrays[id(value)] = shared_with(value)
        except (TypeError, ValueError) as error:
            raise _OddError from error
    part.leaves.append(part.arrays[id(value)])
    return part.hole(value, (type(value),))


def _tensor(part: Walked, value: Tensor, depth: int) -> Hole:
    part.leaves.append(value)
    return part.hole(value, (Tensor,))


def _sparse(part: Walked, value: Sparse, depth: int) -> Sparse:
    part.structure.append(Sparse)
    return dataclasses.replace(
        value, indices=_tensor(part, value.indices, depth), values=_tensor(part, value.values, depth)
    )


def _dict(part: Walked, value: dict[Any, Any], depth: int) -> Any:
    kinds = set(map(type, value.values()))
    if kinds <= SCALARS:
        _check_keys(value, depth)
        return dict(value)
    keys = set(map(type, value))
    if keys == {str} or keys == {int}:  # not both: 1 == True, but they are written differently
        if kinds <= TENSORS:
            part.leaves += value.values()
            return part.hole(value, (dict, *value, _END))
        if kinds == {dict} and depth + 1 < MAX_DEPTH:
            return _dict_of_dicts(part, value, depth)
    return _mixed(part, value, depth)


def _dict_of_dicts(part: Walked, value: dict[Any, dict[Any, Any]], depth: int) -> Any:
    keys = list(map(tuple, value.values()))
    if all(type(key) is str for key in itertools.chain.from_iterable(set(keys))):
        found = list(itertools.chain.from_iterable(map(dict.values, value.values())))
        kinds = set(map(type, found))
        if kinds <= SCALARS:
            return dict(zip(value, map(dict.copy, value.values()), strict=True))
        if kinds <= TENSORS:
            part.leaves += found
            return part.hole(value, (dict, dict, *value, _END, *keys))
    return _mixed(part, value, depth)


def _ordered_dict(part: Walked, value: OrderedDict[Any, Any], depth: int) -> Any:
    content = _dict(part, value, depth)
    versions = getattr(value, "_metadata", None)
    return Modules(content, _copy(part, versions, depth + 1)) if versions else content


def _counter(part: Walked, value: Counter[Any], depth: int) -> Any:
    return Counter(_mixed(part, value, depth))


def _mixed(part: Walked, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
    _check_keys(value, depth)
    return dict(zip(value, _below(part, value, value.items(), depth), strict=True))


def _list(part: Walked, value: list[Any], depth: int) -> Any:
    kinds = set(map(type, value))
    if kinds <= SCALARS:
        return value.copy()
    if kinds <= TENSORS:
        part.leaves += value
        return part.hole(value, (list, len(value)))
    return _below(part, value, enumerate(value), depth)


def _tuple(part: Walked, value: tuple[Any, ...], depth: int) -> Any:
    return value if SCALARS.issuperset(map(type, value)) else tuple(_below(part, value, enumerate(value), depth))


def _below(part: Walked, value: Any, items: Iterable[tuple[object, Any]], depth: int) -> list[Any]:
    part.structure.append(type(value))
    copies = []
    for key, child in items:
        if type(child) in SCALARS:
            copies.append(child)
        else:
            part.structure.append(key)
            copies.append(_copy(part, child, depth + 1))
    part.structure.append(_END)
    return copies


def _set(part: Walked, value: set[Any] | frozenset[Any], depth: int) -> Any:
    _check_keys(value, depth)
    return value.copy()


def _check_keys(keys: Iterable[Any], depth: int) -> None:
    for key in () if SCALARS.issuperset(map(type, keys)) else keys:
        try:
            hashable(Encoder(_refused), key, (None,) * depth)
        except CheckpointError as error:
            raise _OddError from error


def _refuse(tree: Mapping[str, Any]) -> None:
    encoder = Encoder(_refused)
    for key, value in tree.items():
        encoder.node(value, (key,))


def _refused(value: Any, trail: Trail) -> Node:
    if isinstance(value, Tensor):
        problem = problem_with(value)
    else:
        try:
            problem = problem_with(shared_with(value))
        except (TypeError, ValueError):
            problem = f"a numpy array of dtype {value.dtype}"
    if problem:
        raise refusal(trail, problem)
    return None


_COPIERS: dict[type, Callable[[Walked, Any, int], Any]] = {
    **dict.fromkeys(TENSORS, _tensor),
    dict: _dict,
    OrderedDict: _ordered_dict,
    Counter: _counter,
    list: _list,
    tuple: _tuple,
    torch.Size: _tuple,
    set: _set,
    frozenset: _set,
    Sparse: _sparse,
}
_FLAT = TENSORS | {set, frozenset, Sparse}

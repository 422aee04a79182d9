"""The walk over a tree of state: containers are copied, tensors listed, and placeholders left for them in a skeleton.

It is made on the training thread at each save, so its cost is the point: a dict of tensors alone, or a dict of such
dicts (a model's and an optimizer's state), is taken with a handful of calls into C, whatever its length.
:mod:`eventrunner.checkpoint.codec` has the table of types, and what becomes of a skeleton.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.tensors import interned, problem_with, shared_with
from eventrunner.errors import CheckpointError

__all__ = [
    "FILES",
    "MAX_DEPTH",
    "NUMPY_ITEMS",
    "REST",
    "SCALARS",
    "TAG",
    "TENSORS",
    "Branch",
    "Modules",
    "Node",
    "Placeholder",
    "Sparse",
    "Trail",
    "copy_array",
    "copy_counter",
    "copy_dict",
    "copy_list",
    "copy_ordered_dict",
    "copy_set",
    "copy_tensor",
    "copy_tuple",
    "is_scalar",
    "kind_name",
    "leaves_of",
    "numpy_kind",
    "refusal",
    "same",
]

TAG = "$"
"""The key that sets a node of the document that stands for something else apart from a dict."""

Node = Any
"""What JSON holds, and what ``json.loads`` is typed to return."""

FILES = {"state_dict": "model.safetensors", "optimizer": "optimizer.safetensors"}
"""By key at the top of a tree, the file for the tensors below it."""

REST = "state.safetensors"
"""The file for all other tensors."""

MAX_DEPTH = 100
"""How deep a tree may be nested: enough for any state, and well within Python's own limit on recursion."""

Trail = tuple[object, ...]
"""The keys and indices that lead to a value."""

SCALARS = frozenset((type(None), bool, str, int, float, complex, bytes, torch.dtype, torch.device))
"""What can't change and has nothing in it; numpy has more."""

TENSORS = frozenset((Tensor, torch.nn.Parameter))

NUMPY_ITEMS = {"b": bool, "i": int, "u": int, "f": float, "c": complex, "U": str, "S": bytes}
"""By kind of numpy's scalars, Python's own."""

_TAKES = (
    "it takes dense and sparse_coo tensors, numbers, strings, bytes, None and dicts, lists, tuples and sets of them"
)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands in a skeleton for tensors: one, or a container of nothing else.

    Attributes:
        kind: ``tensor``, ``ndarray``, ``list``, ``dict``, or ``dicts`` for a dict of dicts.
        keys: Those of the container.
        inner: Those of each dict in it.
    """

    kind: str
    keys: tuple[Any, ...] = ()
    inner: tuple[tuple[Any, ...], ...] = ()

    def trails(self) -> Iterator[Trail]:
        """Yield for each tensor what leads to it from here."""
        if self.kind == "dicts":
            yield from ((key, below) for key, keys in zip(self.keys, self.inner, strict=True) for below in keys)
        elif self.keys:
            yield from ((key,) for key in self.keys)
        else:
            yield ()


@dataclass(frozen=True, slots=True)
class Modules:
    """Stands in a skeleton for a module's ``state_dict()``: what is in it, and the versions of its modules."""

    content: Any
    versions: Any


@dataclass(frozen=True, slots=True)
class Sparse:
    """Stands in a skeleton for a tensor of layout sparse_coo."""

    indices: Any
    values: Any
    size: tuple[int, ...]
    coalesced: bool


@dataclass(slots=True)
class Branch:
    """What a walk has found of a tree whose tensors go to one file.

    Attributes:
        file: Its name.
        copier: Copies a value of any type that is no scalar.
        careful: Whether each tensor is asked for its layout, which takes longer.
        skeleton: By key at the top of the tree, the copy of what was there.
        leaves: Every tensor, in the order of the tree, those that occur twice twice; arrays as tensors.
        placeholders: What the skeleton has in their places, and what leads there.
        pointers: The leaves' addresses; 0 for those without elements.
        arrays: The tensors of arrays, by the address of the array's object.
        has_sparse: Whether a tensor was taken apart; only if *careful*.
        open: The addresses of the containers that are being walked over.
    """

    file: str
    copier: Callable[[Branch, Any, Trail], Any]
    careful: bool = False
    skeleton: dict[str, Any] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)
    placeholders: list[tuple[Trail, Placeholder]] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)
    arrays: dict[int, Tensor] = field(default_factory=dict)
    has_sparse: bool = False
    open: set[int] = field(default_factory=set)

    def copy(self, value: Any, trail: Trail) -> Any:
        """Return what the skeleton has for *value*, to which *trail* leads."""
        return value if type(value) in SCALARS else self.copier(self, value, trail)

    def hold(self, placeholder: Placeholder, leaves: Iterable[Tensor], trail: Trail) -> Placeholder:
        """List the tensors that *placeholder* stands for, and return it."""
        self.leaves += leaves
        self.placeholders.append((trail, placeholder))
        return placeholder

    def trail_of(self, number: int) -> Trail:
        """Return what leads to a leaf."""
        trails = ((*trail, *inner) for trail, placeholder in self.placeholders for inner in placeholder.trails())
        return next(itertools.islice(trails, number, None))


def leaves_of(branches: Iterable[Branch]) -> list[Tensor]:
    """Return every tensor of a tree, one branch after another."""
    return list(itertools.chain.from_iterable(branch.leaves for branch in branches))


def _path_of(trail: Trail) -> str:
    """Return how an expression would lead to a value."""
    return "checkpoint" + "".join(f"[{key!r}]" for key in trail)


def kind_name(value: object) -> str:
    """Return a value's type as an error names it."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def refusal(trail: Trail, what: str) -> CheckpointError:
    """Return the error for something that a checkpoint can't hold."""
    return CheckpointError(f"{_path_of(trail)} is {what}, which a checkpoint can't hold; {_TAKES}.")


def same(branch: Branch, value: Any, trail: Trail) -> Any:
    """Return *value*, which can't change."""
    return value


def copy_tensor(branch: Branch, value: Tensor, trail: Trail) -> Placeholder | Sparse:
    """Leave a placeholder for a tensor, or two for a sparse one."""
    if branch.careful:
        if problem := problem_with(value):
            raise refusal(trail, problem)
        if value.layout is torch.sparse_coo:
            branch.has_sparse = True
            parts = {"indices": value._indices(), "values": value._values()}  # noqa: SLF001
            left = {name: branch.hold(Placeholder("tensor"), [part], (*trail, name)) for name, part in parts.items()}
            return Sparse(**left, size=tuple(value.shape), coalesced=value.is_coalesced())
    return branch.hold(Placeholder("tensor"), [value], trail)


def copy_array(branch: Branch, value: Any, trail: Trail) -> Placeholder:
    """Leave a placeholder for an array of numpy's."""
    if id(value) not in branch.arrays:
        try:
            branch.arrays[id(value)] = shared_with(value)
        except (TypeError, ValueError) as error:
            raise refusal(trail, f"a numpy array of dtype {value.dtype}") from error
    return branch.hold(Placeholder("ndarray"), [branch.arrays[id(value)]], trail)


def copy_dict(branch: Branch, value: dict[Any, Any], trail: Trail) -> Any:
    """Copy a dict, or leave a placeholder if it has tensors alone, or dicts of them alone."""
    _check_depth(trail)
    kinds = set(map(type, value.values()))
    if kinds <= SCALARS:
        _check_keys(branch, value, trail)
        return dict(value)
    keys = set(map(type, value))
    if (keys == {str} or keys == {int}) and not branch.careful:  # not both: 1 == True, but they are written differently
        if kinds <= TENSORS:
            return branch.hold(Placeholder("dict", tuple(value)), value.values(), trail)
        if kinds == {dict} and len(trail) + 1 < MAX_DEPTH:
            return _copy_dict_of_dicts(branch, value, trail)
    return _copy_mixed(branch, value, trail)


def _copy_dict_of_dicts(branch: Branch, value: dict[Any, dict[Any, Any]], trail: Trail) -> Any:
    inner = tuple(interned(map(tuple, value.values())))
    if all(type(key) is str for key in itertools.chain.from_iterable(set(inner))):
        found = list(itertools.chain.from_iterable(map(dict.values, value.values())))
        kinds = set(map(type, found))
        if kinds <= SCALARS:
            return dict(zip(value, map(dict.copy, value.values()), strict=True))
        if kinds <= TENSORS:
            return branch.hold(Placeholder("dicts", tuple(value), inner), found, trail)
    return _copy_mixed(branch, value, trail)


def copy_ordered_dict(branch: Branch, value: OrderedDict[Any, Any], trail: Trail) -> Any:
    """Copy an OrderedDict as a dict, and what a module's ``state_dict()`` says of versions."""
    content = copy_dict(branch, value, trail)
    versions = getattr(value, "_metadata", None)  # nn.Module.state_dict() puts it there
    return Modules(content, branch.copy(versions, (*trail, "_metadata"))) if versions else content


def copy_counter(branch: Branch, value: Counter[Any], trail: Trail) -> Any:
    """Copy a Counter."""
    _check_depth(trail)
    return Counter(_copy_mixed(branch, value, trail))


def _copy_mixed(branch: Branch, value: dict[Any, Any], trail: Trail) -> dict[Any, Any]:
    _check_keys(branch, value, trail)
    return dict(zip(value, _copy_items(branch, value, value.items(), trail), strict=True))


def copy_list(branch: Branch, value: list[Any], trail: Trail) -> Any:
    """Copy a list, or leave a placeholder if it has tensors alone."""
    _check_depth(trail)
    kinds = set(map(type, value))
    if kinds <= SCALARS:
        return value.copy()
    if kinds <= TENSORS and not branch.careful:
        return branch.hold(Placeholder("list", tuple(range(len(value)))), value, trail)
    return _copy_items(branch, value, enumerate(value), trail)


def copy_tuple(branch: Branch, value: tuple[Any, ...], trail: Trail) -> Any:
    """Copy a tuple, unless nothing in it can change."""
    _check_depth(trail)
    return value if SCALARS.issuperset(map(type, value)) else tuple(_copy_items(branch, value, enumerate(value), trail))


def _copy_items(branch: Branch, value: Any, items: Iterable[tuple[object, Any]], trail: Trail) -> list[Any]:
    if id(value) in branch.open:
        raise CheckpointError(f"{_path_of(trail)} leads back to a container that it lies in; a checkpoint is a tree.")
    branch.open.add(id(value))
    copies = []
    for key, below in items:
        copies.append(below if type(below) in SCALARS else branch.copy(below, (*trail, key)))
    branch.open.remove(id(value))
    return copies


def copy_set(branch: Branch, value: set[Any] | frozenset[Any], trail: Trail) -> Any:
    """Copy a set, whose members can't change."""
    _check_keys(branch, value, trail)
    return value.copy()


def _check_depth(trail: Trail) -> None:
    if len(trail) >= MAX_DEPTH:
        raise CheckpointError(
            f"{_path_of(trail[:3])}… is nested more than {MAX_DEPTH} deep, the most that a checkpoint holds."
        )


def _check_keys(branch: Branch, keys: Iterable[Any], trail: Trail) -> None:
    if SCALARS.issuperset(map(type, keys)):
        return
    for key in keys:
        if not _is_hashable(key):
            raise CheckpointError(
                f"{_path_of(trail)} has {kind_name(key)} as a key or member, which a checkpoint can't hold; it "
                "takes strings, numbers, bytes, None and tuples of them there."
            )
        branch.copy(key, trail)  # so that what lies too deep in it is refused


def _is_hashable(value: Any) -> bool:
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(_is_hashable, value))
    return is_scalar(value)


def is_scalar(value: Any) -> bool:
    """Return whether *value* can't change and has nothing in it."""
    return type(value) in SCALARS or numpy_kind(value) == "numpy"


def numpy_kind(value: Any) -> str:
    """Return ``ndarray`` for an array, ``numpy`` for a scalar that the document can have, and nothing for others."""
    numpy = sys.modules.get("numpy")  # what makes a numpy value has imported it
    if numpy is None:
        return ""
    if type(value) is numpy.ndarray:
        return "ndarray"
    known = isinstance(value, numpy.generic) and value.dtype.kind in NUMPY_ITEMS
    return "numpy" if known and not isinstance(value.item(), numpy.generic) else ""

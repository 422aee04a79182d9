"""What a walk over a tree of state leaves: a skeleton, in which placeholders are where tensors were, and the tensors.

How each type is walked over is said in the table of :mod:`eventrunner.checkpoint.codec`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from eventrunner.errors import CheckpointError

__all__ = [
    "FILES",
    "MAX_DEPTH",
    "REST",
    "TAG",
    "Branch",
    "Modules",
    "Node",
    "Placeholder",
    "Sparse",
    "Trail",
    "interned",
    "kind_name",
    "leaves_of",
    "path_of",
    "refusal",
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

T = TypeVar("T")

Trail = tuple[object, ...]
"""The keys and indices that lead to a value."""

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
        careful: Whether each tensor is asked for its layout, which takes longer.
        skeleton: By key at the top of the tree, the copy of what was there.
        leaves: Every tensor, in the order of the tree, those that occur twice twice; arrays as tensors.
        placeholders: What the skeleton has in their places, and what leads there.
        pointers: The leaves' addresses; 0 for those without elements.
        arrays: The tensors of arrays, by the address of the array's object.
        has_sparse: Whether a tensor was taken apart; only if *careful*.
    """

    file: str
    careful: bool = False
    skeleton: dict[str, Any] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)
    placeholders: list[tuple[Trail, Placeholder]] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)
    arrays: dict[int, Tensor] = field(default_factory=dict)
    has_sparse: bool = False
    _open: set[int] = field(default_factory=set)

    def hold(self, placeholder: Placeholder, leaves: Iterable[Tensor], trail: Trail) -> Placeholder:
        """List the tensors that *placeholder* stands for, and return it."""
        self.leaves += leaves
        self.placeholders.append((trail, placeholder))
        return placeholder

    def enter(self, container: Any, trail: Trail) -> None:
        """Refuse a container that is being walked over already, which it is until :meth:`exit`."""
        if id(container) in self._open:
            raise CheckpointError(
                f"{path_of(trail)} leads back to a container that it lies in; a checkpoint is a tree."
            )
        self._open.add(id(container))

    def exit(self, container: Any) -> None:
        """Take note that all in a container has been walked over."""
        self._open.remove(id(container))

    def trail_of(self, number: int) -> Trail:
        """Return what leads to a leaf."""
        trails = ((*trail, *inner) for trail, placeholder in self.placeholders for inner in placeholder.trails())
        return next(itertools.islice(trails, number, None))


def leaves_of(branches: Iterable[Branch]) -> list[Tensor]:
    """Return every tensor of a tree, one branch after another."""
    return list(itertools.chain.from_iterable(branch.leaves for branch in branches))


def interned(items: Iterable[T]) -> list[T]:
    """Return the items, and for equal ones the same object: many new containers have Python collect its garbage."""
    known: dict[T, T] = {}
    return [known.setdefault(item, item) for item in items]


def path_of(trail: Trail) -> str:
    """Return how an expression would lead to a value."""
    return "checkpoint" + "".join(f"[{key!r}]" for key in trail)


def kind_name(value: object) -> str:
    """Return a value's type as an error names it."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def refusal(trail: Trail, what: str) -> CheckpointError:
    """Return the error for something that a checkpoint can't hold."""
    return CheckpointError(f"{path_of(trail)} is {what}, which a checkpoint can't hold; {_TAKES}.")

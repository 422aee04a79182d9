"""Save plans: under which name and where in a file each tensor of a tree lies, kept for as long as the trees are alike.

What only the document and the manifest need is worked out when it is asked for, in the thread that writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.codec import document_of, filling_of, walk
from eventrunner.checkpoint.layout import DTYPES, Layout, Spec, entries_of, lay_out, paged
from eventrunner.checkpoint.manifest import TensorEntry
from eventrunner.checkpoint.tensors import (
    Addresses,
    Aliases,
    TensorMetadata,
    aliases_among,
    coinciding,
    has_problems,
    memory_order,
    problem_with,
    spec_of,
    still_aliases,
    stored,
)
from eventrunner.checkpoint.tree import FILES, TAG, Branch, Node, Placeholder, Trail, leaves_of, refusal

__all__ = ["Encoded", "FilePlan", "SavePlan", "encode", "make_plan"]

_NONE: frozenset[str] = frozenset()
_HEADER_KEY = "__metadata__"  # safetensors' own entry in a file's header


@dataclass(frozen=True, eq=False)
class FilePlan:
    """What one file holds. Tensors are numbered through all files of a save.

    Attributes:
        file: Its name.
        placeholders: What the skeleton has in the places of its tensors, and what leads there.
        reserved: The names that are kept for weights at the top of the model.
        metadata: What its tensors look like.
        begin: The number of the first.
        coinciding: Of its tensors, those at the address of an earlier one, with the first that is there.
        aliases: Of those, the ones that are the same tensor as an earlier one, with that one.
        own: The tensors with a place in the file.
        names: For each tensor, the name under which it is stored.
        elsewhere: The files of those that are stored in another.
        specs: What is in the file, by name, in the order of *own*.
        layout: Where.
    """

    file: str
    placeholders: list[tuple[Trail, Placeholder]]
    reserved: Set[str]
    metadata: TensorMetadata
    begin: int
    coinciding: Aliases
    aliases: Aliases
    own: list[int]
    names: list[str]
    elsewhere: Mapping[int, str]
    specs: dict[str, Spec]
    layout: Layout

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The manifest's table of the file's tensors."""
        return entries_of({self.file: self.specs})

    @cached_property
    def fillings(self) -> list[Node]:
        """For each placeholder, the document's node."""
        looks = self.metadata
        files = (self.elsewhere.get(number, self.file) for number in itertools.count(self.begin))
        leaves = map(_node, files, self.names, looks.sizes, looks.strides, looks.dtypes)
        return [filling_of(placeholder, leaves) for _, placeholder in self.placeholders]

    def holds(self, number: int) -> bool:
        """Return whether a tensor is one of those that go to this file, by its number."""
        return self.begin <= number < self.begin + len(self.names)

    def fits(self, branch: Branch, tensors: Sequence[Tensor], same_place: Aliases, reserved: Set[str]) -> bool:
        """Return whether it would come out the same for another tree, if all before it do."""
        mine = {i: first for i, first in same_place.items() if self.holds(i)}
        return (
            self.placeholders == branch.placeholders
            and self.reserved == reserved
            and self.metadata.fits(branch.leaves, branch.pointers)
            and self.coinciding == mine
            and still_aliases(tensors, self.aliases)
        )


@dataclass(frozen=True, eq=False)
class SavePlan:
    """All files of a save.

    Attributes:
        files: One for each that there may be; they lie behind each other in this order, each at a page.
        own: The tensors that have a place of their own, of all files.
        addresses: By file, where the tensors were when the plan was last used.
    """

    files: tuple[FilePlan, ...]
    own: list[int]
    addresses: list[Addresses]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in memory each file begins, and at the end where the last one ends, in whole pages."""
        return tuple(itertools.accumulate((paged(file.layout.nbytes) for file in self.files), initial=0))

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(file.layout.nbytes for file in self.files)

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """File and name for each of *own*."""
        return [(file.file, name) for file in self.files for name in file.specs]

    def document(self, keys: Iterable[str], skeletons: Iterable[Mapping[str, Any]]) -> dict[str, Node]:
        """Return the document for what a walk has left, with the tree's keys at the top in their order."""
        nodes: dict[str, Node] = {}
        for file, skeleton in zip(self.files, skeletons, strict=True):
            nodes |= document_of(skeleton, file.fillings)
        return {key: nodes[key] for key in keys}


def make_plan(
    tree: Mapping[str, Any], branches: Sequence[Branch], tensors: Sequence[Tensor], last: SavePlan | None = None
) -> SavePlan:
    """Return the plan for *tree*: *last* itself if it fits, and otherwise with those of its first files that do.

    Args:
        tree: The tree.
        branches: What a walk over it has left.
        tensors: The leaves of all branches.
        last: That of the last tree.

    Raises:
        CheckpointError: a tensor in the tree that a checkpoint can't hold; the message has the path to it.
    """
    addresses = [Addresses(branch.pointers) for branch in branches]
    if last:
        pairs = zip(last.addresses, addresses, strict=True)
        last.addresses[:] = addresses = [old if old == new else new for old, new in pairs]
    same_place = coinciding(addresses)
    reserved = {FILES["state_dict"]: _plain_keys(tree)}
    files: list[FilePlan] = []
    for old, new in zip(last.files if last else (), branches, strict=False):
        if not old.fits(new, tensors, same_place, reserved.get(old.file, _NONE)):
            break
        files.append(old)
    if last and len(files) == len(last.files):
        return last
    aliases = aliases_among(tensors, same_place)
    for branch in branches[len(files) :]:
        files.append(_planned(branch, files, same_place, aliases, reserved.get(branch.file, _NONE)))
    return SavePlan(tuple(files), [i for file in files for i in file.own], addresses)


def _planned(
    branch: Branch, before: Sequence[FilePlan], same_place: Aliases, aliases: Aliases, reserved: Set[str]
) -> FilePlan:
    _check(branch)
    names = [name for file in before for name in file.names]
    begin, end = len(names), len(names) + len(branch.leaves)
    metadata = TensorMetadata(branch.leaves, branch.pointers)
    specs, own = dict[str, Spec](), list[int]()
    bases = (base for trail, placeholder in branch.placeholders for base in _bases(trail, placeholder))
    looks = map(spec_of, metadata.dtypes, metadata.sizes)
    for number, (base, key), spec in zip(range(begin, end), bases, looks, strict=True):
        if number in aliases:
            names.append(names[aliases[number]])
        else:
            names.append(name := _free_name(base, specs, reserved if key != base else ()))
            specs[name] = spec
            own.append(number)
    mine = {i: original for i, original in aliases.items() if begin <= i < end}
    return FilePlan(
        file=branch.file,
        placeholders=branch.placeholders,
        reserved=reserved,
        metadata=metadata,
        begin=begin,
        coinciding={i: first for i, first in same_place.items() if begin <= i < end},
        aliases=mine,
        own=own,
        names=names[begin:],
        elsewhere={i: file.file for i, original in mine.items() for file in before if file.holds(original)},
        specs=specs,
        layout=lay_out(specs) if specs else Layout(b"", {}, 0),
    )


def _check(branch: Branch) -> None:
    if has_problems(branch.leaves):
        problems = enumerate(map(problem_with, branch.leaves))
        number, problem = next((number, problem) for number, problem in problems if problem)
        raise refusal(branch.trail_of(number), problem)


def _bases(trail: Trail, placeholder: Placeholder) -> Iterator[tuple[str, object]]:
    """Yield the name that each tensor gets if it is free, and the key that leads to it in its file, if one does."""
    inner = trail[1:] if trail[0] in FILES and (trail[1:] or placeholder.keys) else trail
    prefix = "".join(f"{key}." for key in inner)
    if placeholder.inner:
        for key, keys in zip(placeholder.keys, placeholder.inner, strict=True):
            yield from ((f"{prefix}{key}.{below}", None) for below in keys)
    elif placeholder.keys:
        yield from ((f"{prefix}{key}", None if inner else key) for key in placeholder.keys)
    else:
        yield prefix[:-1], inner[0] if len(inner) == 1 else None


def _free_name(base: str, taken: Mapping[str, object], reserved: Collection[str]) -> str:
    """Return the name of a tensor in its file: a plain key of the model stays as it is, whatever else is there."""
    if not base.isascii():  # safetensors' header is UTF-8, in which Python's lone surrogates have no place
        base = base.encode("utf-8", "backslashreplace").decode()
    if base not in taken and base not in reserved and base != _HEADER_KEY:
        return base
    names = (f"{base}#{count}" for count in itertools.count(2))
    return next(name for name in names if name not in taken and name not in reserved)


def _plain_keys(tree: Mapping[str, Any]) -> frozenset[str]:
    model = tree.get("state_dict")
    return frozenset(key for key in model if type(key) is str) if isinstance(model, dict) else frozenset()


def _node(file: str, name: str, size: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Node:
    node: dict[str, Node] = {TAG: "tensor"}
    if order := memory_order(size, strides):
        node["order"] = list(order)
    if dtype not in DTYPES:
        node |= {"dtype": str(dtype), "shape": list(size)}
    return {**node, "file": file, "name": name}


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
    branches = walk(tree)
    leaves = leaves_of(branches)
    plan = make_plan(tree, branches, leaves)
    tensors = {
        file.file: {name: stored(leaves[i]) for name, i in zip(file.specs, file.own, strict=True)}
        for file in plan.files
        if file.specs
    }
    return Encoded(plan.document(tree, [branch.skeleton for branch in branches]), tensors)

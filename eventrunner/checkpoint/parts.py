"""Plans: under which name and where in a file each tensor of a tree lies, kept for as long as the trees are alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from eventrunner.checkpoint.decoder import Node
from eventrunner.checkpoint.encoder import Encoder, Trail, refusal
from eventrunner.checkpoint.layout import Layout, Spec, entries_of, lay_out, paged
from eventrunner.checkpoint.likeness import Likeness
from eventrunner.checkpoint.manifest import TensorEntry
from eventrunner.checkpoint.tensors import node_of, problem_with, spec_of
from eventrunner.checkpoint.ties import Addresses, Twins, coinciding, still_tied, tied
from eventrunner.checkpoint.walk import FILES, Walked

__all__ = ["Part", "Plan", "document_of", "make_plan"]

_HEADER_KEY = "__metadata__"  # safetensors' own entry in a file's header


@dataclass(frozen=True, eq=False)
class Part:
    """What one file holds. Leaves are numbered through all parts of a plan.

    Attributes:
        file: Its name.
        structure: That of the part of the tree that was planned.
        likeness: What its leaves looked like.
        begin: The number of its first leaf.
        coinciding: Of its leaves, those at the address of an earlier one, with the first that is there.
        tied: Of those, the ones that are the same tensor as an earlier one, with that one.
        own: The leaves with a place in the file.
        nodes: For each leaf, the document's node.
        fillings: For each hole in the copied tree, the document's node.
        specs: What is in the file, by name, in the order of *own*.
        layout: Where.
    """

    file: str
    structure: list[object]
    likeness: Likeness
    begin: int
    coinciding: Twins
    tied: Twins
    own: list[int]
    nodes: list[Node]
    fillings: list[Node]
    specs: dict[str, Spec]
    layout: Layout

    @cached_property
    def entries(self) -> tuple[TensorEntry, ...]:
        """The manifest's table of the file's tensors."""
        return entries_of({self.file: self.specs})

    def fits(self, walked: Walked, leaves: Sequence[Tensor], same_place: Twins) -> bool:
        """Whether it would come out the same for another tree, if all parts before it do."""
        mine = {i: first for i, first in same_place.items() if self.begin <= i < self.begin + len(self.nodes)}
        return (
            self.structure == walked.structure
            and self.likeness.fits(walked.leaves)
            and self.coinciding == mine
            and still_tied(leaves, self.tied)
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """All files.

    Attributes:
        parts: One for each file that there may be; the files lie behind each other in this order, each at a page.
        own: The leaves that have a place of their own, of all parts.
        addresses: By part, where the leaves were when the plan was last used.
    """

    parts: tuple[Part, ...]
    own: list[int]
    addresses: list[Addresses]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where in memory each part's file begins, and at the end where the last one ends, in whole pages."""
        return tuple(itertools.accumulate((paged(part.layout.nbytes) for part in self.parts), initial=0))

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all files."""
        return sum(part.layout.nbytes for part in self.parts)

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """File and name for each of *own*."""
        return [(part.file, name) for part in self.parts for name in part.specs]


def make_plan(tree: Mapping[str, Any], walked: Sequence[Walked], last: Plan | None = None) -> Plan:
    """The plan for *tree*: *last* itself if it fits, and otherwise with those of its first parts that do.

    Raises:
        CheckpointError: a tensor in the tree that a checkpoint can't hold; the message has the path to it.
    """
    addresses = [Addresses(part.pointers) for part in walked]
    if last:
        pairs = zip(last.addresses, addresses, strict=True)
        last.addresses[:] = addresses = [old if old == new else new for old, new in pairs]
    leaves = [leaf for part in walked for leaf in part.leaves]
    same_place = coinciding(addresses)
    parts: list[Part] = []
    for old, new in zip(last.parts if last else (), walked, strict=False):
        if not old.fits(new, leaves, same_place):
            break
        parts.append(old)
    if last and len(parts) == len(last.parts):
        return last
    same = tied(leaves, same_place)
    for part in walked[len(parts) :]:
        parts.append(_planned(tree, part, leaves, parts, same_place, same))
    return Plan(tuple(parts), [i for part in parts for i in part.own], addresses)


def document_of(keys: Iterable[str], plan: Plan, copies: Sequence[Mapping[str, Any]]) -> dict[str, Node]:
    """The document for what a walk copied, with the tree's keys at the top in their order."""
    nodes: dict[str, Node] = {}
    for part, copied in zip(plan.parts, copies, strict=True):
        encoder = Encoder(_in_order(iter(part.fillings)))
        nodes |= {key: encoder.node(value, (key,)) for key, value in copied.items()}
    return {key: nodes[key] for key in keys}


def _planned(
    tree: Mapping[str, Any],
    walked: Walked,
    leaves: Sequence[Tensor],
    before: Sequence[Part],
    same_place: Twins,
    same: Twins,
) -> Part:
    nodes = [node for part in before for node in part.nodes]
    begin, end = len(nodes), len(nodes) + len(walked.leaves)
    plain, specs, own = _plain_keys(tree), dict[str, Spec](), list[int]()

    def leaf(_value: Any, trail: Trail) -> Node:
        number = len(nodes)
        value = leaves[number]
        if problem := problem_with(value):
            raise refusal(trail, problem)
        if number in same:
            nodes.append(nodes[same[number]])
        else:
            name = _name(trail, specs, plain)
            specs[name] = spec_of(value)
            nodes.append(node_of(value, walked.file, name))
            own.append(number)
        return nodes[-1]

    encoder = Encoder(leaf)
    for key in walked.copies:
        encoder.node(walked.values[key], (key,))
    refill = Encoder(_in_order(iter(nodes[begin:])))
    return Part(
        file=walked.file,
        structure=walked.structure,
        likeness=Likeness(walked.leaves),
        begin=begin,
        coinciding={i: first for i, first in same_place.items() if begin <= i < end},
        tied={i: twin for i, twin in same.items() if begin <= i < end},
        own=own,
        nodes=nodes[begin:],
        fillings=[refill.node(hole, ()) for hole in walked.holes],
        specs=specs,
        layout=lay_out(specs) if specs else Layout(b"", {}, 0),
    )


def _in_order(nodes: Iterator[Node]) -> Callable[[Any, Trail], Node]:
    return lambda _value, _trail: next(nodes)


def _name(trail: Trail, taken: Mapping[str, object], plain: Set[str]) -> str:
    """The name of a tensor in its file: a plain key of the model stays as it is, whatever else is there."""
    inner = trail[1:] if trail[0] in FILES and len(trail) > 1 else trail
    # safetensors' header is UTF-8, in which Python's lone surrogates have no place.
    base = ".".join(map(str, inner)).encode("utf-8", "backslashreplace").decode()
    reserved = plain if trail[0] == "state_dict" and inner != (base,) else ()
    names = itertools.chain([base], (f"{base}#{count}" for count in itertools.count(2)))
    return next(name for name in names if name not in taken and name not in reserved and name != _HEADER_KEY)


def _plain_keys(tree: Mapping[str, Any]) -> frozenset[str]:
    model = tree.get("state_dict")
    return frozenset(key for key in model if type(key) is str) if isinstance(model, dict) else frozenset()

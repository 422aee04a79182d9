"""Which tensors of a tree are the same one: same memory, seen in the same way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from eventrunner.checkpoint.tensors import identity

__all__ = ["Addresses", "Twins", "coinciding", "still_tied", "tied"]

Twins = dict[int, int]
"""By a leaf's number, that of an earlier one."""


@dataclass(frozen=True)
class Addresses:
    """The addresses of some leaves; 0 stands for no memory."""

    pointers: list[int]

    @cached_property
    def distinct(self) -> frozenset[int]:
        """Those that there are."""
        return frozenset(self.pointers) - {0}

    @cached_property
    def repeated(self) -> bool:
        """Whether one occurs twice."""
        return len(self.distinct) + self.pointers.count(0) < len(self.pointers)


def coinciding(groups: Sequence[Addresses]) -> Twins:
    """By leaf, the first that has the same address; without those that are the first, and those without memory."""
    if _all_distinct(groups):
        return {}
    first: dict[int, int] = {}
    pointers = (pointer for group in groups for pointer in group.pointers)
    return {i: seen for i, place in enumerate(pointers) if place and (seen := first.setdefault(place, i)) != i}


def _all_distinct(groups: Sequence[Addresses]) -> bool:
    if any(group.repeated for group in groups):
        return False
    return all(one.distinct.isdisjoint(other.distinct) for one, other in itertools.combinations(groups, 2))


def tied(leaves: Sequence[Tensor], coinciding: Twins) -> Twins:
    """By leaf, the first that is the same tensor, of those that have an earlier one's address."""
    known: dict[object, int] = {}
    candidates = sorted({*coinciding, *coinciding.values()})
    twins = {i: known.setdefault(identity(leaves[i]), i) for i in candidates}
    return {i: twin for i, twin in twins.items() if twin != i}


def still_tied(leaves: Sequence[Tensor], tied: Twins) -> bool:
    """Whether the same are tied in other leaves that look and coincide as those did, for all but two bits."""
    return all(_bits(leaves[i]) == _bits(leaves[twin]) for i, twin in tied.items())


def _bits(leaf: Tensor) -> tuple[bool, bool]:
    return leaf.is_conj(), leaf.is_neg()

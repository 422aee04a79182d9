"""Scopes: which ranks of a run a receiver is for, and which of them this process is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eventrunner.bus.signature import Receiver

__all__ = ["SCOPES", "Guard", "Place"]

SCOPES = ("all", "main", "local_main")

Guard = Callable[[str, Receiver], Receiver]
"""Given who it is and a receiver, returns that receiver such that it can't communicate with other ranks."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which process of how many this is; ``local_rank`` is its number on its machine, where that is known."""

    rank: int = 0
    local_rank: int | None = None
    world: int = 1
    guard: Guard | None = None

    @classmethod
    def of(cls, sender: Any) -> Place | None:
        """Return what a sender's ``ranks`` say; None where it has none."""
        ranks: Any = getattr(sender, "ranks", None)
        if not hasattr(ranks, "world"):
            return None
        return cls(ranks.rank, ranks.local_rank, ranks.world, getattr(ranks, "guard", None))

    @classmethod
    def of_environment(cls) -> Place:
        """Return what a launcher has said in the environment."""
        world = int(os.environ.get("WORLD_SIZE") or 1)
        if world == 1 or "RANK" not in os.environ:
            return cls()
        local = os.environ.get("LOCAL_RANK")
        return cls(int(os.environ["RANK"]), None if local is None else int(local), world)

    def is_in(self, scope: str) -> bool:
        """Return whether receivers of this scope run here; where local ranks aren't known, rank 0 is the first."""
        first = self.rank if scope == "main" or self.local_rank is None else self.local_rank
        return self.world == 1 or scope == "all" or first == 0

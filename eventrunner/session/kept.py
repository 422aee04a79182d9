"""Kept: what one hook has saved and keeps, and what may be deleted of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Kept"]

_RETIRED = 4  # saves whose superfluous ones are asked for again, as one of their successors may have failed
_REMEMBERED = 100  # the same for a resumed run: more than can wait to be deleted when a run is killed


class Kept:
    """The names of the regular saves of one hook, the oldest first.

    Attributes:
        names: What is kept.
        retired: What the last saves have made superfluous, the newest last.
        last: Step and name of the newest.
        has_late_step: Whether that one has a step that came after the last iteration.
        due: The name under which one is about to be made.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.retired: list[list[str]] = []
        self.last: tuple[int, str] | None = None
        self.has_late_step = False
        self.due: str | None = None

    def add(self, name: str, step: int, late: bool, most: int) -> list[str]:
        """Keep *name*, and no more than *most*; returns what may be deleted once it is committed."""
        kept = [*(each for each in self.names if each != name), name]
        keep = len(kept) if most < 0 else most
        retired, self.names = self.retire(kept[:-keep]), kept[-keep:]
        self.due, self.last, self.has_late_step = None, (step, name), late
        return retired

    def drop(self, name: str, step: int, last: tuple[int, str] | None) -> None:
        """Keep *name* no longer, which was to be saved after *step* and has failed; *last* was the newest before."""
        self.names = [each for each in self.names if each != name]
        if self.last == (step, name):
            self.last = last

    def is_at(self, step: int, late: bool) -> bool:
        """Whether the newest is of this state."""
        return self.last is not None and self.last[0] == step and self.has_late_step == late

    def retire(self, names: list[str]) -> list[str]:
        """What may be deleted once the save under way is committed: *names*, and those of a few saves before it.

        These are mostly deleted by then; but deleting may wait for who was told of a commit, and a killed run has not
        come to it. So each save has more of them, always as many: what it holds must not depend on how fast a disk is.
        """
        if names:
            self.retired = [*self.retired, names][-_REMEMBERED:]
        return [name for batch in self.retired[-_RETIRED:] for name in batch]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"kept": list(self.names), "retired": self.retired, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on keeping."""
        self.names, self.retired = list(state["kept"]), [list(names) for names in state.get("retired", ())]
        self.last = tuple(state["last"]) if state["last"] else None

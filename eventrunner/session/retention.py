"""Retention: which of its regular saves a hook keeps, and which may be deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Retention"]

_REPEATED = 4  # saves whose superfluous ones are named again, as one of their successors may have failed
_REMEMBERED = 100  # the same for a resumed run: more than can wait to be deleted when a run is killed


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept at one moment; a save makes another one of it.

    Attributes:
        names: What is kept, the oldest first.
        retired: What the last saves have made superfluous, the newest last.
        last: Step and name of the newest.
        has_late_step: Whether that one has a step that came after the last iteration.
    """

    names: tuple[str, ...] = ()
    retired: tuple[tuple[str, ...], ...] = ()
    last: tuple[int, str] | None = None
    has_late_step: bool = False

    def plan(self, name: str, step: int, late: bool, most: int) -> tuple[Retention, list[str]]:
        """Return what is kept with *name*, at most so many, and what may be deleted once it is committed."""
        names = (*(each for each in self.names if each != name), name)
        keep = len(names) if most < 0 else most
        after, doomed = self.retire(names[:-keep])
        return replace(after, names=names[-keep:], last=(step, name), has_late_step=late), doomed

    def without(self, name: str, step: int, before: Retention) -> Retention:
        """Return what is kept where the save *name* has failed, which was planned from *before*."""
        names = tuple(each for each in self.names if each != name)
        return replace(self, names=names, last=before.last if self.last == (step, name) else self.last)

    def is_at(self, step: int, late: bool) -> bool:
        """Return whether the newest is of this state."""
        return self.last is not None and self.last[0] == step and self.has_late_step == late

    def retire(self, names: Sequence[str]) -> tuple[Retention, list[str]]:
        """Return what is kept, and what may be deleted once the save under way is committed: *names* and some before.

        Those of a few saves before are mostly deleted by then; but deleting may wait for a reader of a checkpoint, and
        a killed run has not come to it. So each save names more of them, always as many: what it holds must not depend
        on how fast a disk is.
        """
        retired = (*self.retired, tuple(names))[-_REMEMBERED:] if names else self.retired
        return replace(self, retired=retired), [name for batch in retired[-_REPEATED:] for name in batch]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        return {"kept": list(self.names), "retired": [list(names) for names in self.retired], "last": self.last}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Retention:
        """Make it of what :meth:`state_dict` gave."""
        retired = tuple(tuple(names) for names in state.get("retired", ()))
        return cls(tuple(state["kept"]), retired, tuple(state["last"]) if state["last"] else None)

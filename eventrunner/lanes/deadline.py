"""Deadline: how long anybody waits for what is done in the background."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

__all__ = ["POLL", "Deadline"]

POLL = 0.2
"""Seconds after which a wait looks at its deadline again: a signal's handler may have shortened it."""


@dataclass(slots=True)
class Deadline:
    """One limit for all the waits of a run: for room in a lane, at a barrier, for a staging buffer, and at the end.

    Attributes:
        seconds: How long something that is waited for may make no progress.
        at: The moment of ``time.monotonic`` after which nobody waits any more.
    """

    seconds: float = math.inf
    at: float = math.inf

    def left(self, since: float | None = None) -> float:
        """Return for how many seconds a wait may go on that has seen no progress since a moment, by default now."""
        now = time.monotonic()
        return min((now if since is None else since) + self.seconds, self.at) - now

    def shorten(self, seconds: float) -> None:
        """Have all waits over in so many seconds; a signal's handler may call it during such a wait."""
        self.at = min(self.at, time.monotonic() + seconds)

    def expire(self) -> None:
        """Have nobody wait any more."""
        self.at = -math.inf

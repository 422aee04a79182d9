"""Soon: what costs little more for many than for one waits a moment for more, and for no longer than that."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

__all__ = ["Soon"]

_TOGETHER = 0.1  # seconds: nobody who reads along sees the difference


class Soon:
    """When to do such a thing: right away, or where it was done in the last tenth of a second, that much later.

    Behind a step of a model, whatever is done has to be fetched into the processor's caches anew, so that one line of a
    log costs ten times as much as each of ten that are written at once. Waking a thread costs the same for one and ten.
    """

    def __init__(self) -> None:
        self._done = -math.inf
        self._timer: threading.Timer | None = None

    def due(self, later: Callable[[], None]) -> bool:
        """Whether it is to be done now; if not, *later* will be called by a thread of its own, needed by then or not.

        So it waits no longer if the one who asks is held up.
        """
        if time.perf_counter() - self._done >= _TOGETHER:
            return True
        if self._timer is None:
            self._timer = threading.Timer(_TOGETHER, self._call, (later,))
            self._timer.daemon = True
            self._timer.start()
        return False

    def done(self) -> None:
        """It is being done now."""
        self._done = time.perf_counter()

    def cancel(self) -> None:
        """Nothing will be called any more, but for what is being called already."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call(self, later: Callable[[], None]) -> None:
        self._timer = None
        later()

"""Soon: what costs little more for many than for one waits a moment for more, and for no longer than that."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

__all__ = ["Soon"]

_TOGETHER = 0.1  # seconds: nobody who reads along sees the difference


class Soon:
    """When to do what costs little more for many: right away, or if it was just done, a tenth of a second later.

    Behind a step of a model, whatever is done has to be fetched into the processor's caches anew, so that one line of a
    log costs ten times as much as each of ten that are written at once. Waking a thread costs the same for one and ten.
    """

    def __init__(self) -> None:
        self._done = -math.inf
        self._timer: threading.Timer | None = None  # the last one
        self._waits = False  # whether it is still to call

    def due(self, later: Callable[[], None]) -> bool:
        """Whether it is to be done now; if not, *later* will be called by a thread of its own, needed by then or not.

        So it waits no longer if the one who asks is held up.
        """
        if time.perf_counter() - self._done >= _TOGETHER:
            return True
        if not self._waits:
            self._timer, self._waits = threading.Timer(_TOGETHER, self._call, (later,)), True
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:  # there are too many threads, or the interpreter is about to end
                self._timer, self._waits = None, False
                return True
        return False

    def done(self) -> None:
        """It is being done now."""
        self._done = time.perf_counter()

    def cancel(self) -> None:
        """Nothing will be called any more; what is being called already is waited for, and its thread ends."""
        timer, self._timer, self._waits = self._timer, None, False
        if timer is not None:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join()

    def _call(self, later: Callable[[], None]) -> None:
        self._waits = False
        later()

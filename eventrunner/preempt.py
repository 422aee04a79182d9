"""Preemption: a signal that asks a run to end is answered at its next iteration, with everything saved.

SIGTERM and SIGUSR1 are what schedulers send before they take a machine away. The handler only leaves word; the run ends
between two iterations, in training, validation or test, and the process exits with :data:`EXIT_CODE`. A second signal
ends the process at once; then the newest committed checkpoint is what there is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from eventrunner.errors import Preempted

__all__ = ["EXIT_CODE", "SIGNALS", "Asked", "preemptible"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = os.EX_TEMPFAIL
"""75, "temporary failure, try again" of ``sysexits.h``: what was asked for is saved, and the run can be resumed."""


class Asked:
    """Whether a signal has asked the run to end.

    Attributes:
        at: When it came, by ``time.monotonic``; None as long as none has.
    """

    def __init__(self, leave_word: Callable[[Callable[[], None]], Any]) -> None:
        self.at: float | None = None
        self._leave_word, self._number = leave_word, 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: leave word at the first signal, exit at the second."""
        if self.at is not None:
            os._exit(128 + number)
        self.at, self._number = time.monotonic(), number
        self._leave_word(self.answer)

    def answer(self) -> None:
        """Raise :class:`Preempted` if a signal has come."""
        if self.at is not None:
            raise Preempted(EXIT_CODE, signal.Signals(self._number).name)


@contextlib.contextmanager
def preemptible(leave_word: Callable[[Callable[[], None]], Any]) -> Iterator[Asked]:
    """Within the block, answer the first signal by ``leave_word(action)``; *action* raises :class:`Preempted`.

    A signal that the program handles itself, or ignores, is left to it. Only the main thread can do this; elsewhere the
    block does nothing.
    """
    asked = Asked(leave_word)
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, asked.handle)
    try:
        yield asked
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)

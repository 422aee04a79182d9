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
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from eventrunner.errors import Preempted

__all__ = ["EXIT_CODE", "SIGNALS", "preemptible"]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = os.EX_TEMPFAIL
"""75, "temporary failure, try again" of ``sysexits.h``: what was asked for is saved, and the run can be resumed."""


@contextlib.contextmanager
def preemptible(leave_word: Callable[[Callable[[], None]], Any]) -> Iterator[None]:
    """Within the block, answer the first signal by ``leave_word(action)``; *action* raises :class:`Preempted`.

    A signal that the program handles itself, or ignores, is left to it. Only the main thread can do this; elsewhere the
    block does nothing.
    """
    came: list[int] = []

    def end() -> None:
        raise Preempted(EXIT_CODE, signal.Signals(came[0]).name)

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        leave_word(end)

    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)

"""Preemption and Ctrl-C: a signal that asks a run to end is answered at its next iteration, with everything saved.

SIGTERM, SIGUSR1 and SIGHUP are what schedulers, launchers and closing terminals send before they take a machine away;
then the process exits with :data:`EXIT_CODE`. SIGINT is Ctrl-C, and is a KeyboardInterrupt in the end. The handler only
reports it; the run ends between two iterations, in training, validation or test. The same request may come several
times, from a scheduler and from a launcher that forwards it: what comes within a second of the first is one with it. A
later signal ends the run at once; then the newest committed checkpoint is what there is.

Signals often go to every process of a run. Its worker processes must outlast them, or the iteration under way can't be
finished: they are started with these signals blocked (:func:`blocked`), and then pass over them (:func:`outlast`). All
other children have the default handlers.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from eventrunner.errors import Preempted

__all__ = [
    "EXIT_CODE",
    "SIGNALS",
    "StopRequest",
    "blocked",
    "handled_signals",
    "kill_daemons",
    "outlast",
    "preemptible",
    "unblock",
]

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
EXIT_CODE = os.EX_TEMPFAIL
"""75, "temporary failure, try again" of ``sysexits.h``: what was asked for is saved, and the run can be resumed."""

_DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    **dict.fromkeys(SIGNALS, signal.SIG_DFL),
}
_ONE_REQUEST = 1.0
"""Seconds within which several signals are the same request."""


class StopRequest:
    """A signal that asks the run to end, or none yet.

    Attributes:
        at: When it came, by ``time.monotonic``; None as long as none has.
        again: Whether another has come since, and the run is to end at once.
        failed: Whether the run is failing anyway: then Ctrl-C has nothing to wait for.
        over: Whether the run has ended.
    """

    def __init__(self, on_request: Callable[[StopRequest], Any]) -> None:
        self.at: float | None = None
        self.again = self.failed = self.over = False
        self._on_request, self._number = on_request, 0
        self._end: BaseException | None = None

    @property
    def number(self) -> int:
        """The signal's; 0 as long as none has come."""
        return self._number

    @property
    def interrupted(self) -> bool:
        """Whether it was Ctrl-C, after which nobody takes the machine away: a save may take its time."""
        return self._number == signal.SIGINT

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: report the first, end at once at one that comes later."""
        if self.at is None and not (self.failed and number == signal.SIGINT):
            self.at, self._number = time.monotonic(), self._number or number
            self._on_request(self)
        elif self.at is None or time.monotonic() - self.at > _ONE_REQUEST:
            (_default if self.over else self._end_at_once)(number)

    @property
    def answered(self) -> bool:
        """Whether :meth:`answer` has raised while the run was under way."""
        return self._end is not None

    def take(self, number: int) -> None:
        """Take a signal that has come to another process of the run as one that has come; its own may still come."""
        self._number = self._number or number

    def answer(self) -> None:
        """Raise what a signal that has come asks for: :class:`Preempted`, or KeyboardInterrupt."""
        if not self._number:
            return
        name = signal.Signals(self._number).name
        end = KeyboardInterrupt() if self.interrupted else Preempted(EXIT_CODE, name)
        if not self.over:
            self._end = end
        raise end

    def is_answer(self, error: BaseException) -> bool:
        """Return whether it is what :meth:`answer` has raised, and not an interrupt during something."""
        return error is self._end

    def close(self) -> None:
        """Release the run, which has ended, as the handler may stay."""
        self.over = True
        self._on_request, self._end = lambda request: None, None

    def _end_at_once(self, number: int) -> None:
        self.again = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        try:
            kill_daemons()
        finally:
            os._exit(128 + number)


def kill_daemons() -> None:
    """End the daemonic children of a process that is about to end by ``os._exit``, as an ordinary exit does."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@contextlib.contextmanager
def preemptible(on_request: Callable[[StopRequest], Any]) -> Iterator[StopRequest]:
    """Within the block, answer the first signal by *on_request*, which has :meth:`StopRequest.answer` called later.

    A signal that the program handles itself, or ignores, is left to it. Only the main thread can do this; elsewhere the
    block does nothing. When the block was left without an exception, call :meth:`StopRequest.answer` once more, for a
    signal that came too late for anybody else. If one came, the handlers stay, as it may come again while the process
    exits; to all but that they do as the default.
    """
    request = StopRequest(on_request)
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _DEFAULTS if main and _is_default(number)]
    for number in ours:
        signal.signal(number, request.handle)
    try:
        yield request
    finally:
        request.close()
        if not request.number:
            _restore(ours)
        else:
            atexit.register(_ignore, [number for number in ours if number in SIGNALS])


def handled_signals() -> list[signal.Signals]:
    """Return the signals that are handled here at the moment."""
    return [number for number in _DEFAULTS if _is_ours(number) and not _is_default(number)]


@contextlib.contextmanager
def blocked(numbers: Iterable[int]) -> Iterator[None]:
    """Within the block, a process that this thread starts has these signals blocked from its first moment.

    Here they wait for the end of the block, unless another thread takes them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlast(numbers: Iterable[int]) -> None:
    """In a worker process: pass over these signals, which are the run's to answer, and unblock them.

    They aren't ignored, nor left blocked, as what the worker itself starts would inherit that.
    """
    for number in numbers:
        signal.signal(number, _pass_over)
    unblock()


def unblock() -> None:
    """In a thread or process that was started while they were blocked: let them come again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DEFAULTS)


def _pass_over(number: int, frame: FrameType | None) -> None:
    pass


def _is_ours(number: int) -> bool:
    handler = signal.getsignal(number)
    return handler is _pass_over or isinstance(getattr(handler, "__self__", None), StopRequest)


def _is_default(number: int) -> bool:
    handler = signal.getsignal(number)
    request = getattr(handler, "__self__", None)
    return handler is _DEFAULTS[signal.Signals(number)] or (isinstance(request, StopRequest) and request.over)


def _default(number: int) -> None:
    """Do what the signal does by default."""
    _restore([number])
    signal.raise_signal(number)


def _restore(numbers: Iterable[int]) -> None:
    for number in numbers:
        signal.signal(number, _DEFAULTS[signal.Signals(number)])


def _ignore(numbers: Iterable[int]) -> None:
    """At exit: the interpreter, as it ends, puts the default in the place of any other handler."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


_forking = threading.local()


def _before_fork() -> None:
    """Block the signals, as a child that is terminated at once would lose that to a handler that isn't its own."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled_signals())


def _forked_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _forked_child() -> None:
    _restore(filter(_is_ours, _DEFAULTS))
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_forked_parent, after_in_child=_forked_child)

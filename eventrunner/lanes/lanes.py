"""Lanes: work in the background of its caller, first in first out.

A lane is a named queue with one worker, so its jobs never overlap or overtake; lanes overlap each other. Plain
functions run in the worker's thread, ``async def`` ones on one event loop that all lanes share, and those with
``worker="process"`` in a process. Threads are for input and output: a job that computes in Python takes the
interpreter's lock from its caller.

A failure is never lost: what a job raises is kept, with a note of where the job came from, and is raised by the next
:meth:`Lanes.check`, :meth:`Lanes.flush` or :meth:`Lanes.close` in the thread that calls it.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from typing import Any

from eventrunner.checks import check_choices, check_seconds
from eventrunner.errors import LaneError, LaneTimeoutError, MissingExtraError
from eventrunner.lanes.deadline import POLL, Deadline
from eventrunner.lanes.lane import Job, Lane, LanesState, TaskStats, lane_here
from eventrunner.lanes.loop import serve, wait_for
from eventrunner.lanes.task import WORKERS, Account, OnFull, Span, Task

__all__ = ["BACKENDS", "WORKERS", "Account", "Lanes", "OnFull", "Span", "Task", "run_now"]

BACKENDS = ("asyncio", "trio")

_GRACE = 0.5
"""Seconds in which a job that was cancelled, or a process that was killed, is gone."""
_NOTED = 20
"""How many failures are noted on the first."""


class Lanes:
    """The lanes of one run, from ``with`` to ``with``.

    The first job starts the event loop's thread and each lane's first one its worker; a run without jobs has none.
    Leaving the block waits for all jobs, however it is left, and then all these threads have ended (trio keeps idle
    ones for ten seconds). The exception is a call in a thread that hangs beyond the deadline: it can't be
    interrupted, so its thread and the event loop's stay until it returns. They are daemon threads, so that they
    don't keep the interpreter from exiting: waiting for jobs is the work of ``with``, not of the interpreter's exit.

    All methods may be called from any thread, jobs included.

    A job that hangs is reported to the callers that wait for it. One that waits for a lane, at a barrier, in a flush or
    for room in it, gives up when the lane has finished nothing for the length of the deadline; a job that waits for
    another lane doesn't, since what waits for that job does. And every 30 seconds that one job runs there is a warning.

    Args:
        backend: The event loop, ``asyncio`` or ``trio``.
        deadline: Seconds that leaving the block waits before it gives up, and raises what is lost by that; and for
            which a lane that is waited for before that may finish no job. It can be changed later, by
            :attr:`deadline`: a process that was asked to end has it ``shorten`` all waits, those under way included.
        on_failure: Called in the worker when a failure was added to :attr:`failures`.
        warn: Called in the worker with a sentence and the error for each failure that is only to be warned of. By
            default a ``RuntimeWarning``, and a single one for a task that says ``on_error="warn"``. Also called where a
            job that is waited for runs for long.

    Raises:
        OptionError: no such backend or deadline.
        MissingExtraError: trio isn't installed.
    """

    def __init__(
        self,
        backend: str = "asyncio",
        deadline: float = 600.0,
        *,
        on_failure: Callable[[], None] | None = None,
        warn: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        check_choices("", BACKENDS, backend=backend)
        if backend == "trio" and importlib.util.find_spec("trio") is None:
            raise MissingExtraError("backend='trio' needs trio: pip install 'eventrunner[trio]'.")
        check_seconds("", deadline=deadline)
        self.failures: deque[BaseException] = deque()
        """What jobs raised and was not reported yet, the oldest first."""
        self.spans: deque[Span] = deque(maxlen=100_000)
        """When the last jobs ran, in the order of their ends."""
        self.deadline = Deadline(deadline)
        self._loop = _Loop(backend, LanesState(self.failures, self.spans, on_failure, warn, self.deadline))
        self._phase = "new"
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}
        self._stats: dict[Task, TaskStats] = {}

    def __enter__(self) -> Lanes:
        if self._phase != "new":
            raise LaneError("lanes can't be opened a second time; make new Lanes().")
        self._phase = "open"
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            _note(error, self._shut(None))

    @property
    def is_open(self) -> bool:
        """Whether jobs are taken."""
        return self._phase == "open"

    @property
    def unfinished(self) -> bool:
        """Whether a job is waiting or running; after :meth:`close`, whether one was given up that still runs."""
        return any(lane.unfinished() for lane in self._lanes.copy().values())

    def submit(
        self, task: Task, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, origin: object = ""
    ) -> None:
        """Put a job in; returns at once unless the lane is full. Costs a few microseconds.

        The arguments are passed on as they are: what the caller is going to change must be copied before. The job has
        the caller's context variables as they are now, except in a process.

        Args:
            task: What to call.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            origin: Where it comes from, such as ``"epoch 3, iter 120"``; its ``str()`` is taken for a message only.

        Raises:
            LaneFullError: the lane is full, and the task says that this is an error.
            LaneTimeoutError: the lane is full, and has finished nothing for the length of the deadline.
            LaneError: the lanes are closed; or the lane is full and can't be waited for here, see :meth:`wait`.
        """
        stats = self._stats.get(task)
        if stats is None:
            stats = self._register(task)
        stats.lane.put(Job(stats, args, kwargs, origin, time.perf_counter(), copy_context()))

    def mark(self, lane: str) -> int:
        """Return a ticket for :meth:`wait`: the number of jobs that were put into the lane so far."""
        found = self._lanes.get(lane)
        return 0 if found is None else found.number

    def wait(self, lane: str, ticket: int | None = None, timeout: float | None = None, *, label: str = "") -> None:
        """Return when the jobs up to *ticket*, by default all there are now, are finished, whether or not they failed.

        Args:
            lane: Its name; a lane that has had no job is finished.
            ticket: What :meth:`mark` gave.
            timeout: Seconds, or None for as long as the lane finishes a job now and then, see :class:`Lanes`.
            label: What the time spent here is accounted under.

        Raises:
            LaneTimeoutError: they weren't finished in time; names the lane, the job that runs, and how many there are.
            LaneError: called by a job of that lane, or by an ``async def`` job, which would block the event loop;
                or the lanes were closed without finishing the jobs.
        """
        found = self._lanes.get(lane)
        if found is not None:
            found.wait(found.number if ticket is None else ticket, timeout, _moment(timeout), label)

    def check(self) -> None:
        """Raise the oldest failure that wasn't raised yet."""
        if not self.failures:
            return
        try:
            failure = self.failures.popleft()
        except IndexError:  # another thread has raised it
            return
        raise failure

    def flush(self, lane: str | None = None, timeout: float | None = None, *, label: str = "") -> None:
        """Wait for the jobs that one lane, or every lane, has now, as :meth:`wait` does; then :meth:`check`."""
        until = _moment(timeout)
        for name, ticket in self._numbers().items():
            if lane in (None, name):
                self._lanes[name].wait(ticket, timeout, until, label)
        self.check()

    def close(self, timeout: float | None = None) -> None:
        """Wait for all jobs, those that they submit meanwhile included, end the workers, and raise the first failure.

        The other failures are noted on it. When *timeout* seconds, by default the deadline, are over, or the wait is
        interrupted, the jobs that wait are given up, ``async def`` ones are cancelled, and processes killed, for
        which half a second more is allowed. Closing what is closed does nothing.

        Raises:
            LaneTimeoutError: jobs weren't finished in time; names their number, their lanes, and those that run.
            LaneError: called by a job.
        """
        failures = self._shut(timeout)
        if failures:
            raise _note(failures[0], failures[1:])

    def accounts(self) -> list[Account]:
        """Return what became of each task's jobs so far, in the order of the tasks' first submissions."""
        return [stats.account() for stats in self._stats.copy().values()]

    def _register(self, task: Task) -> TaskStats:
        with self._lock:
            if self._phase != "open":
                raise LaneError(
                    f"lane {task.lane!r} can't take a job of {task}: the lanes are not open; use them by 'with'."
                )
            if task.lane not in self._lanes:
                lane = Lane(task.lane, self._loop.state)
                self._loop.start(lane)
                self._lanes[task.lane] = lane
            return self._stats.setdefault(task, TaskStats(task, self._lanes[task.lane]))

    def _numbers(self) -> dict[str, int]:
        return {name: lane.number for name, lane in self._lanes.copy().items()}

    def _shut(self, timeout: float | None) -> list[BaseException]:
        """Drain and end; returns the failures, and raises only what interrupts it."""
        if self._phase != "open":
            return []
        if lane_here.get() in self._lanes.values():
            raise LaneError("lanes can't be closed by one of their own jobs, which they would wait for.")
        if timeout is None:  # what is done already is seen even if no time is left
            timeout = min(max(self.deadline.left(), POLL), self.deadline.seconds)
        until, gives_up = _moment(timeout), True
        try:
            gives_up = not self._drain(until)
            if gives_up:
                self.failures.append(
                    LaneTimeoutError(f"the lanes, given {timeout:g} s, were closed with {self._left()}.")
                )
        except BaseException as error:
            error.add_note(f"the lanes were closed with {self._left()}")
            raise
        finally:
            self._end(gives_up, until)
        failures = list(self.failures)
        self.failures.clear()
        return failures

    def _drain(self, until: float | None) -> bool:
        """Wait; return whether everything was finished before *until*, what jobs submitted meanwhile included."""
        before: dict[str, int] = {}
        while (numbers := self._numbers()) != before:
            if not all(self._lanes[name].reach(number, until) for name, number in numbers.items()):
                return False
            before = numbers
        return True

    def _left(self) -> str:
        left = "; ".join(filter(None, (lane.unfinished() for lane in self._lanes.copy().values())))
        return f"{left}; what waited is given up" if left else "no job left"

    def _end(self, gives_up: bool, until: float | None) -> None:
        with self._lock:
            self._phase = "closed"
        for lane in self._lanes.values():
            lane.close(gives_up=gives_up)
        left = math.inf if until is None else until - time.monotonic()
        self._loop.end(_GRACE if gives_up else max(left, _GRACE))


class _Loop:
    """The thread of the event loop, from the first lane to the end.

    Lanes come by a queue, not by calls into the loop. A call would block its caller while the loop is busy, for ever
    where the loop waits for the caller; and an interrupt during one would leave a worker that nobody knows of.
    """

    def __init__(self, backend: str, state: LanesState) -> None:
        self.backend, self.state = backend, state
        self.inbox: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        self.lanes: list[Lane] = []
        self.workers: set[threading.Thread] = set()

    def start(self, lane: Lane) -> None:
        """Give the lane a worker, soon."""
        if self.state.loop is None:
            self.state.loop = threading.Thread(target=self.run, name="eventrunner lanes", daemon=True)
            try:
                self.state.loop.start()
            except RuntimeError:  # the system has no thread left
                self.state.loop = None
                raise
        self.lanes.append(lane)
        self.inbox.put(lane)
        if not self.state.loop.is_alive():  # see run()
            lane.close(gives_up=True)

    def end(self, timeout: float) -> None:
        """Let the workers end after what they have, and wait until they have ended, or so many seconds."""
        if self.state.loop is not None:
            self.inbox.put(None)
            self.state.loop.join(min(timeout, threading.TIMEOUT_MAX))

    def run(self) -> None:
        """Live the life of the event loop's thread."""
        try:
            serve(self.backend, self.inbox, self.lanes, self.workers)
        except BaseException as error:  # noqa: BLE001  # there is no thread left to receive lanes in
            self.state.add_failure(error)
            for lane in self.lanes:
                lane.close(gives_up=True)
        if self.backend == "asyncio":  # which tells its idle workers to end, but doesn't wait for them; trio keeps them
            for worker in self.workers:
                worker.join()


def run_now(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any], backend: str = "asyncio") -> None:
    """Make a task's call at once, in the caller's thread; an ``async def`` is awaited on an event loop of its own."""
    result = task.call(*args, **kwargs)
    if result is not None and inspect.isawaitable(result):
        wait_for(result, backend)


def _note(first: BaseException, others: Iterable[BaseException]) -> BaseException:
    """*first*, with the others noted on it."""
    others = list(others)
    for other in others[:_NOTED]:
        notes = "".join(f"\n  {note}" for note in getattr(other, "__notes__", ()))
        first.add_note(f"besides, {type(other).__name__}: {other}{notes}")
    if len(others) > _NOTED:
        first.add_note(f"besides, {len(others) - _NOTED} more")
    return first


def _moment(timeout: float | None) -> float | None:
    """When it is over, in seconds of ``time.monotonic``."""
    return None if timeout is None or timeout == math.inf else time.monotonic() + timeout

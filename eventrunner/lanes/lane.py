"""One lane: a queue, what its submitters do to it, and what its worker does."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any

from eventrunner.errors import LaneError, LaneFullError, LaneTimeoutError
from eventrunner.lanes.deadline import POLL, Deadline
from eventrunner.lanes.task import Account, Span, Task

__all__ = ["SLOW", "Job", "Lane", "LanesState", "TaskStats", "lane_here"]

_OF_TASK = ("lane", "name", "location", "site", "worker", "native")
_OF_STATS = ("calls", "failures", "coalesced", "waits", "waited", "busy", "cpu")

_CHAIN = 10  # lanes that wait for each other, one for the next; in a ring they would go on for ever

SLOW = 30.0
"""Seconds after which a job that somebody waits for is reported, and again after as many."""


@dataclass(slots=True, eq=False)
class Job:
    """One submission; ``number`` counts those of the lane from 1, ``context`` has its submitter's context variables."""

    stats: TaskStats
    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None
    origin: object
    submitted: float
    context: Context
    number: int = 0

    def __str__(self) -> str:
        try:
            origin = str(self.origin)
        except Exception as error:  # noqa: BLE001  # the failure that it is asked for matters more
            origin = f"from somewhere that can't be told ({type(error).__name__})"
        return f"{self.stats.task}, {origin}" if origin else f"{self.stats.task}"


@dataclass(slots=True, eq=False)
class TaskStats:
    """What became of the jobs of a task; from ``dropped`` on written by submitters, else by the worker."""

    task: Task
    lane: Lane
    calls: int = 0
    failures: int = 0
    in_a_row: int = 0
    skipped: int = 0
    disabled: bool = False
    busy: float = 0.0
    cpu: float = 0.0
    dropped: int = 0
    coalesced: int = 0
    waits: int = 0
    waited: float = 0.0

    def account(self) -> Account:
        """Return what there is so far."""
        facts = {name: getattr(self.task, name) for name in _OF_TASK} | {
            name: getattr(self, name) for name in _OF_STATS
        }
        return Account(**facts, dropped=self.dropped + self.skipped, barrier_waits=self.lane.barrier_waits.copy())


@dataclass(slots=True, eq=False)
class LanesState:
    """What the lanes of a run share: what jobs leave behind, and the event loop's thread.

    By the ``deadline``, whose progress is that of a lane, a caller that waits for one without a timeout gives up.
    """

    failures: deque[BaseException]
    spans: deque[Span]
    on_failure: Callable[[], None] | None
    warn: Callable[[str, BaseException], None] | None
    deadline: Deadline
    loop: threading.Thread | None = None

    def add_failure(self, error: BaseException) -> None:
        """Add a failure, and report that there is one."""
        self.failures.append(error)
        if self.on_failure is not None:
            self.on_failure()

    def report(self, text: str, error: BaseException) -> None:
        """Warn of something that is no failure, or none to be raised."""
        if self.warn is not None:
            self.warn(text, error)
        else:
            warnings.warn(text, RuntimeWarning, stacklevel=1)


@dataclass(slots=True, eq=False)
class _Waiter:
    """A caller that waits; it is *notified* when *ready*, or when there is nothing to wait for any more."""

    ready: Callable[[], bool]
    notified: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)


lane_here: ContextVar[Lane | None] = ContextVar("lane_here", default=None)
"""The lane whose job is running here."""


class Lane:
    """A queue of jobs with one worker.

    Submitters exclude each other by ``lock``, which the worker never takes: it would hold it while it waits for the
    interpreter's lock, and keep the training waiting. So each attribute is written by one side only, and the deque,
    whose single operations are atomic, decides who gets a job that both want.
    """

    def __init__(self, name: str, state: LanesState) -> None:
        self.name, self.state = name, state
        self.jobs: deque[Job] = deque()
        self.wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.waiters: list[_Waiter] = []
        # by submitters, within the lock
        self.lock = threading.Lock()
        self.number = self.replaced = 0
        self.closed = self.given_up = False
        self.barrier_waits: dict[str, float] = {}
        # by the worker
        self.passed = self.done = 0
        self.running: Job | None = None
        self.awaits: Lane | None = None
        self.began = 0.0
        self.reported = 0.0  # by the callers that wait: when that job was last reported, on the same clock
        self.cancel: Callable[[], object] | None = None
        """Cancels what runs on the event loop, where it must be called."""

    # What submitters do.

    def put(self, job: Job) -> None:
        """Put a job in, as its task says where the lane is full."""
        stats = job.stats
        while True:
            with self.lock:
                if self.closed:
                    raise LaneError(f"lane {self.name!r} can't take a job of {stats.task}: it is closed.")
                if stats.disabled:
                    stats.dropped += 1
                    return
                if self._pending() < stats.task.max_pending:
                    # A KeyboardInterrupt may come between any two lines: the job is then in without a token, and
                    # a caller that waits for the lane puts one.
                    job.number = self.number + 1
                    self.jobs.append(job)
                    self.number = job.number
                    self.wake.put(True)
                    return
                if self._replace(job):
                    return
            self._wait_for_room(stats)

    def reach(self, number: int, until: float | None) -> bool:
        """Return whether the job of that number was finished before *until*, a moment of ``time.monotonic``.

        Without such a moment, before the lane has finished nothing for its deadline; a job waits as long as it takes.
        """
        return self._until(lambda: self.passed >= number, until)

    def wait(self, number: int, timeout: float | None, until: float | None, label: str) -> None:
        """Wait as :meth:`reach` does, accounted under the label; not to reach it is an error."""
        if self.passed >= number:
            return
        began = time.perf_counter()
        try:
            if not self.reach(number, until):
                if self.given_up:
                    raise LaneError(
                        f"lane {self.name!r} was closed before the jobs that were waited for were finished."
                    )
                raise self._late(began, timeout, f"at {label!r} " if label and until is None else "")
        finally:
            with self.lock:
                self.barrier_waits[label] = self.barrier_waits.get(label, 0.0) + time.perf_counter() - began

    def unfinished(self) -> str:
        """Say how many jobs are, and which runs; empty where none is."""
        count, running = self._pending(), self.running
        seconds = time.perf_counter() - self.began
        since = f", for {seconds:.0f} s" if seconds >= 1 else ""
        runs = f" (running: {running}{since})" if running else ""
        return f"{count} unfinished {'job' if count == 1 else 'jobs'} in lane {self.name!r}{runs}" if count else ""

    def close(self, *, gives_up: bool) -> None:
        """Take no more jobs; where it *gives_up*, those that wait are dropped, and nobody waits for them any more."""
        with self.lock:
            self.closed = True
            self.given_up |= gives_up
            while gives_up and self.jobs:
                with contextlib.suppress(IndexError):  # the worker was quicker
                    self.jobs.popleft().stats.dropped += 1
        self._notify_ready()

    def _pending(self) -> int:
        return self.number - self.replaced - self.done

    def _replace(self, job: Job) -> bool:
        """Within the lock: give the job the place, and the token, of one that waits; return whether there was one."""
        stats, task = job.stats, job.stats.task
        if task.on_full == "error":
            raise LaneFullError(
                f"lane {self.name!r} can't take a job of {task}: max_pending={task.max_pending} jobs are unfinished; "
                "raise max_pending, or pass on_full='wait', 'coalesce' or 'drop_oldest'."
            )
        if task.on_full == "wait":
            return False
        waiting, coalesces = tuple(self.jobs), task.on_full == "coalesce"
        # It comes in before the other goes: a worker that has a token must never find no job.
        job.number = self.number + 1
        self.jobs.append(job)
        for old in (each for each in reversed(waiting) if each.stats is stats) if coalesces else waiting:
            self.replaced += 1
            if self._remove(old):
                self.number = job.number
                old.stats.coalesced += coalesces
                old.stats.dropped += not coalesces
                return True
            self.replaced -= 1
        if self._remove(job):
            return False
        self.number = job.number  # by a token too many, the worker has taken it
        return True

    def _remove(self, job: Job) -> bool:
        """Take a job out; return whether it still waited, as the worker may have taken it."""
        try:
            self.jobs.remove(job)
        except ValueError:
            return False
        return True

    def _wait_for_room(self, stats: TaskStats) -> None:
        began, limit = time.perf_counter(), stats.task.max_pending
        try:
            if not self._until(lambda: self.closed or self._pending() < limit, None, condition=" is full and"):
                raise self._late(began, None, f"to take a job of {stats.task} ")
        finally:
            with self.lock:
                stats.waits += 1
                stats.waited += time.perf_counter() - began

    def _late(self, began: float, timeout: float | None, purpose: str) -> LaneTimeoutError:
        """Return the error of a caller that has waited in vain."""
        left = self.unfinished() or f"lane {self.name!r}"
        if timeout is None:
            waited = f"waited {time.perf_counter() - began:.1f} s {purpose}for {left}"
            if time.monotonic() >= self.state.deadline.at:
                return LaneTimeoutError(f"{waited}, and was asked to wait no longer; find out what it hangs on.")
            return LaneTimeoutError(
                f"{waited}, of which it finished none in {self.state.deadline.seconds:g} s; allow a longer deadline, "
                "or find out what it hangs on."
            )
        return LaneTimeoutError(f"waited {timeout:g} s for {left}; allow more time, or find out what it hangs on.")

    def _until(self, ready: Callable[[], bool], until: float | None, condition: str = "") -> bool:
        """Wait for *ready*, which the worker asks after each job; returns whether it was, be it for a moment."""
        if ready():
            return True
        self._refuse_deadlock(f"lane {self.name!r}{condition}")
        waiter = _Waiter(ready)
        self.waiters.append(waiter)
        done, since = self._finished(), time.monotonic()
        here = lane_here.get()
        if here is not None:
            here.awaits = self
        try:
            self.wake.put(True)  # see put(): a job may be without a token
            while not (was := ready()) and not self.given_up:
                if (now := self._finished()) != done:
                    done, since = now, time.monotonic()
                left = self._remaining(since) if until is None else until - time.monotonic()
                if left <= 0:
                    break
                with contextlib.suppress(queue.Empty):
                    waiter.notified.get(timeout=min(left, SLOW, POLL))
                self._report_slow()
        finally:
            self.waiters.remove(waiter)
            if here is not None:
                here.awaits = None
        return was or ready()

    def _finished(self) -> int:
        """Count the jobs done here and in the lanes that the running job waits for, to see whether all stands still."""
        count, lane = 0, self
        for _ in range(_CHAIN):
            count += lane.done
            if lane.awaits is None:
                break
            lane = lane.awaits
        return count

    def _remaining(self, since: float) -> float:
        """Return for how many seconds a lane is still waited for that has finished nothing since then."""
        if lane_here.get() is not None:  # what waits for this job has a deadline
            return math.inf
        return self.state.deadline.left(since)

    def _report_slow(self) -> None:
        """Report what is waited for, if that has taken long, and some time has passed since the last report."""
        running, now = self.running, time.perf_counter()
        if running is None or now - max(self.began, self.reported) < SLOW:
            return
        self.reported = now
        text = f"still waiting for {self.unfinished()}"
        try:
            self.state.report(text, LaneTimeoutError(text))
        except Exception as error:  # noqa: BLE001  # a warning that is an error mustn't end the wait
            self.state.failures.append(error)

    def _refuse_deadlock(self, lane: str) -> None:
        if lane_here.get() is self:
            raise LaneError(f"{lane} can't be waited for by one of its own jobs, which it would wait for.")
        if threading.current_thread() is self.state.loop:
            raise LaneError(
                f"{lane} can't be waited for on the event loop, which other jobs need meanwhile; await "
                "anyio.to_thread.run_sync with the call."
            )

    # What the worker does.

    def work(self, call: Callable[[Lane, Job], None]) -> None:
        """Do a job for each token, by *call*, until there is a token to end."""
        lane_here.set(self)
        goes_on = True
        while goes_on or self.jobs:
            goes_on = goes_on and self.wake.get()
            try:
                job = self.jobs.popleft()
            except IndexError:  # a token too many
                continue
            self._do(job, call)
            del job  # and its arguments, which may be large

    def _do(self, job: Job, call: Callable[[Lane, Job], None]) -> None:
        stats, task = job.stats, job.stats.task
        if stats.disabled:
            stats.skipped += 1
        else:
            began, cpu = time.perf_counter(), time.thread_time()
            self.began, self.running = began, job
            failed = self._attempt(job, call)
            ended = time.perf_counter()
            stats.busy += ended - began
            stats.cpu += time.thread_time() - cpu if task.worker == "thread" else 0.0
            stats.calls += 1
            self.state.spans.append(Span(self.name, task.name, task.site, job.submitted, began, ended, failed))
            self.running = None
        self.done += 1
        self.passed = job.number
        self._notify_ready()

    def _notify_ready(self) -> None:
        for waiter in tuple(self.waiters):
            if self.closed or waiter.ready():
                waiter.notified.put(None)

    def _attempt(self, job: Job, call: Callable[[Lane, Job], None]) -> bool:
        """Call, again if need be; returns whether it failed in the end."""
        left = job.stats.task.retries
        job.context.run(lane_here.set, self)
        while True:
            try:
                job.context.run(call, self, job)
            except BaseException as error:  # noqa: BLE001  # it is for the owner of the lanes
                if left and isinstance(error, Exception) and not self.given_up:
                    left -= 1
                    continue
                try:
                    self._fail(job, error)
                except BaseException as other:  # noqa: BLE001  # a warning that is an error, a callback that raises
                    self.state.failures.append(other)
                return True
            job.stats.in_a_row = 0
            return False

    def _fail(self, job: Job, error: BaseException) -> None:
        stats, task, text = job.stats, job.stats.task, f"{job}, in lane {self.name!r}"
        stats.failures += 1
        stats.in_a_row += 1
        error.add_note(f"raised by {text}")
        if task.on_error == "raise":
            self.state.add_failure(error)
            return
        if task.disable_after:
            stats.disabled = stats.in_a_row >= task.disable_after
            then = "is disabled" if stats.disabled else f"is disabled after {task.disable_after}"
            text += f", failed {stats.in_a_row} in a row and {then}"
        text = f"{text}: {type(error).__name__}: {error}"
        if self.state.warn is not None or task.disable_after or stats.failures == 1:
            self.state.report(text, error)

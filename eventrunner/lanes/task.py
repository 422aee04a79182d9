"""Tasks: calls to be offloaded, with what is to happen when they pile up or fail; and what became of them."""

from __future__ import annotations

import functools
import inspect
import pickle
import re
import traceback
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args

from eventrunner.checks import check_choices, check_ints, refusal
from eventrunner.errors import LaneError, OptionError
from eventrunner.lanes.importable import check_sendable

__all__ = ["WORKERS", "Account", "OnFull", "Span", "Task", "call_in_process", "inert_kind", "is_async"]

OnFull = Literal["wait", "coalesce", "drop_oldest", "error"]
WORKERS = ("thread", "process")

_DISABLE_AFTER = re.compile(r"disable_after=0*([1-9]\d*)")


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A call to be offloaded: made once, submitted many times.

    Args:
        call: What is called. With ``worker="process"`` it is sent there with its arguments for every job.
        lane: The lane that it runs in.
        name: What messages call it; by default the qualified name of the call.
        location: Its file and line, for messages.
        site: The site that it is a receiver of, for messages.
        max_pending: The number of unfinished jobs, waiting or running and of whatever task, at which its lane is full.
        on_full: What a submission to a full lane does. ``wait``: wait for room. ``coalesce``: take the place of this
            task's newest waiting job. ``drop_oldest``: take the place of the oldest waiting job, whatever its task.
            Where no such job waits, these two wait. ``error``: raise ``LaneFullError``. A job that takes a place goes
            to the end of the queue.
        on_error: What a failure is. ``raise``: kept and raised. ``warn``: a warning. ``disable_after=<k>``: a
            warning, and after *k* in a row the task is not called any more; its jobs count as dropped.
        retries: How often a call that raised an ``Exception`` is called again at once before it counts as failed.
        worker: ``thread`` or ``process``. What a process prints is lost.
        native: The call spends its time outside of the interpreter's lock.

    Raises:
        OptionError: a value can't be, or the call can't be sent to a process.
    """

    call: Callable[..., Any]
    lane: str
    _: KW_ONLY
    name: str = ""
    location: str = ""
    site: str = ""
    max_pending: int = 1000
    on_full: OnFull = "wait"
    on_error: str = "raise"
    retries: int = 0
    worker: str = "thread"
    native: bool = False
    awaits: bool = field(init=False)
    """Whether the call is an ``async def``, behind a ``partial`` or as ``__call__`` too."""
    disable_after: int = field(init=False)
    """Failures in a row after which it isn't called any more; 0 for never."""

    def __post_init__(self) -> None:
        if not callable(self.call):
            raise OptionError(f"a task of lane {self.lane!r} must be something to call, not {self.call!r}.")
        name = self.name or getattr(self.call, "__qualname__", type(self.call).__qualname__)
        object.__setattr__(self, "name", name)
        try:
            _check_options(self)
        except OptionError as error:
            raise OptionError(f"{self}: {error}") from None
        found = _DISABLE_AFTER.fullmatch(self.on_error)
        object.__setattr__(self, "disable_after", int(found[1]) if found else 0)
        object.__setattr__(self, "awaits", is_async(self.call))
        if self.worker == "process":
            _check_process(self)

    def __str__(self) -> str:
        place = f" ({self.location})" if self.location else ""
        return f"receiver {self.name}{place}" + (f" at {self.site!r}" if self.site else "")


@dataclass(frozen=True)
class Account:
    """What became of the jobs of one task, in counts and in seconds.

    ``calls`` are jobs that were run to their end, ``failures`` those of them that raised in their last try. ``waits``
    and ``waited`` are of submitters that found the lane full. ``busy`` is wall time in the worker, ``cpu`` the
    processor time of the worker's thread, so not of the event loop or a process. ``barrier_waits`` are the seconds in
    which somebody waited for the lane, for all its tasks together, by the label that was given for it.
    """

    lane: str
    name: str
    location: str
    site: str
    calls: int
    failures: int
    dropped: int
    coalesced: int
    waits: int
    waited: float
    busy: float
    cpu: float
    barrier_waits: dict[str, float]
    worker: str = "thread"
    native: bool = False

    @property
    def python_bound(self) -> bool:
        """Whether the jobs have computed in Python for over a second and half of their time: a case for a process."""
        return self.worker == "thread" and not self.native and self.cpu > max(0.5 * self.busy, 1.0)


@dataclass(frozen=True, slots=True)
class Span:
    """When a job was submitted, began and ended, in seconds of ``time.perf_counter``."""

    lane: str
    name: str
    site: str
    submitted: float
    began: float
    ended: float
    failed: bool


def call_in_process(pickled: bytes) -> BaseException | None:
    """In a worker process: make a call, and return what it raised, in a form that can be sent.

    The call comes pickled, so that an error in unpickling it is the job's as well. It is returned, not raised, because
    a ``SystemExit`` would end the process under the next job.
    """
    try:
        call, args, kwargs = pickle.loads(pickled)
        call(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001
        note = f"in the worker process:\n{traceback.format_exc().rstrip()}"
        try:
            sent: BaseException = pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001
            sent = LaneError(f"{type(error).__name__}: {error}")
        sent.add_note(note)
        return sent
    return None


def is_async(call: Any) -> bool:
    """Return whether a call gives something to be awaited, as far as can be told without calling it."""
    return inert_kind(call) == "coroutine"


def inert_kind(call: Any) -> str:
    """Return which generator or coroutine a call gives, of which nothing runs until driven; empty where it is none.

    As far as can be told without calling it.
    """
    while isinstance(call, functools.partial):
        call = call.func
    kinds = {
        "generator": inspect.isgeneratorfunction,
        "async generator": inspect.isasyncgenfunction,
        "coroutine": inspect.iscoroutinefunction,
    }
    functions = (call, type(call).__call__)
    return next((kind for kind, test in kinds.items() if any(map(test, functions))), "")


def _check_options(task: Task) -> None:
    if not isinstance(task.lane, str) or not task.lane:
        raise refusal("", "lane", task.lane, "the name of a lane, which is any text but an empty one")
    check_choices("", get_args(OnFull), on_full=task.on_full)
    check_choices("", WORKERS, worker=task.worker)
    if not isinstance(task.on_error, str) or not _DISABLE_AFTER.fullmatch(task.on_error):
        check_choices("", ("raise", "warn", "disable_after=<failures in a row, from 1>"), on_error=task.on_error)
    check_ints("", 1, max_pending=task.max_pending)
    check_ints("", 0, retries=task.retries)


def _check_process(task: Task) -> None:
    if task.awaits:
        raise OptionError(
            f"worker='process' can't run {task}, which is an async def; pass worker='thread', or move the work to a "
            "plain function at the top level of a module."
        )
    try:
        check_sendable(task.call)
    except Exception as error:
        raise OptionError(
            f"worker='process' can't send {task} to another process ({error}); move it to the top level of a module."
        ) from error

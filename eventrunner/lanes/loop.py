"""The event loop that the lanes of a run share, where each has a task, which waits for the lane's worker."""

from __future__ import annotations

import inspect
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_process
import anyio.to_thread
from anyio.lowlevel import RunVar

from eventrunner.errors import LaneError
from eventrunner.lanes.lane import Job, Lane
from eventrunner.lanes.signals import blocked, handled_signals, outlast, unblock
from eventrunner.lanes.task import call_in_process

__all__ = ["serve", "wait_for"]

_starting: RunVar[anyio.Lock] = RunVar("_starting")


def serve(
    backend: str, inbox: queue.SimpleQueue[Lane | None], lanes: list[Lane], workers: set[threading.Thread]
) -> None:
    """Be the event loop's thread: give each lane of *inbox* a worker, until None comes and they have ended.

    Args:
        backend: ``asyncio`` or ``trio``.
        inbox: Where lanes come in.
        lanes: All that have been put there; they are told to end.
        workers: Takes the threads of the workers.

    Raises:
        Exception: there is no thread left to receive lanes in.
    """

    def receive() -> Lane | None:
        workers.add(threading.current_thread())
        return inbox.get()

    def work(lane: Lane) -> None:
        workers.add(threading.current_thread())
        unblock()  # another lane's process may be starting
        lane.work(_call)

    anyio.run(_serve, receive, work, lanes, backend=backend)


async def _serve(receive: Callable[[], Lane | None], work: Callable[[Lane], None], lanes: list[Lane]) -> None:
    limiter, failure = anyio.CapacityLimiter(1), None
    async with anyio.create_task_group() as group:
        try:
            while lane := await anyio.to_thread.run_sync(receive, limiter=limiter):
                group.start_soon(_tend, lane, work)
        except Exception as error:  # noqa: BLE001  # raised below: the group would wrap it up
            failure = error
        for lane in lanes:
            lane.wake.put(False)
            if lane.given_up and lane.cancel is not None:
                lane.cancel()
    if failure is not None:
        raise failure


async def _tend(lane: Lane, work: Callable[[Lane], None]) -> None:
    try:
        with anyio.CancelScope(shield=True):  # a job that was taken must be done, whatever becomes of other lanes
            await anyio.to_thread.run_sync(work, lane, limiter=anyio.CapacityLimiter(1))
    except BaseException as error:  # noqa: BLE001  # there is no thread left
        lane.state.add_failure(error)
        lane.close(gives_up=True)


def _call(lane: Lane, job: Job) -> None:
    """In a lane's worker: do a job."""
    task, kwargs = job.stats.task, job.kwargs or {}
    if task.worker == "process":
        _on_loop(lane, _run_in_process, task.call, tuple(job.args), dict(kwargs))
        return
    result = task.call(*job.args, **kwargs)
    if result is not None and inspect.isawaitable(result):
        _on_loop(lane, _awaited, result)


def _on_loop(lane: Lane, function: Callable[..., Awaitable[None]], *args: Any) -> None:
    error = anyio.from_thread.run(_guarded, lane, function, args)
    if error is not None:
        try:
            raise error
        finally:
            del error  # else its traceback, by way of this frame, would keep it and the job's arguments


async def _guarded(lane: Lane, function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> BaseException | None:
    """Return what the function raised: one that is no ``Exception`` would, if raised here, end the event loop."""
    with anyio.CancelScope() as scope:
        lane.cancel = scope.cancel
        if lane.given_up:
            scope.cancel()
        try:
            await function(*args)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001
            return error
        return None
    return LaneError("cancelled, because the lanes were closed before it was finished")


async def _awaited(result: Awaitable[Any]) -> None:
    await result


async def _run_in_process(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pickled = pickle.dumps((call, args, kwargs), pickle.HIGHEST_PROTOCOL)
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # what errors of the script's own are sent back as
    try:
        await _shield_process()
        error = await _in_process(call_in_process, pickled)
    except anyio.BrokenWorkerProcess as broken:
        raise LaneError(f"the worker process ended {_when(broken)}") from broken
    if error is not None:
        raise error


async def _shield_process() -> None:
    """Have a process that outlasts the signals which ask a run to end: Ctrl-C always, the others where a run does."""
    numbers = [signal.SIGINT, *handled_signals()]
    async with _one_by_one():  # the signals are blocked for all that this thread starts meanwhile
        with blocked(numbers):
            await _in_process(outlast, numbers)


async def _in_process(call: Callable[[Any], Any], argument: Any) -> Any:
    limiter = anyio.CapacityLimiter(1)  # the default one would have lanes wait for each other
    return await anyio.to_process.run_sync(call, argument, cancellable=True, limiter=limiter)


def _one_by_one() -> anyio.Lock:
    try:
        return _starting.get()
    except LookupError:
        _starting.set(anyio.Lock())
        return _starting.get()


def _when(broken: anyio.BrokenWorkerProcess) -> str:
    cause = broken.__cause__
    if cause is None or isinstance(cause, anyio.EndOfStream | anyio.IncompleteRead | anyio.BrokenResourceError):
        return "before the call returned"
    return f"as it started, for which it runs the script: {type(cause).__name__}: {cause}"


def wait_for(result: Awaitable[Any], backend: str) -> None:
    """Await *result* on an event loop of its own, in another thread: this one may be running a loop, as in a notebook.

    Raises:
        BaseException: what *result* does.
    """
    with anyio.from_thread.start_blocking_portal(backend) as portal:
        portal.call(_awaited, result)

"""The worker processes of a ``DataLoader``: they outlast the signals that ask a run to end.

A scheduler signals every process of a run. Workers that die of it have torch raise within the iteration under way,
which then can't be finished and saved. So those that are started during a run pass over its signals, and it ends them
itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from eventrunner.lanes.signals import blocked, handled_signals, outlast

__all__ = ["shielded_workers"]


@contextlib.contextmanager
def shielded_workers() -> Iterator[None]:
    """Within the block, have the workers of any ``DataLoader`` that is iterated over outlast the run's signals.

    torch has no hook for the start of workers, so the method that starts them is replaced meanwhile. By that, loaders
    within other loaders and those that a receiver makes are reached as well.
    """
    if not handled_signals():
        yield
        return
    plain = {kind: vars(kind)["_get_iterator"] for kind in _kinds(DataLoader) if "_get_iterator" in vars(kind)}
    for kind, create in plain.items():
        kind._get_iterator = _shielded(create)  # noqa: SLF001
    try:
        yield
    finally:
        for kind, create in plain.items():
            kind._get_iterator = create  # noqa: SLF001


def _kinds(kind: Any) -> Iterator[Any]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def _shielded(create: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(create)
    def get_iterator(loader: Any) -> Any:
        numbers = handled_signals()
        if not loader.num_workers or not numbers:
            return create(loader)
        init, before = loader.worker_init_fn, set(multiprocessing.active_children())
        loader.worker_init_fn = functools.partial(_begin, numbers, init)
        try:
            _start_tracker(loader, numbers)
            with blocked(numbers):
                return create(loader)
        finally:
            loader.worker_init_fn = init
            _make_killable(set(multiprocessing.active_children()) - before)

    return get_iterator


def _begin(numbers: Sequence[int], init: Callable[[int], Any] | None, worker_id: int) -> None:
    """In a worker, once torch has set its own handlers: the ``worker_init_fn``."""
    outlast(numbers)
    if init is not None:
        init(worker_id)


def _start_tracker(loader: Any, numbers: Sequence[int]) -> None:
    """Start what the workers' resources are tracked by, which unblocks signals on its own account."""
    if (loader.multiprocessing_context or multiprocessing).get_start_method() != "fork":
        with blocked(numbers):
            resource_tracker.ensure_running()


def _make_killable(workers: set[BaseProcess]) -> None:
    """Have them killed where torch or the interpreter's exit would terminate them by a SIGTERM that they outlast."""
    for worker in workers:
        popen: Any = vars(worker)["_popen"]
        popen.terminate = popen.kill
    if workers:
        atexit.unregister(_expect_killed)
        atexit.register(_expect_killed)


def _expect_killed() -> None:
    """At exit: torch's handler would take the death of a worker for a failure."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

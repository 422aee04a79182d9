"""The guard of a receiver that only some ranks call: a collective in it is an error before anything is sent.

Collectives match by order. What one rank alone begins is taken by the others for their next one: of the same shape, it
gives wrong numbers and a hang much later. So it is refused where it is called, by a mode of torch's dispatcher, which
sees the collectives that others hide: those of a wrapped model's forward, of a metric, of a sharded tensor. The mode
is of one thread. What doesn't go through torch, a socket or MPI, goes unseen.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from eventrunner.errors import HookError
from eventrunner.lanes.task import is_async

__all__ = ["guarded"]

Receiver = Callable[..., Any]

_SENDING = ("c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem")
"""Namespaces of torch's operations that communicate."""
_LOCAL = ("wait_tensor", "_wrap_tensor_autograd", "check_for_nan", "mesh_get_process_group")
"""Those in there that don't; the first waits for what was sent before."""
_MAKERS = ("_new_group_with_tag", "split_group")
"""What makes groups of ranks, by the store and not by the dispatcher."""

_here = threading.local()  # .who: the receiver in whose guard this thread is


def guarded(who: str, receiver: Receiver) -> Receiver:
    """Return *receiver* so that any collective that its thread begins raises ``HookError``; *who* names it there."""
    _watch_makers()
    if not is_async(receiver):

        def call(*args: Any, **kwargs: Any) -> Any:
            with _Guard(who):
                return receiver(*args, **kwargs)

        return call

    async def step_by_step(*args: Any, **kwargs: Any) -> Any:
        return await _stepwise(who, receiver(*args, **kwargs))

    return step_by_step


@types.coroutine
def _stepwise(who: str, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine, in a guard while it runs and not while it waits, when the thread is at other things."""
    step: Callable[[Any], Any] = coroutine.send
    given: Any = None
    while True:
        try:
            with _Guard(who):
                waits_for = step(given)
        except StopIteration as end:
            return end.value
        try:
            step, given = coroutine.send, (yield waits_for)
        except BaseException as error:  # noqa: BLE001  # it is the coroutine's to handle
            step, given = coroutine.throw, error


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it, here and below
    """Refuse collectives in this thread."""

    supports_higher_order_operators = True

    def __init__(self, who: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._who, self._outer = who, ""

    def __enter__(self) -> _Guard:
        self._outer, _here.who = getattr(_here, "who", ""), self._who
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        _here.who = self._outer
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", "") in _SENDING and func.overloadpacket.__name__ not in _LOCAL:
            raise _refused(self._who, str(func.overloadpacket))
        if any(kind.__name__ == "DTensor" for kind in types):  # which communicates in its own code, first then
            return NotImplemented
        return func(*args, **(kwargs or {}))


def _refused(who: str, operation: str) -> HookError:
    return HookError(
        f"{who} calls {operation}, which the other ranks would take for their next collective: nothing was sent; "
        "connect it with collective=True, so that all ranks call it, or leave the collective to one that is."
    )


@functools.cache
def _watch_makers() -> None:
    """Have torch refuse to make a group of ranks in a guard; once for the process."""
    module: Any = sys.modules[dist.new_group.__module__]
    for name in _MAKERS:
        setattr(module, name, _unless_guarded(getattr(module, name)))


def _unless_guarded(make: Receiver) -> Receiver:
    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        who = getattr(_here, "who", "")
        if who:
            raise _refused(who, "new_group")
        return make(*args, **kwargs)

    return call

"""Copying tensors into a staging buffer: at once, later in another thread, or by a device while it computes."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["Once", "copy_from_device", "copy_now", "copy_single_threaded", "is_large"]

Pair = tuple[Tensor, Tensor]

_GRAIN = 32768
"""Elements up to which torch copies a tensor in the calling thread alone."""


class Once:
    """Work that is done by the thread that asks for it first, and waited for by all others.

    So none waits for a thread that may be busy with something else.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._begun = threading.Lock()
        self._done = threading.Event()
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it is over and nothing was raised."""
        return self._done.is_set() and self._error is None

    @property
    def failed(self) -> bool:
        """Whether it is over and something was raised."""
        return self._done.is_set() and self._error is not None

    def run(self) -> None:
        """Do it, unless it was begun or cancelled; what it raises is kept for :meth:`wait`."""
        if not self._begun.acquire(blocking=False):
            return
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001
            self._error = error
        finally:
            self._work = _nothing  # and release the tensors
            self._done.set()

    def wait(self) -> None:
        """Return when it is done, by this thread if none has begun; raise what it raised."""
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Return when no thread does it, and none will."""
        if self._begun.acquire(blocking=False):
            self._work = _nothing
            self._done.set()
        self._done.wait()


def _nothing() -> None:
    """Take the place of work that is over."""


def copy_now(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy on the calling thread, helped by torch's own."""
    if targets:
        with torch.inference_mode():  # without the bookkeeping for autograd: a fifth less for small tensors
            torch._foreach_copy_(list(targets), list(sources))


def copy_single_threaded(pairs: Sequence[Pair], large: Sequence[Pair]) -> Callable[[], None]:
    """Return a job that copies tensors on the CPU to targets, in the thread that calls it alone and without the GIL.

    Torch's own threads are left to the training.

    Args:
        pairs: Target and source.
        large: Those of them to be copied by their addresses, as both are contiguous. Their memory is kept alive until
            then, even if the tensors are given other memory.
    """
    blocks = [(*pair, pair[1].untyped_storage(), pair[1].data_ptr()) for pair in large]

    def job() -> None:
        with torch.inference_mode():
            small = [chunk for pair in pairs for chunk in _chunks(*pair)]
            for target, source, _kept, place in blocks:
                if source.is_conj() or source.is_neg():
                    small += _chunks(target, source)
                else:
                    ctypes.memmove(target.data_ptr(), place, target.nbytes)
            if small:
                copy_now(*zip(*small, strict=True))

    return job


def is_large(source: Tensor) -> bool:
    """Return whether a tensor is large and contiguous: torch copies it in several threads, and one call can in one."""
    return source.numel() > _GRAIN and source.is_contiguous()


def _chunks(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the two in chunks that are too small for torch to copy one in several threads."""
    if source.numel() <= _GRAIN:
        yield target, source
    else:
        for part, its in zip(target.unbind(), source.unbind(), strict=True):
            yield from _chunks(part, its)


def copy_from_device(
    targets: Sequence[Tensor], sources: Sequence[Tensor], stream: torch.cuda.Stream
) -> torch.cuda.Event:
    """Have a CUDA device copy its tensors to pinned memory on *stream*, after all that it was given to do so far.

    Returns:
        An event: when it has come, every byte is there.
    """
    ready = _event()
    ready.record(torch.cuda.current_stream(stream.device))
    stream.wait_event(ready)
    with torch.cuda.stream(stream):
        for target, source in zip(targets, sources, strict=True):
            # Resolved on the device: torch would do it on the host, before the bytes are there.
            target.copy_(source.detach().resolve_conj().resolve_neg(), non_blocking=True)
            source.record_stream(stream)  # so that its memory isn't given to another tensor before it is copied
        done = _event()
        done.record(stream)
    return done


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]

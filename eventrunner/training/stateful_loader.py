"""Loaders with a state of their own (``state_dict`` and ``load_state_dict``), as a ``StatefulDataLoader`` has.

Such a loader is asked where it stands, wherever it knows more than a count, and nothing is loaded twice. It must draw
what it draws for a pass when ``iter`` is called on it, and report on the batches given so far, not on those that it has
prepared. What it reports is kept as ``{"state": …, "at": batches given}``; a ``state`` of None is the start of a pass.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from eventrunner.training.dataloader import is_map_style, samplers
from eventrunner.training.order import other_loader, state_of
from eventrunner.training.state import is_stateful

__all__ = ["Opened", "Source", "begin", "begin_at", "source_of"]


class Opened(NamedTuple):
    """A pass that was begun: its batches, and the object that has its state where any has."""

    batches: Iterator[Any]
    owner: Any


@dataclass(frozen=True, slots=True)
class Source:
    """What reports where a loader stands in the pass under way.

    Attributes:
        loader: The loader.
        owner: The object that has the state: the loader or its iterator.
        last: What was reported when the pass began or was gone on with.
    """

    loader: Any
    owner: Any
    last: dict[str, Any]

    def report(self, given: int) -> dict[str, Any]:
        """Return where the loader stands, which has *given* so many batches of the pass.

        Raises:
            CheckpointError: the loader's state has something in it that a checkpoint can't hold.
        """
        return {"state": state_of(self.loader, "its state_dict()", self.owner), "at": given}


def begin(loader: Any) -> Opened:
    """Begin a pass, or go on with the one that the loader was given the state of."""
    batches = iter(loader)
    # A StatefulDataLoader itself reports on its latest iterator, which needn't be the training's.
    return Opened(batches, batches if isinstance(loader, DataLoader) else loader)


def begin_at(loader: Any, reported: dict[str, Any], rewind: Callable[[], None]) -> Opened:
    """Go on with a pass where the loader reported that it stood.

    Args:
        loader: The loader.
        reported: What :meth:`Source.report` gave.
        rewind: Puts back the generators as they stood when the pass began.

    Raises:
        ResumeError: the loader has no state.
    """
    if not is_stateful(loader):
        raise other_loader("can't load the state that was saved of it")
    rewind()
    with _staying_ended(loader):
        loader.load_state_dict(copy.deepcopy(reported["state"]))  # it may make it its own
        if reported["at"]:
            return begin(loader)
        loader.state_dict()  # some begin the pass that has ended, and draw, only to leave it: now, not in iter()
        rewind()
        opened = begin(loader)
    if first := list(itertools.islice(opened.batches, 1)):
        return Opened(itertools.chain(first, opened.batches), opened.owner)
    rewind()
    return begin(loader)  # others stand at the end until they are begun once more


@contextlib.contextmanager
def _staying_ended(loader: Any) -> Iterator[None]:
    """Keep a ``torchdata.nodes.Loader`` at the end of a pass, instead of in the next one, which no one has counted."""
    restarts = getattr(loader, "restart_on_stop_iteration", None)
    try:
        if restarts:
            loader.restart_on_stop_iteration = False
        yield
    finally:
        if restarts:
            loader.restart_on_stop_iteration = restarts


def source_of(loader: Any, owner: Any, last: dict[str, Any] | None) -> Source | None:
    """Return what is to be asked where the loader stands, or None where it can't be or knows no more than a count."""
    if not is_stateful(loader) or not hasattr(owner, "state_dict") or not _knows_more(loader, owner):
        return None
    return Source(loader, owner, last or {"state": None, "at": 0})


def _knows_more(loader: Any, owner: Any) -> bool:
    """Whether a stateful loader knows more than how many batches it has given."""
    if not isinstance(loader, DataLoader) or any(map(is_stateful, (loader.dataset, *samplers(loader)))):
        return True
    if is_map_style(loader):
        return loader.num_workers > 0 and all(map(_draws_late, samplers(loader)))
    return any(state is not None for state in _values(owner.state_dict(), "dataset_iter_state"))


def _draws_late(sampler: Any) -> bool:
    """Whether it draws at its first index: a StatefulDataLoader that loads a state calls ``iter(sampler)`` twice."""
    kind = type(sampler)
    known = kind.__module__.partition(".")[0] in ("torch", "torchdata")
    return known or inspect.isgeneratorfunction(getattr(kind, "__iter__", None))


def _values(tree: Any, key: str) -> Iterator[Any]:
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if name == key:
            yield value
        yield from _values(value, key)

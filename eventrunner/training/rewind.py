"""Begin a pass anew as it was begun once, behind the batches that were used.

As few of them as possible are loaded once more: none where their indices alone can be drawn, as without workers from a
dataset that remembers nothing; those since the last report of a loader with a state of its own; else all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from eventrunner.training.dataloader import batch_count, is_map_style
from eventrunner.training.order import collate_generators, collates_alike, order_state, other_loader, set_order_state
from eventrunner.training.state import is_generator, is_stateful, rng_state, set_rng_state
from eventrunner.training.stateful_loader import Opened, begin, begin_at

__all__ = ["Place", "begin_again", "begin_behind", "persist_workers", "put_back", "remarks"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training stands in its data.

    Attributes:
        passes: The passes completed.
        consumed: The batches used of the pass under way.
        start: The states of all generators when the pass began.
        order: What the loader's order depended on at the place.
        reported: Where the loader stood by its own account, if it has a state.
        skips: Whether used batches are left out unloaded, exact or not.
    """

    passes: int
    consumed: int
    start: Mapping[str, Any]
    order: Mapping[str, Any]
    reported: dict[str, Any] | None
    skips: bool

    @property
    def at(self) -> int:
        """The batches that the loader's own state is behind."""
        return self.reported["at"] if self.reported else 0


def put_back(loader: Any, states: Mapping[str, Any], under_way: bool = False) -> None:
    """Set the loader's generators and the global ones; samplers with a state keep it where a pass is *under way*."""
    set_order_state(loader, states, under_way)
    set_rng_state(states["rng"])


def persist_workers(loader: Any) -> None:
    """Have a new loader whose workers persist make the draw that it makes in its first pass alone."""
    if getattr(loader, "persistent_workers", False) and loader._iterator is None:  # noqa: SLF001
        before = {**order_state(loader), "rng": rng_state()}
        iter(loader)
        put_back(loader, before)


def begin_again(loader: Any, place: Place) -> Opened:
    """Begin the pass as it was begun, or go on with it where the loader itself can."""
    rewind = functools.partial(put_back, loader, place.start)
    if place.reported is not None and place.reported["state"] is not None:
        return begin_at(loader, place.reported, rewind)
    if place.passes:
        persist_workers(loader)
    rewind()
    return begin(loader)


def begin_behind(loader: Any, place: Place, report: Progress | None) -> Opened:
    """Begin the pass again without the batches that were used.

    Args:
        loader: The loader.
        place: Where to begin.
        report: Called with how many used batches were loaded once more, and how many there are.

    Raises:
        ResumeError: the pass ended before; it isn't the loader that the place was taken in.
    """
    if place.skips and place.consumed:
        return _begin_unloaded(loader, place)
    opened = begin_again(loader, place)
    if place.consumed and _draws_indices(loader, place) and hasattr(opened.batches, "_next_index"):
        if _left_by_index(loader, place, opened.batches._next_index):  # noqa: SLF001
            return opened
        opened = begin_again(loader, place)
    _leave(opened.batches.__next__, place, range(place.at, place.consumed), report)
    return opened


def _left_by_index(loader: Any, place: Place, draw: Callable[[], Any]) -> bool:
    """Leave behind the indices of the used batches, unless the sampler's draws lie between those of loading."""
    _leave(draw, place, range(1))
    drawn = _draws(loader)
    _leave(draw, place, range(1, place.consumed))
    return _draws(loader) == drawn


def _begin_unloaded(loader: Any, place: Place) -> Opened:
    """Begin the pass again without its used batches, none of which is loaded once more.

    Where there are no indices to leave behind, it is as many batches as are left, from where the loader stands.
    """
    if not _has_indices(loader, place):
        length = batch_count(loader)
        opened = begin_again(loader, place)
        left = None if length is None else length - place.consumed
        return Opened(itertools.islice(opened.batches, left), opened.owner)
    if loader.num_workers:
        with _indices_behind(loader, place.consumed):
            return begin_again(loader, place)
    opened = begin_again(loader, place)
    _leave(opened.batches._next_index, place, range(place.consumed))  # type: ignore[attr-defined]  # noqa: SLF001
    return opened


def _leave(draw: Callable[[], Any], place: Place, batches: range, report: Progress | None = None) -> None:
    for taken in batches:
        try:
            draw()
        except StopIteration:
            raise other_loader(f"ended after {taken} of the {place.consumed} batches already taken") from None
        if report is not None:
            report(taken + 1 - batches.start, len(batches))


@contextlib.contextmanager
def _indices_behind(loader: DataLoader[Any], count: int) -> Iterator[None]:
    """Have an iterator that is made within the block begin behind *count* batches: workers are given work at once."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler = getattr(loader, name)
    behind = _Behind(sampler, count)
    vars(loader)[name] = behind  # DataLoader lets nobody set it
    try:
        yield
    finally:
        vars(loader)[name] = sampler
        behind.count = 0  # workers that persist keep it for later passes


class _Behind:
    """A sampler that begins behind so many of another's indices."""

    def __init__(self, sampler: Any, count: int) -> None:
        self.sampler, self.count = sampler, count

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.sampler), self.count, None)


def _draws_indices(loader: Any, place: Place) -> bool:
    """Whether used batches can be left behind by their indices alone: nothing remembers that they were loaded."""
    if place.reported is not None or not is_map_style(loader) or loader.num_workers:
        return False
    return not _remembers(loader.dataset) and collates_alike(place.start, place.order)


def _has_indices(loader: Any, place: Place) -> bool:
    return place.reported is None and is_map_style(loader) and not is_stateful(loader)


def _remembers(dataset: Any) -> bool:
    """Whether a dataset, or one that it wraps, has a state or a generator of its own."""
    held = getattr(dataset, "__dict__", {})
    parts = (*held.values(), *getattr(held.get("transform"), "__dict__", {}).values())
    own = is_stateful(dataset) or any(map(is_generator, parts))
    return own or ("dataset" in held and _remembers(held["dataset"]))


def _draws(loader: Any) -> list[Any]:
    """Return the states of the generators that loading may draw from, to be compared."""
    return [_plain(rng_state()), _plain(collate_generators(loader))]


def _plain(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(each) for each in state] if isinstance(state, list) else state


def remarks(loader: Any, place: Place) -> Iterator[str]:
    """Yield what of a resumed place no state has, and what it costs to go on from it."""
    yield from _unsaved(loader, place)
    again = place.consumed - place.at
    if not again or isinstance(loader, Sequence) or _draws_indices(loader, place):
        return
    if not place.skips:
        yield f"{again} of its batches {'are' if again > 1 else 'is'} loaded once more{_why(loader)}"
        return
    used = f"{again} batches that were used are" if again > 1 else "1 batch that was used is"
    if _has_indices(loader, place):
        yield f"{used} left out unloaded, so what loading draws at random, if anything, is another"
    else:
        yield f"{used} not left behind, as that takes loading them, so its samples may come once more"


def _unsaved(loader: Any, place: Place) -> Iterator[str]:
    workers = getattr(loader, "num_workers", 0)
    if workers > 1 and not getattr(loader, "in_order", True):
        yield "with in_order=False the order of its batches is that in which its workers finish"
    if workers and place.passes and getattr(loader, "persistent_workers", False):
        yield "its workers persist, so random transforms in them, if any, draw otherwise than in an uninterrupted run"
    elif workers and place.at:
        yield "its state lacks its workers' generators, so random transforms in them, if any, begin anew"
    if place.passes and not workers and place.reported is None and _remembers(getattr(loader, "dataset", None)):
        yield "its dataset has a state or a generator of its own, which isn't saved and begins anew"


def _why(loader: Any) -> str:
    if not is_map_style(loader):
        return ", and must come in the same order as before"
    return ", as what its workers draw depends on them" if loader.num_workers else ""

"""Where the training is in its data, so that a resumed run reads on at the next batch.

The order of a pass over a plain ``DataLoader`` depends on nothing but the generators at its start. So the state of a
position is those generators' states and the number of batches trained on since. Going on sets them, begins the pass
anew behind that many batches (:mod:`eventrunner.training.rewind`), and puts the generators back to where they stood.

A loader that has a state of its own goes on from that (:mod:`eventrunner.training.stateful_loader`). What samplers and
the collate function hold beyond the global generators is :mod:`eventrunner.training.order`'s. Beyond all this are a
sampler that draws from the global generators while batches are trained on, and what :meth:`DataPosition.caveat` names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from eventrunner.training.dataloader import announce, batch_count, no_batch
from eventrunner.training.order import differences, order_state, other_loader, set_order_state
from eventrunner.training.rewind import Place, begin_again, begin_behind, persist_workers, put_back, remarks
from eventrunner.training.state import rng_state, set_rng_state
from eventrunner.training.stateful_loader import Opened, Source, begin, source_of

__all__ = ["DataPosition"]

_COUNTS = ("consumed", "passes", "start")
"""The entries of a state that are the position's own; the others are the loader's."""


class DataPosition:
    """Where a training stands in its loader.

    Attributes:
        consumed: The batches of the current pass that were trained on; the loop counts them.
        passes: The passes completed.
        skips: Whether used batches are left out unloaded wherever a pass is gone on with, exact or not.
        report: Called with how many used batches have been loaded once more, and how many there are.
    """

    def __init__(self) -> None:
        self.consumed = 0
        self.passes = 0
        self.skips = False
        self.report: Callable[[int, int], None] | None = None
        self._start: dict[str, Any] = {}  # of the pass under way: the states of all generators, and what the loader was
        self._resumed: dict[str, Any] | None = None  # until a pass begins: the loader's part of the state loaded
        self._loader: Any = None  # that of the latest pass
        self._source: Source | None = None  # what reports where it stands, if anything does
        self._given = 0  # batches given of the pass, with the one under way
        self._batch: Any = None  # the one under way

    def batches(self, loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield one pass, as ``(index, batch)`` pairs, from where the position stands.

        Raises:
            OptionError: the pass has no batch at all.
            ResumeError: it isn't the loader that the position was taken in.
        """
        iterator = self._gone_on(loader) if self._start else self._begun(loader)
        for batch in iterator:
            self._given, self._batch = self.consumed + 1, batch
            yield self.consumed, batch
        if not self.consumed:
            raise no_batch("train")
        self.consumed = self._given = 0
        self._start, self._batch = {}, None
        self.passes += 1

    def announce(self, loader: Any) -> None:
        """Call each ``set_epoch`` of the loader with the number of the pass that is to come, from the second on."""
        if self.passes:
            announce(loader, self.passes)

    def state_dict(self) -> dict[str, Any]:
        """Return the position; tensors in it, and the state of a loader that has one, are copies.

        While a batch is under way such a loader is one batch ahead. Then the state is what it reported when the pass
        began or the run was resumed, and going on from there loads the batches since once more.

        Raises:
            CheckpointError: the loader's state has something in it that a checkpoint can't hold.
        """
        standing = self._resumed
        if standing is None:
            last = None if self._source is None or self._given == self.consumed else self._source.last
            standing = self._standing(self._loader, last)
        return {"consumed": self.consumed, "passes": self.passes, "start": self._start, **standing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where :meth:`state_dict` was taken; takes effect when the next pass begins."""
        self.consumed, self.passes, self._start = (state[key] for key in _COUNTS)
        self._resumed = {"loader": None, **{key: value for key, value in state.items() if key not in _COUNTS}}

    def caveat(self, loader: Any) -> str | None:
        """Return what can't be exact in going on in *loader*, or takes time, as one sentence.

        To be asked before the next pass begins; None where all is exact at no cost.
        """
        kept = self._start or self._resumed
        found = [*differences(loader, kept)] if kept else []
        if self._resumed is not None:
            found += remarks(loader, self._place(self._resumed))
        kind = type(loader).__name__
        return f"going on in the train_dataloader, of type {kind}: {'; '.join(found)}." if found else None

    def _place(self, standing: dict[str, Any]) -> Place:
        return Place(self.passes, self.consumed, self._start, standing, standing["loader"], self.skips)

    def _standing(self, loader: Any, last: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what a loader's order depends on now, and where the loader itself stands, or stood *last*."""
        reported = last or self._reported(loader)
        return {**order_state(loader), "loader": reported}

    def _reported(self, loader: Any) -> dict[str, Any] | None:
        source = self._source
        return None if source is None or source.loader is not loader else source.report(self._given)

    def _begun(self, loader: Any) -> Iterator[Any]:
        """Begin a new pass, from where the generators stand, or stood in the run that is resumed."""
        resumed = self._resumed
        if resumed is not None and self.passes:
            set_order_state(loader, resumed)
        self._start = {"rng": rng_state(), "length": batch_count(loader), **order_state(loader)}
        if resumed is not None:
            reported, opened = resumed["loader"], begin_again(loader, self._place(resumed))
        else:
            reported = self._reported(loader)
            if self.passes:
                persist_workers(loader)
            opened = begin(loader)
        return self._entered(loader, opened, reported)

    def _gone_on(self, loader: Any) -> Iterator[Any]:
        """Begin the pass as it was begun, without the batches used; the generators then go on from where they stood."""
        length, begun_with = batch_count(loader), self._start["length"]
        if length != begun_with:
            raise other_loader(f"has {length} batches where there were {begun_with}")
        standing = self._resumed or self._standing(loader)
        ahead = self._resumed is None and standing["loader"] is not None and self._given > self.consumed
        reported = self._source.last if ahead and self._source else standing["loader"]
        rng = rng_state()
        try:
            opened = begin_behind(loader, self._place(standing), self.report)
        except BaseException:  # an interrupt, mostly: loading again may take long
            set_rng_state(rng)
            raise
        if self.consumed or ahead:  # else the pass is begun once more, its first draws included
            put_back(loader, {**standing, "rng": rng}, under_way=True)
        batches = self._entered(loader, opened, reported)
        self._given = self.consumed
        return itertools.chain([self._batch], batches) if ahead else batches

    def _entered(self, loader: Any, opened: Opened, reported: dict[str, Any] | None) -> Iterator[Any]:
        self._source = source_of(loader, opened.owner, reported)  # None frees an iterator, and with it its workers
        self._loader, self._resumed = loader, None
        return opened.batches

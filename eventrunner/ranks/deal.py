"""Dealing: each rank gets its share of every batch that the loader would give to one process.

The loader's own batch sampler is the truth, so that ``batch_size`` means what it means in one process, and a position
in the data is one number for all ranks. A rank's loss counts by its share of the batch; where there are fewer samples
than ranks, one without any trains on a sample of another with weight 0, as it must take part in the reduction.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from eventrunner.errors import OptionError
from eventrunner.ranks.world import Ranks

__all__ = ["Deal", "Shares", "deal", "per_rank"]

_OWN = "__eventrunner_per_rank__"
_KEPT = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "generator"),
    *("prefetch_factor", "persistent_workers"),
)
# What a loader is rebuilt with: all that DataLoader has, but for what its batch sampler stands for.


def per_rank(loader: Any) -> Any:
    """Say that *loader* gives each rank samples of its own, and return it, or of a list of batches a copy."""
    own = _Batches(loader) if isinstance(loader, list | tuple) else loader
    setattr(own, _OWN, True)
    return own


class _Batches(list[Any]):
    """A list that can be said something of."""


class Deal:
    """A batch sampler that gives one rank its share of another's batches.

    The order of a pass depends on the seed and the number of the pass alone, so that all ranks draw the same one
    whatever else they draw.

    Attributes:
        weights: How much the loss of each batch of the pass counts, by its number: 1 where all shares are equal.
    """

    def __init__(self, whole: Any, ranks: Ranks, seed: int, fills: bool = True) -> None:
        self.whole, self.seed, self.fills, self.epoch = whole, seed, fills, 0
        self._rank, self._world = ranks.rank, ranks.world
        self.weights: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.whole)

    def set_epoch(self, epoch: int) -> None:
        """Say which pass comes; the sampler that the batches are drawn from is told too."""
        self.epoch = epoch
        for each in (self.whole, getattr(self.whole, "sampler", None)):
            tell = getattr(each, "set_epoch", None)
            if tell is not None:
                tell(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        """Deal the batches of a pass out; all of its indices are drawn at once."""
        batches = [list(batch) for batch in self._drawn()]
        shares = [batch[self._rank :: self._world] for batch in batches]
        self.weights = [len(own) * self._world / len(all_) for own, all_ in zip(shares, batches, strict=True)]
        for own, batch in zip(shares, batches, strict=True):
            if own or self.fills:
                yield own or batch[:1]

    def _drawn(self) -> list[Any]:
        before = torch.get_rng_state(), random.getstate()
        number = (self.seed * 1_000_003 + self.epoch) % 2**63
        torch.default_generator.manual_seed(number)
        random.seed(number)
        try:
            return list(self.whole)
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])


def deal(name: str, loader: Any, ranks: Ranks, seed: int, fills: bool = True) -> Any:
    """Return a loader that gives this rank its share; *loader* itself where it has its own, or there is one rank.

    Args:
        name: What it is, for a message.
        loader: A plain ``DataLoader``.
        ranks: Those that share it.
        seed: What the order of a pass is drawn from, with the number of the pass.
        fills: Whether a rank gets a sample of another where a batch has none for it.

    Raises:
        OptionError: it is no ``DataLoader`` over a dataset with indices, so that nothing says which samples are whose.
    """
    if not ranks.several or getattr(loader, _OWN, False) or _knows_ranks(loader):
        return loader
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise OptionError(
            f"{name}={type(loader).__name__}: with {ranks.world} processes each would train on all of it; give a plain "
            "DataLoader over a dataset with indices, whose batches are dealt out, or say by "
            "eventrunner.per_rank(loader) that it gives each rank its own samples."
        )
    kept = {option: getattr(loader, option) for option in _KEPT}
    if not loader.num_workers:
        del kept["prefetch_factor"], kept["persistent_workers"], kept["multiprocessing_context"]
    return DataLoader(loader.dataset, batch_sampler=Deal(loader.batch_sampler, ranks, seed, fills), **kept)


class Shares:
    """The loader of a rank's shares, for the training that goes through one loader again and again.

    Args:
        name: What the loader is, for a message.
        ranks: Those that share it.
    """

    def __init__(self, name: str, ranks: Ranks) -> None:
        self._name, self._ranks = name, ranks
        self._last: tuple[Any, Any] | None = None  # the loader that was given last, and what it was dealt as
        self.deal: Deal | None = None
        """What deals it out; None where the loader gives each rank its own, or there is one rank."""

    def of(self, loader: Any, seed: int, passes: int) -> Any:
        """Return the loader of the pass that comes behind so many: the same for the same *loader*."""
        if self._last is None or self._last[0] is not loader:
            self._last = loader, deal(self._name, loader, self._ranks, seed)
        sampler = getattr(self._last[1], "batch_sampler", None)
        self.deal = sampler if isinstance(sampler, Deal) else None
        if self.deal is not None:
            self.deal.set_epoch(passes)
        return self._last[1]


def _knows_ranks(loader: Any) -> bool:
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    return any(isinstance(sampler, DistributedSampler) for sampler in samplers)

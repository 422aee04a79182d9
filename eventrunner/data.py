"""Where the training is in its data, so that a resumed run reads on at the next batch.

The order of a pass over a plain ``DataLoader`` depends on nothing but the generators at its start. So the state of a
position is those generators' states and the number of batches trained on since; going on sets them, begins the pass
anew, takes as many batches, and puts the generators back to where they stood. The skipped batches are loaded once
more, which costs their loading time and is exact, with worker processes too. Two things are beyond it: a sampler that
draws from the global generators while batches are trained on, and random transforms in ``persistent_workers``, whose
generators go on from pass to pass where nobody can read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from eventrunner.errors import OptionError, ResumeError
from eventrunner.state import rng_state, set_rng_state

__all__ = ["DataPosition", "batch_count", "check_loader", "samplers"]


def check_loader(name: str, loader: Any) -> None:
    """Refuse what can't be passed over again and again, before a run is made with it.

    Raises:
        OptionError: a dict (it takes the object itself), an iterator that is used up by one pass, or no iterable.
    """
    if isinstance(loader, Mapping):
        raise OptionError(f"{name} was given a dict; pass the object, such as a torch.utils.data.DataLoader.")
    if isinstance(loader, Iterator) and not hasattr(loader, "__len__"):
        raise OptionError(
            f"{name} was given a {type(loader).__name__}, which one pass uses up; pass an iterable that begins anew, "
            "such as a DataLoader or a list of batches."
        )
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise OptionError(
            f"{name} was given an object of type {type(loader).__name__}, which can't be iterated over; pass an "
            "iterable of batches, such as a DataLoader."
        )


def batch_count(loader: Any) -> int | None:
    """The number of batches of a pass, or None where the loader doesn't know it."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def samplers(loader: Any) -> Iterator[Any]:
    """The objects of a loader that may shuffle, each once: its sampler, its batch sampler, and that one's sampler."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    yield from {id(each): each for each in found if each is not None}.values()


class DataPosition:
    """Where a training stands in its loader.

    Attributes:
        consumed: The batches of the current pass that were trained on; the loop counts them.
        passes: The passes completed.
    """

    def __init__(self) -> None:
        self.consumed = 0
        self.passes = 0
        self._start: dict[str, Any] = {}  # of the current pass: the generators' states and the loader's length
        self._loader: Any = None
        self._awaiting: list[torch.Tensor] | None = None  # loaded states of the loader's own generators

    def batches(self, loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """One pass, as ``(index, batch)`` pairs, from where the position stands.

        Raises:
            OptionError: the pass has no batch at all.
            ResumeError: it isn't the loader that the position was taken in.
        """
        self._loader = loader
        iterator = self._gone_on(loader) if self._start else self._begun(loader)
        for batch in iterator:
            yield self.consumed, batch
        if not self.consumed:
            raise OptionError("the train_dataloader gave no batch; check its dataset, batch_size and drop_last.")
        self.consumed, self._start = 0, {}
        self.passes += 1

    def endless(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Pass after pass; from the second on, samplers that have a ``set_epoch`` are told the pass's number first."""
        while True:
            for sampler in samplers(loader) if self.passes else ():
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(self.passes)
            for _, batch in self.batches(loader):
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position; tensors in it are copies."""
        return {
            "consumed": self.consumed,
            "passes": self.passes,
            "start": self._start,
            "generators": _generator_states(self._loader) if self._awaiting is None else self._awaiting,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where :meth:`state_dict` was taken; takes effect when the next pass begins."""
        self.consumed, self.passes, self._start = state["consumed"], state["passes"], state["start"]
        self._awaiting = state["generators"]

    def _begun(self, loader: Iterable[Any]) -> Iterator[Any]:
        if self._awaiting is not None and self.passes:
            _set_generators(loader, self._awaiting)
        self._awaiting = None
        self._prime(loader)
        self._start = {"rng": rng_state(), "generators": _generator_states(loader), "length": batch_count(loader)}
        return iter(loader)

    def _prime(self, loader: Any) -> None:
        """Have a new loader whose workers persist make the draw that it makes in its first pass alone."""
        if self.passes and getattr(loader, "persistent_workers", False) and loader._iterator is None:  # noqa: SLF001
            own, rng = _generator_states(loader), rng_state()
            iter(loader)
            _set_generators(loader, own)
            set_rng_state(rng)

    def _gone_on(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The pass begun as it was, without the batches taken; the generators then go on from where they stood."""
        start, length = self._start, batch_count(loader)
        if length != start["length"]:
            raise _other_loader(f"has {length} batches where there were {start['length']}")
        self._prime(loader)
        own, rng = self._awaiting or _generator_states(loader), rng_state()
        _set_generators(loader, start["generators"])
        set_rng_state(start["rng"])
        iterator = iter(loader)
        for taken in range(self.consumed):
            if next(iterator, iterator) is iterator:
                raise _other_loader(f"ended after {taken} of the {self.consumed} batches already taken")
        if self.consumed:  # else the pass is begun once more, its first draws included
            _set_generators(loader, own)
            set_rng_state(rng)
        self._awaiting = None
        return iterator


def _generators(loader: Any) -> list[torch.Generator]:
    found: dict[int, torch.Generator] = {}
    for owner in (loader, *samplers(loader)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = generator
    return list(found.values())


def _generator_states(loader: Any) -> list[torch.Tensor]:
    return [generator.get_state() for generator in _generators(loader)]


def _set_generators(loader: Any, states: list[torch.Tensor]) -> None:
    own = _generators(loader)
    if len(own) != len(states):
        raise _other_loader(f"has {len(own)} generators of its own where there were {len(states)}")
    for generator, state in zip(own, states, strict=True):
        generator.set_state(state)


def _other_loader(difference: str) -> ResumeError:
    return ResumeError(f"going on in the train_dataloader: it {difference}; it must be the one that was begun.")

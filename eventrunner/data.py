"""Where the training is in its data, so that a resumed run reads on at the next batch.

The order of a pass over a plain ``DataLoader`` depends on nothing but the generators at its start. So the state of a
position is those generators' states and the number of batches trained on since; going on sets them, begins the pass
anew, leaves as many batches behind, and puts the generators back to where they stood. Without worker processes only
the indices of those batches are drawn from the sampler. With workers, whose generators depend on what they loaded,
and where there are no indices, the batches are loaded once more, which costs their loading time and is exact.

A loader that tells its own state (``state_dict`` and ``load_state_dict``, as a ``StatefulDataLoader`` has) is asked
for it instead, wherever it tells more than a count, and nothing is loaded twice. It must draw what it draws for a
pass when ``iter`` is called on it, and tell of the batches given so far, not of those that it has prepared.

Beyond all this are a sampler that draws from the global generators while batches are trained on, and what
:meth:`DataPosition.caveat` names.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from eventrunner.checkpoint.codec import encode
from eventrunner.errors import CheckpointError, OptionError, ResumeError, did_you_mean
from eventrunner.state import rng_state, set_rng_state

__all__ = ["DataPosition", "batch_count", "build_dataloader", "check_loader", "no_batch", "samplers"]


def check_loader(name: str, loader: Any) -> None:
    """Refuse what doesn't give batches again and again, before a run is made with it.

    Raises:
        OptionError: a dict (it takes the object itself), an iterator that is used up by one pass, no iterable, or one
            of samples, indices, letters or other dataloaders.
    """
    if isinstance(loader, Mapping):
        raise OptionError(f"{name} was given a dict; pass the object, such as a torch.utils.data.DataLoader.")
    if isinstance(loader, Iterator) and not hasattr(loader, "__len__"):
        raise OptionError(
            f"{name} was given a {type(loader).__name__}, which one pass uses up; pass an iterable that begins anew, "
            "such as a DataLoader or a list of batches."
        )
    kind = type(loader).__name__
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):  # which may well give batches
        raise OptionError(
            f"{name} was given a dataset, of type {kind}, whose samples would be taken for batches; pass "
            "DataLoader(dataset, batch_size=…), with batch_size=None where its items are batches."
        )
    if isinstance(loader, list | tuple) and any(isinstance(each, DataLoader | Dataset) for each in loader):
        raise OptionError(
            f"{name} was given a {kind} of {len(loader)} dataloaders, each of which would be taken for a batch; pass "
            "one, such as a DataLoader of the ConcatDataset of their datasets."
        )
    if isinstance(loader, str | bytes | type | Sampler):
        given = f"the class {loader.__name__}" if isinstance(loader, type) else f"an object of type {kind}"
        raise OptionError(f"{name} was given {given}, which gives no batches; pass a DataLoader.")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise OptionError(
            f"{name} was given an object of type {type(loader).__name__}, which can't be iterated over; pass an "
            "iterable of batches, such as a DataLoader."
        )


def no_batch(mode: str) -> OptionError:
    """What is raised where a pass over the dataloader of train, val or test has no batch at all."""
    return OptionError(f"the {mode}_dataloader gave no batch; check its dataset, batch_size and drop_last.")


def build_dataloader(given: Any, seed: int | None = None) -> Any:
    """Return a loader as it is, or a ``DataLoader`` made of a dict of its arguments.

    Args:
        given: The loader, or the dict.
        seed: Of a generator for the new loader's draws; without one they are the global generator's.

    Raises:
        OptionError: an argument that ``DataLoader`` doesn't have, a config in place of an object, or no loader.
    """
    if not isinstance(given, Mapping):
        check_loader("build_dataloader()", given)
        return given
    known = inspect.signature(DataLoader).parameters
    for name, value in given.items():
        if name not in known:
            near = did_you_mean(str(name), known) or "."
            raise OptionError(f"build_dataloader(): DataLoader has no argument {name!r}{near}")
        if isinstance(value, Mapping) and "type" in value:
            raise OptionError(f"build_dataloader(): {name}={value!r} is a config; give the object itself.")
    if "dataset" not in given:
        raise OptionError("build_dataloader() was given a dict without 'dataset'; give DataLoader's arguments.")
    generator = {} if seed is None else {"generator": torch.Generator().manual_seed(seed)}
    return DataLoader(**{**generator, **given})


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
        self._source: Any = None  # what tells where the loader stands: its iterator, or the loader itself
        self._known: dict[str, Any] | None = None  # where it stood last while no batch was under way; None: don't ask
        self._given = 0  # batches given of the current pass, with the one under way
        self._batch: Any = None  # the one under way
        self._awaiting: dict[str, Any] | None = None  # loaded states: of the loader's own generators, and of itself

    def batches(self, loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """One pass, as ``(index, batch)`` pairs, from where the position stands.

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
        """Tell samplers that have a ``set_epoch`` the number of the pass that is to come, from the second on."""
        for sampler in samplers(loader) if self.passes else ():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.passes)

    def state_dict(self) -> dict[str, Any]:
        """The position; tensors in it, and the state of a loader that tells its own, are copies.

        While a batch is under way such a loader is one batch ahead. Then the state is what it told when the pass began
        or the run was resumed, and going on from there loads the batches since once more.

        Raises:
            CheckpointError: the loader's state has something in it that a checkpoint can't hold.
        """
        held = self._awaiting
        if held is None:
            told = self._told() if self._given == self.consumed else self._known
            held = {"generators": _generator_states(self._loader), "loader": told}
        return {"consumed": self.consumed, "passes": self.passes, "start": self._start, **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where :meth:`state_dict` was taken; takes effect when the next pass begins."""
        self.consumed, self.passes, self._start = state["consumed"], state["passes"], state["start"]
        self._awaiting = {"generators": state["generators"], "loader": state.get("loader")}

    def caveat(self, loader: Any) -> str | None:
        """What can't be exact in going on in *loader* from a loaded state, or takes time, as one sentence.

        To be asked before the next pass begins; None where all is exact at no cost.
        """
        if self._awaiting is None:
            return None
        told = self._awaiting["loader"]
        remarks = [*_unknown(loader, self.passes, told)]
        again = self.consumed - (told["at"] if told else 0)
        if again and not isinstance(loader, Sequence) and (told or not _skips(loader)):
            remarks.append(f"{again} of its batches {'are' if again > 1 else 'is'} loaded once more{_why(loader)}")
        kind = type(loader).__name__
        return f"going on in the train_dataloader, of type {kind}: {'; '.join(remarks)}." if remarks else None

    def _told(self) -> dict[str, Any] | None:
        """Where the loader stands by its own account, if it is one to be asked."""
        return None if self._known is None else {"state": _state_of(self._loader, self._source), "at": self._given}

    def _begun(self, loader: Iterable[Any]) -> Iterator[Any]:
        held = self._awaiting
        if held and self.passes:
            _set_generators(loader, held["generators"])
        self._start = {"rng": rng_state(), "generators": _generator_states(loader), "length": batch_count(loader)}
        if held:
            known = held["loader"]
            iterator = self._opened(loader, known)
        else:
            known = self._told() if self._loader is loader else None
            self._prime(loader)
            iterator = self._made(loader)
        self._settle(loader, known)
        return iterator

    def _gone_on(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The pass begun as it was, without the batches taken; the generators then go on from where they stood."""
        start, length = self._start, batch_count(loader)
        if length != start["length"]:
            raise _other_loader(f"has {length} batches where there were {start['length']}")
        held, ahead = self._awaiting, False
        if held is None:  # the pass was left in this process
            told = self._told() if self._loader is loader else None
            ahead = told is not None and self._given > self.consumed
            held = {"generators": _generator_states(loader), "loader": told}
        rng = rng_state()
        iterator = self._behind(loader, held["loader"])
        if self.consumed or ahead:  # else the pass is begun once more, its first draws included
            _put_back(loader, {**held, "rng": rng})
        self._settle(loader, self._known if ahead else held["loader"])
        self._given = self.consumed
        return itertools.chain([self._batch], iterator) if ahead else iterator

    def _settle(self, loader: Any, known: dict[str, Any] | None) -> None:
        if _tells(loader, self._source):
            self._known = known or {"state": None, "at": 0}
        else:
            self._known = self._source = None  # an iterator that is kept keeps its workers
        self._loader, self._awaiting = loader, None

    def _behind(self, loader: Any, told: dict[str, Any] | None) -> Iterator[Any]:
        """The current pass behind the batches that were taken, of which as few as possible are loaded once more."""
        iterator = self._opened(loader, told)
        draw = getattr(iterator, "_next_index", None)
        if self.consumed and told is None and draw is not None and _skips(loader):
            self._leave_behind(draw, 0, 1)
            drawn = _draws()
            self._leave_behind(draw, 1, self.consumed)
            if _draws() == drawn:
                return iterator
            iterator = self._opened(loader, told)  # the sampler's draws lie between those that loading makes
        self._leave_behind(iterator.__next__, told["at"] if told else 0, self.consumed)
        return iterator

    def _leave_behind(self, draw: Callable[[], Any], begin: int, end: int) -> None:
        for taken in range(begin, end):
            try:
                draw()
            except StopIteration:
                raise _other_loader(f"ended after {taken} of the {self.consumed} batches already taken") from None

    def _opened(self, loader: Any, told: dict[str, Any] | None) -> Iterator[Any]:
        """The current pass from where the loader told that it stood, or from its start."""
        if told is None or told["state"] is None:
            self._prime(loader)
            _put_back(loader, self._start)
            return self._made(loader)
        if not _is_stateful(loader):
            raise _other_loader("can't load the state that was saved of it")
        _put_back(loader, self._start)
        with _staying_ended(loader):
            loader.load_state_dict(copy.deepcopy(told["state"]))  # it may make it its own
            if told["at"]:
                return self._made(loader)
            loader.state_dict()  # some begin the pass that has ended, and draw, only to leave it: now, not in iter()
            _put_back(loader, self._start)
            iterator = self._made(loader)
        if first := list(itertools.islice(iterator, 1)):
            return itertools.chain(first, iterator)
        _put_back(loader, self._start)  # others stand at the end until they are begun once more
        return self._made(loader)

    def _made(self, loader: Any) -> Iterator[Any]:
        iterator: Iterator[Any] = iter(loader)
        # A StatefulDataLoader itself tells of its latest iterator, which needn't be the training's.
        self._source = iterator if isinstance(loader, DataLoader) else loader
        return iterator

    def _prime(self, loader: Any) -> None:
        """Have a new loader whose workers persist make the draw that it makes in its first pass alone."""
        if self.passes and getattr(loader, "persistent_workers", False) and loader._iterator is None:  # noqa: SLF001
            before = {"generators": _generator_states(loader), "rng": rng_state()}
            iter(loader)
            _put_back(loader, before)


def _tells(loader: Any, source: Any) -> bool:
    """Whether the loader is to be asked where it stands: it can be, and knows more than how many batches it gave."""
    if not _is_stateful(loader) or not hasattr(source, "state_dict"):
        return False
    if not isinstance(loader, DataLoader) or any(map(_is_stateful, (loader.dataset, *samplers(loader)))):
        return True
    if _is_map_style(loader):
        return loader.num_workers > 0 and all(map(_draws_late, samplers(loader)))
    return any(state is not None for state in _values(source.state_dict(), "dataset_iter_state"))


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


def _state_of(loader: Any, source: Any) -> Any:
    state = source.state_dict()
    try:
        encode({"state": state})
    except CheckpointError as error:
        what = str(error).removeprefix("checkpoint['state']")
        kind = type(loader).__name__
        raise CheckpointError(f"saving the train_dataloader, of type {kind}: its state_dict(){what}") from error
    return copy.deepcopy(state)


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


def _is_stateful(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _is_map_style(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def _skips(loader: Any) -> bool:
    """Whether batches can be left behind by their indices alone: nothing else remembers that they were loaded."""
    return _is_map_style(loader) and not loader.num_workers and not _remembers(loader.dataset)


def _remembers(dataset: Any) -> bool:
    """Whether a dataset, or one that it wraps, has a state or a generator of its own."""
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator, random.Random, *((numpy.random.Generator, numpy.random.RandomState) if numpy else ()))
    held = getattr(dataset, "__dict__", {})
    parts = (*held.values(), *getattr(held.get("transform"), "__dict__", {}).values())
    own = _is_stateful(dataset) or any(isinstance(part, kinds) for part in parts)
    return own or ("dataset" in held and _remembers(held["dataset"]))


def _unknown(loader: Any, passes: int, told: dict[str, Any] | None) -> Iterator[str]:
    workers = getattr(loader, "num_workers", 0)
    if workers > 1 and not getattr(loader, "in_order", True):
        yield "with in_order=False the order of its batches is that in which its workers finish"
    if workers and passes and getattr(loader, "persistent_workers", False):
        yield "its workers persist, so random transforms in them, if any, draw otherwise than in an uninterrupted run"
    elif workers and told and told["at"]:
        yield "its state lacks its workers' generators, so random transforms in them, if any, begin anew"
    if passes and not workers and told is None and _remembers(getattr(loader, "dataset", None)):
        yield "its dataset has a state or a generator of its own, which isn't saved and begins anew"


def _why(loader: Any) -> str:
    if not _is_map_style(loader):
        return ", and must come in the same order as before"
    return ", as what its workers draw depends on them" if loader.num_workers else ""


def _draws() -> list[Any]:
    """The global generators' states, to be compared."""
    parts = itertools.chain.from_iterable(part if isinstance(part, list) else [part] for part in rng_state().values())
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in parts]


def _put_back(loader: Any, states: dict[str, Any]) -> None:
    _set_generators(loader, states["generators"])
    set_rng_state(states["rng"])


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

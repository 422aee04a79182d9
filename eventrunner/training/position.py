"""Where the training is in its data, so that a resumed run reads on at the next batch.

The order of a pass over a plain ``DataLoader`` depends on nothing but the generators at its start. So the state of a
position is those generators' states and the number of batches trained on since; going on sets them, begins the pass
anew, leaves as many batches behind, and puts the generators back to where they stood. Without worker processes only
the indices of those batches are drawn from the sampler. With workers, whose generators depend on what they loaded,
and where there are no indices, the batches are loaded once more, which costs their loading time and is exact.

A loader that tells its own state (``state_dict`` and ``load_state_dict``, as a ``StatefulDataLoader`` has) is asked
for it instead, wherever it tells more than a count, and nothing is loaded twice. It must draw what it draws for a
pass when ``iter`` is called on it, and tell of the batches given so far, not of those that it has prepared.

What samplers and the collate function hold beyond the global generators is :mod:`eventrunner.training.order`'s. Beyond
all this are a sampler that draws from the global generators while batches are trained on, and what
:meth:`DataPosition.caveat` names.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from eventrunner.errors import OptionError, did_you_mean
from eventrunner.training.order import (
    announce,
    batch_count,
    collate_generators,
    collates_alike,
    differences,
    order_state,
    other_loader,
    samplers,
    set_order_state,
    state_of,
)
from eventrunner.training.state import is_generator, is_stateful, rng_state, set_rng_state

__all__ = ["DataPosition", "build_dataloader", "check_loader", "no_batch"]


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
        self._start: dict[str, Any] = {}  # of the current pass: the states of all generators, and what the loader was
        self._loader: Any = None
        self._source: Any = None  # what tells where the loader stands: its iterator, or the loader itself
        self._known: dict[str, Any] | None = None  # where it stood last while no batch was under way; None: don't ask
        self._given = 0  # batches given of the current pass, with the one under way
        self._batch: Any = None  # the one under way
        self._awaiting: dict[str, Any] | None = None  # loaded: what the loader's order depends on, and its own state

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
        """Tell who has a ``set_epoch`` the number of the pass that is to come, from the second on."""
        if self.passes:
            announce(loader, self.passes)

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
            held = {**order_state(self._loader), "loader": told}
        return {"consumed": self.consumed, "passes": self.passes, "start": self._start, **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where :meth:`state_dict` was taken; takes effect when the next pass begins."""
        self.consumed, self.passes, self._start = state["consumed"], state["passes"], state["start"]
        self._awaiting = {"loader": None, **{key: state[key] for key in state.keys() - {"consumed", "passes", "start"}}}

    def caveat(self, loader: Any) -> str | None:
        """What can't be exact in going on in *loader*, or takes time, as one sentence.

        To be asked before the next pass begins; None where all is exact at no cost.
        """
        remarks = [] if self._awaiting is None else [*self._beyond(loader, self._awaiting["loader"])]
        kept = self._start or self._awaiting
        remarks = [*differences(loader, kept), *remarks] if kept else remarks
        kind = type(loader).__name__
        return f"going on in the train_dataloader, of type {kind}: {'; '.join(remarks)}." if remarks else None

    def _beyond(self, loader: Any, told: dict[str, Any] | None) -> Iterator[str]:
        """What of a resumed position no state has, and what it costs to go on from it."""
        yield from _unknown(loader, self.passes, told)
        again = self.consumed - (told["at"] if told else 0)
        if not again or isinstance(loader, Sequence) or (told is None and self._draws_indices(loader)):
            return
        if not self.skips:
            yield f"{again} of its batches {'are' if again > 1 else 'is'} loaded once more{_why(loader)}"
        elif _has_indices(loader, told):
            yield f"{_counted(again)} left out unloaded, so what loading draws at random, if anything, is another"
        else:
            yield f"{_counted(again)} not left behind, as that takes loading them, so its samples may come once more"

    def _draws_indices(self, loader: Any) -> bool:
        """Whether used batches can be left behind by their indices alone: nothing remembers that they were loaded."""
        return _skips(loader) and collates_alike(self._start, self._awaiting or order_state(loader))

    def _told(self) -> dict[str, Any] | None:
        """Where the loader stands by its own account, if it is one to be asked."""
        if self._known is None:
            return None
        return {"state": state_of(self._loader, "its state_dict()", self._source), "at": self._given}

    def _begun(self, loader: Iterable[Any]) -> Iterator[Any]:
        held = self._awaiting
        if held and self.passes:
            set_order_state(loader, held)
        self._start = {"rng": rng_state(), "length": batch_count(loader), **order_state(loader)}
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
            raise other_loader(f"has {length} batches where there were {start['length']}")
        held, ahead = self._awaiting, False
        if held is None:  # the pass was left in this process
            told = self._told() if self._loader is loader else None
            ahead = told is not None and self._given > self.consumed
            held = {**order_state(loader), "loader": told}
        rng = rng_state()
        try:
            iterator = self._behind(loader, held["loader"])
        except BaseException:  # an interrupt, mostly: loading again may take long
            set_rng_state(rng)
            raise
        if self.consumed or ahead:  # else the pass is begun once more, its first draws included
            _put_back(loader, {**held, "rng": rng}, under_way=True)
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
        if self.skips and self.consumed:
            return self._skipped(loader, told)
        iterator = self._opened(loader, told)
        draw = getattr(iterator, "_next_index", None)
        if self.consumed and told is None and draw is not None and self._draws_indices(loader):
            self._leave_behind(draw, 0, 1)
            drawn = _draws(loader)
            self._leave_behind(draw, 1, self.consumed)
            if _draws(loader) == drawn:
                return iterator
            iterator = self._opened(loader, told)  # the sampler's draws lie between those that loading makes
        self._leave_behind(iterator.__next__, told["at"] if told else 0, self.consumed, self.report)
        return iterator

    def _skipped(self, loader: Any, told: dict[str, Any] | None) -> Iterator[Any]:
        """The current pass without the batches that were taken, none of which is loaded once more.

        Where there are no indices to leave behind, it is as many batches as are left, from where the loader stands.
        """
        if _has_indices(loader, told):
            with _indices_behind(loader, self.consumed if loader.num_workers else 0):
                iterator = self._opened(loader, told)
            if not loader.num_workers:
                self._leave_behind(iterator._next_index, 0, self.consumed)  # type: ignore[attr-defined]  # noqa: SLF001
            return iterator
        length = batch_count(loader)
        return itertools.islice(self._opened(loader, told), None if length is None else length - self.consumed)

    def _leave_behind(
        self, draw: Callable[[], Any], begin: int, end: int, report: Callable[[int, int], None] | None = None
    ) -> None:
        for taken in range(begin, end):
            try:
                draw()
            except StopIteration:
                raise other_loader(f"ended after {taken} of the {self.consumed} batches already taken") from None
            if report is not None:
                report(taken + 1 - begin, end - begin)

    def _opened(self, loader: Any, told: dict[str, Any] | None) -> Iterator[Any]:
        """The current pass from where the loader told that it stood, or from its start."""
        if told is None or told["state"] is None:
            self._prime(loader)
            _put_back(loader, self._start)
            return self._made(loader)
        if not is_stateful(loader):
            raise other_loader("can't load the state that was saved of it")
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
            before = {**order_state(loader), "rng": rng_state()}
            iter(loader)
            _put_back(loader, before)


def _tells(loader: Any, source: Any) -> bool:
    """Whether the loader is to be asked where it stands: it can be, and knows more than how many batches it gave."""
    if not is_stateful(loader) or not hasattr(source, "state_dict"):
        return False
    if not isinstance(loader, DataLoader) or any(map(is_stateful, (loader.dataset, *samplers(loader)))):
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


def _is_map_style(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def _skips(loader: Any) -> bool:
    """Whether batches can be left behind by their indices alone: nothing else remembers that they were loaded."""
    return _is_map_style(loader) and not loader.num_workers and not _remembers(loader.dataset)


def _has_indices(loader: Any, told: dict[str, Any] | None) -> bool:
    return told is None and _is_map_style(loader) and not is_stateful(loader)


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


def _remembers(dataset: Any) -> bool:
    """Whether a dataset, or one that it wraps, has a state or a generator of its own."""
    held = getattr(dataset, "__dict__", {})
    parts = (*held.values(), *getattr(held.get("transform"), "__dict__", {}).values())
    own = is_stateful(dataset) or any(map(is_generator, parts))
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


def _draws(loader: Any) -> list[Any]:
    """The states of the generators that loading may draw from, to be compared."""
    return [_plain(rng_state()), _plain(collate_generators(loader))]


def _plain(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(each) for each in state] if isinstance(state, list) else state


def _put_back(loader: Any, states: dict[str, Any], under_way: bool = False) -> None:
    set_order_state(loader, states, under_way)
    set_rng_state(states["rng"])


def _counted(batches: int) -> str:
    return f"{batches} batches that were used are" if batches > 1 else "1 batch that was used is"

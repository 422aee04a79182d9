"""What the order of a loader's batches depends on, beyond the global generators.

Samplers and the collate function may hold generators or have a ``state_dict``: both can be saved. What else they hold,
such as a counter of passes, is noted, so that a resumed run can say that it isn't as it was. Torch's own samplers hold
nothing of the kind, and one that has a ``set_epoch`` is told where it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
import numbers
import random
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from eventrunner.checkpoint.plan import encode
from eventrunner.errors import CheckpointError, ResumeError, listed
from eventrunner.training.dataloader import batch_count
from eventrunner.training.state import generator_state, is_generator, is_stateful, set_generator_state

__all__ = [
    "collate_generators",
    "collates_alike",
    "differences",
    "order_state",
    "other_loader",
    "set_order_state",
    "state_of",
]

_UNKNOWN = "?"
"""Noted of what can't be told from its like, such as an iterator."""
_COLLATE = "collate_fn"
_DATA = ("dataset", "data_source")
_PLAIN = (numbers.Number, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_DEPTH = 4
_FEW = 16
"""The entries of a longer list or dict aren't looked into: so many of them are noted."""


def order_state(loader: Any) -> dict[str, Any]:
    """Return what can be saved of what a loader's order depends on, notes of the rest, and what it looks like.

    Raises:
        CheckpointError: a part's ``state_dict`` has something in it that a checkpoint can't hold.
    """
    held = _held(loader)
    return {
        "generators": {name: generator_state(each) for name, each in held.generators.items()},
        "states": {name: state_of(loader, f"its {name}'s state_dict()", each) for name, each in held.stateful.items()},
        "notes": held.notes,
        "facts": _facts(loader),
    }


def set_order_state(loader: Any, saved: Mapping[str, Any], under_way: bool = False) -> None:
    """Put back what :func:`order_state` could save.

    Where a pass is *under way*, samplers with a state are left alone: they stand where drawing has brought them.

    Raises:
        ResumeError: the loader doesn't hold what was saved.
    """
    held, generators, states = _held(loader), saved["generators"], saved.get("states", {})
    if isinstance(generators, list):
        generators = _by_name(generators, held)
    elif {*held.generators, *held.stateful} != {*generators, *states}:
        both = ({*held.generators, *held.stateful}, {*generators, *states})
        mine, theirs = (listed(sorted(names), "no generator") for names in both)
        raise other_loader(f"holds {mine} where it held {theirs}")
    for name, state in generators.items():
        try:
            set_generator_state(held.generators[name], state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise other_loader(f"holds another kind of generator as {name} than it held") from error
    for name, state in states.items():
        if not under_way or _is_collated(name):
            held.stateful[name].load_state_dict(copy.deepcopy(state))  # it may make it its own


def collate_generators(loader: Any) -> list[Any]:
    """Return the states of the generators that the collate function holds."""
    held = _held(loader).generators
    return [generator_state(each) for name, each in held.items() if _is_collated(name)]


def collates_alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether the collate function has kept what can't be put back, as far as two states tell."""
    return not any(map(_is_collated, _changed(before, after)))


def differences(loader: Any, saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what a loader isn't the one that *saved* was taken of, or else what it held and can't be given back."""
    mine, theirs = _facts(loader), saved.get("facts", {})
    other = [f"its {name} is {mine.get(name)} and was {was}" for name, was in theirs.items() if mine.get(name) != was]
    lost = [] if other else _changed(saved, {"notes": _held(loader).notes})
    yield from other
    if lost:
        yield (
            f"its {listed(lost)} can't be put back to what it was, so its order may be another than in an "
            "uninterrupted run (a generator, or a state_dict with load_state_dict, would be saved)"
        )


def other_loader(difference: str) -> ResumeError:
    """Return the error of a loader that isn't the one that a position was taken in."""
    return ResumeError(f"going on in the train_dataloader: it {difference}; it must be the one that was begun.")


def state_of(loader: Any, what: str, source: Any) -> Any:
    """Return a copy of the state that a part of a loader gives.

    Raises:
        CheckpointError: a checkpoint can't hold it; the message says *what* it is, and where in it that is.
    """
    state = source.state_dict()
    try:
        encode({"state": state})
    except CheckpointError as error:
        where = str(error).removeprefix("checkpoint['state']")
        kind = type(loader).__name__
        raise CheckpointError(f"saving the train_dataloader, of type {kind}: {what}{where}") from error
    return copy.deepcopy(state)


def _facts(loader: Any) -> dict[str, Any]:
    """What tells a loader from another one, in plain words."""
    if loader is None:
        return {}
    parts = {name: getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset")}
    kinds = {name: type(part).__name__ for name, part in parts.items() if part is not None}
    size = getattr(parts["batch_sampler"], "batch_size", None)
    return {
        "type": type(loader).__name__,
        "number of batches": batch_count(loader),
        "number of samples": batch_count(parts["dataset"]),
        "batch_size": size if isinstance(size, int) else None,
        **kinds,
    }


@dataclass(frozen=True, slots=True)
class _Held:
    """What a loader's parts hold, by dotted name."""

    generators: dict[str, Any] = field(default_factory=dict)
    stateful: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


def _held(loader: Any) -> _Held:
    found = _Held()
    if isinstance(loader, DataLoader):
        for name in ("generator", "sampler", "batch_sampler", _COLLATE):
            _look(found, name, getattr(loader, name), loader)
    elif loader is not None and not isinstance(loader, (list, tuple)):
        _look_into(found, "", loader, covered=False)
    return found


def _look(found: _Held, name: str, thing: Any, owner: Any, covered: bool = False) -> None:
    """Sort in what *owner* has under *name*; where it is *covered*, *owner* gets back what can't be saved here."""
    noted = not covered and not _is_torchs(owner)
    if isinstance(thing, _PLAIN):
        if noted:
            found.notes[name] = repr(thing)
        return
    if id(thing) in found.seen or name.rpartition(".")[2] in _DATA:
        return
    found.seen.add(id(thing))
    if is_generator(thing):
        found.generators[name] = thing
    elif _is_array(thing) or isinstance(thing, _CONTAINERS):
        if noted:
            found.notes[name] = _digest(thing)
        for key, each in _few(thing):
            _look(found, f"{name}.{key}", each, owner, covered=covered or isinstance(each, _PLAIN))
    elif isinstance(thing, (Iterator, random.Random)):  # a SystemRandom
        if noted:
            found.notes[name] = _UNKNOWN
    elif name.count(".") < _DEPTH and _is_part(name, thing, owner):
        _look_into(found, name, thing, covered)


def _look_into(found: _Held, name: str, thing: Any, covered: bool) -> None:
    stateful = is_stateful(thing)
    if name and stateful:  # a loader with a state is asked for it by its position
        found.stateful[name] = thing
    for key, each in _attributes(thing).items():
        _look(found, f"{name}.{key}" if name else key, each, thing, covered or stateful or hasattr(thing, "set_epoch"))


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object has, or a function is bound to; and the generators that functions find in their module."""
    if isinstance(thing, functools.partial):
        return {"func": thing.func, **{str(i): each for i, each in enumerate(thing.args)}, **thing.keywords}
    if inspect.ismethod(thing):
        return {"self": thing.__self__}
    if inspect.isfunction(thing):
        used = inspect.getclosurevars(thing)
        return {**_generators_in(used.globals), **used.nonlocals}
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(thing, name)]
    held = {name: getattr(thing, name) for name in slots} | getattr(thing, "__dict__", {})
    for method in (getattr(type(thing), name, None) for name in ("__iter__", "__call__")):
        if inspect.isfunction(method) and not _is_torchs(method):
            used = inspect.getclosurevars(method)
            held = {**_generators_in(used.globals), **_generators_in(used.nonlocals), **held}
    return held


def _generators_in(names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in names.items() if is_generator(each)}


def _is_part(name: str, thing: Any, owner: Any) -> bool:
    """Whether an object is looked into: a sampler or function, or a helper that is written beside its owner."""
    if isinstance(thing, (type, ModuleType, Dataset, torch.nn.Module)):
        return False
    of_a_kind = isinstance(thing, (Sampler, functools.partial)) or inspect.isroutine(thing)
    named = any(word in name.rpartition(".")[2] for word in ("sampler", "collate"))
    return of_a_kind or named or getattr(thing, "__module__", None) == getattr(owner, "__module__", "")


def _is_torchs(owner: Any) -> bool:
    return str(getattr(owner, "__module__", "")).partition(".")[0] in ("torch", "torchdata")


def _is_array(thing: Any) -> bool:
    return isinstance(thing, torch.Tensor) or hasattr(thing, "__array_interface__")


def _few(entries: Any) -> Iterable[tuple[Any, Any]]:
    if _is_array(entries) or isinstance(entries, (set, frozenset)) or len(entries) > _FEW:
        return ()
    return entries.items() if isinstance(entries, dict) else enumerate(entries)


def _digest(entries: Any, depth: int = 2) -> str:
    """A short text that changes when a list is shuffled, counted up or exchanged, from some of its entries."""
    if isinstance(entries, (set, frozenset)):  # in no order that another process has
        return str(len(entries))
    if isinstance(entries, dict):
        entries = [*entries, *entries.values()]
    flat: Any = entries.reshape(-1) if _is_array(entries) else list(entries)
    sample = flat[:: max(len(flat) // _FEW, 1)]
    words = [_word(each, depth) for each in (sample if isinstance(sample, list) else sample.tolist())]
    return f"{len(flat)} {zlib.crc32(repr(words).encode()):08x}"


def _word(entry: Any, depth: int) -> str:
    if isinstance(entry, _PLAIN):
        return repr(entry)
    nested = depth and (_is_array(entry) or isinstance(entry, _CONTAINERS))
    return _digest(entry, depth - 1) if nested else type(entry).__name__


def _by_name(generators: list[Any], held: _Held) -> dict[str, Any]:
    """The states of an earlier checkpoint, which has a list of those of torch's that are called ``generator``."""
    names = [name for name in held.generators if name.rpartition(".")[2] == "generator"]
    if len(names) != len(generators):
        raise other_loader(f"has {len(names)} generators of its own where there were {len(generators)}")
    return dict(zip(names, generators, strict=True))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old, new = before.get("notes", {}), after.get("notes", {})
    return [name for name, note in old.items() if name in new and (note == _UNKNOWN or note != new[name])]


def _is_collated(name: str) -> bool:
    return name.partition(".")[0] == _COLLATE

"""What the parts of a loader hold: found by walking over its samplers, its collate function and their attributes."""

from __future__ import annotations

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

from eventrunner.training.state import is_generator, is_stateful

__all__ = ["COLLATE", "Held", "changed", "held_by"]

COLLATE = "collate_fn"
_UNKNOWN = "?"
"""Noted of what can't be compared, such as an iterator."""
_DATA = ("dataset", "data_source")
_PLAIN = (numbers.Number, str, bytes, type(None))
_CONTAINERS = (list, tuple, set, frozenset, dict, deque)
_DEPTH = 4
_FEW = 16
"""The entries of a longer list or dict aren't looked into: so many of them are noted."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a loader's parts hold, by dotted name.

    Attributes:
        generators: Generators of random numbers, whose states can be saved.
        stateful: Parts with a ``state_dict`` and a ``load_state_dict``.
        notes: A short text of each other thing, which shows whether it has changed.
        seen: The ids of the things that were looked at.
    """

    generators: dict[str, Any] = field(default_factory=dict)
    stateful: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


def held_by(loader: Any) -> Held:
    """Return what can be saved of what the parts of a loader hold, and notes of the rest.

    Of a ``DataLoader``: its generator, its samplers and its collate function; of any other, all that it is made of.
    """
    found = Held()
    if isinstance(loader, DataLoader):
        for name in ("generator", "sampler", "batch_sampler", COLLATE):
            _look(found, name, getattr(loader, name), loader)
    elif loader is not None and not isinstance(loader, (list, tuple)):
        _look_into(found, "", loader, covered=False)
    return found


def _look(found: Held, name: str, thing: Any, owner: Any, covered: bool = False) -> None:
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


def _look_into(found: Held, name: str, thing: Any, covered: bool) -> None:
    stateful = is_stateful(thing)
    if name and stateful:  # a loader with a state is asked for it by its position
        found.stateful[name] = thing
    for key, each in _attributes(thing).items():
        _look(found, f"{name}.{key}" if name else key, each, thing, covered or stateful or hasattr(thing, "set_epoch"))


def _attributes(thing: Any) -> dict[str, Any]:
    """Return what an object has, or a function is bound to; and the generators that functions find in their module."""
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
    """Return a short text that changes when a list is shuffled, counted up or exchanged, from some of its entries."""
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


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the names whose notes differ, or can't be compared."""
    return [name for name, note in before.items() if name in after and (note == _UNKNOWN or note != after[name])]

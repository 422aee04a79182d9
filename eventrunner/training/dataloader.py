"""What a dataloader may be, and what of it can be asked for by all who have one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from eventrunner.errors import OptionError, did_you_mean

__all__ = ["announce", "batch_count", "build_dataloader", "check_loader", "is_map_style", "no_batch", "samplers"]

_NESTED = 4
"""Datasets that wrap one another are followed so far."""


def check_loader(name: str, loader: Any) -> None:
    """Refuse what doesn't give batches again and again, before a run is made with it.

    Raises:
        OptionError: a dict (it takes the object itself), an iterator that is used up by one pass, no iterable, or one
            of samples, indices, letters or other dataloaders.
    """
    if refusal := _refusal(loader, type(loader).__name__):
        raise OptionError(f"{name} was given {refusal}.")


def _refusal(loader: Any, kind: str) -> str | None:
    if isinstance(loader, Mapping):
        return "a dict; pass the object, such as a torch.utils.data.DataLoader"
    if isinstance(loader, Iterator) and not hasattr(loader, "__len__"):
        anew = "pass an iterable that begins anew, such as a DataLoader or a list of batches"
        return f"a {kind}, which one pass uses up; {anew}"
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):  # which may well give batches
        made = "pass DataLoader(dataset, batch_size=…), with batch_size=None where its items are batches"
        return f"a dataset, of type {kind}, whose samples would be taken for batches; {made}"
    if isinstance(loader, list | tuple) and any(isinstance(each, DataLoader | Dataset) for each in loader):
        one = "pass one, such as a DataLoader of the ConcatDataset of their datasets"
        return f"a {kind} of {len(loader)} dataloaders, each of which would be taken for a batch; {one}"
    if isinstance(loader, type):
        return f"the class {loader.__name__}, which gives no batches; pass a DataLoader"
    if isinstance(loader, str | bytes | Sampler):
        return f"an object of type {kind}, which gives no batches; pass a DataLoader"
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        batches = "pass an iterable of batches, such as a DataLoader"
        return f"an object of type {kind}, which can't be iterated over; {batches}"
    return None


def no_batch(mode: str) -> OptionError:
    """Return the error of a pass over the dataloader of train, val or test that has no batch at all."""
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
    """Return the number of batches of a pass, or None where the loader doesn't know it."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def is_map_style(loader: Any) -> bool:
    """Return whether it is torch's, of a dataset whose samples have indices."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def samplers(loader: Any) -> Iterator[Any]:
    """Yield the objects of a loader that may shuffle, each once: sampler, batch sampler, and that one's sampler."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    yield from {id(each): each for each in found if each is not None}.values()


def announce(loader: Any, number: int) -> None:
    """Call ``set_epoch`` with the number of the pass to come, on the loader, its samplers and its datasets.

    Only where they have one; of a subset, also on the whole dataset. Workers that persist keep the dataset as it was
    when they began.
    """
    for each in (loader, *samplers(loader), *_datasets(loader)):
        if hasattr(each, "set_epoch"):
            each.set_epoch(number)


def _datasets(loader: Any) -> Iterator[Any]:
    dataset = getattr(loader, "dataset", None)
    for _ in range(_NESTED):
        if dataset is not None:
            yield dataset
            dataset = getattr(dataset, "dataset", None)

"""A checkpoint's tree as one file of torch.save, for programs that read nothing else.

Whether ``torch.load(weights_only=True)`` takes a tree is found by trying, as that differs from version to version. What
it never takes, values of numpy's, is written as the nodes that the other format has for them.

``weights_only=True`` runs nothing, but a file of a kilobyte may have it allocate or unpack a gigabyte. Reading takes
memory in proportion to the file, so :mod:`eventrunner.checkpoint.archive` checks first what it would make.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.archive import check_archive, check_pickle
from eventrunner.checkpoint.codec import Decoder, array_of, decode
from eventrunner.checkpoint.staging import StagedCheckpoint, memory_of
from eventrunner.checkpoint.tensors import shared_with
from eventrunner.checkpoint.tree import SCALARS, TAG, is_scalar, numpy_kind
from eventrunner.errors import CheckpointError, CorruptCheckpointError

__all__ = ["UNREADABLE", "check_plain", "plain_tree", "read_tree"]

UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, ImportError, struct.error, zipfile.BadZipFile),
)
"""What ``torch.load(weights_only=True)`` raises of a file that is damaged, or holds what it doesn't take."""

_SHOWN = 300


def plain_tree(staged: StagedCheckpoint) -> dict[str, Any]:
    """Return the tree that *staged* is of, for torch.save; its tensors share its memory.

    Raises:
        CheckpointError: ``torch.load(weights_only=True)`` would refuse it; the message has the path to what it refuses.
    """
    apart = {file: {name: _apart(view) for name, view in views.items()} for file, views in staged.views.items()}
    tree = decode(staged.document, apart)
    check_plain(tree)
    plain: dict[str, Any] = _tagged(tree)
    return plain


def check_plain(tree: Mapping[str, Any]) -> None:
    """Refuse a tree that ``torch.load(weights_only=True)`` wouldn't take.

    Raises:
        CheckpointError: the message has the path to what it refuses.
    """
    if not _loads_back(dict(tree)):
        _refuse(tree)


def read_tree(file: Path, device: torch.device) -> dict[str, Any]:
    """Return the tree in a ``checkpoint.pth``.

    Raises:
        CorruptCheckpointError: it holds something else, or can't be read with ``weights_only=True``.
    """
    try:
        check_pickle(check_archive(file))
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            tree = _untagged(torch.load(file, map_location=device, weights_only=True), {})
    except UNREADABLE as error:
        raise CorruptCheckpointError(
            f"{file} can't be read with weights_only=True, as it is damaged or wasn't written by a Store: "
            f"{str(error)[:_SHOWN]}"
        ) from error
    if not isinstance(tree, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(tree).__name__}, where a checkpoint is a dict.")
    return tree


def _apart(view: Tensor) -> Tensor:
    """Return the tensor as if it had memory of its own; of one that looks into a file torch.save writes all of that."""
    data = torch.frombuffer(memory_of(view), dtype=torch.uint8) if view.nbytes else view.new_empty(0, dtype=torch.uint8)
    return data.view(view.dtype).view(view.shape)


def _tagged(value: Any) -> Any:
    """Return *value* with nodes in the place of what is numpy's, and of dicts that could be taken for one."""
    if numpy_kind(value) == "ndarray":
        return {TAG: "ndarray", "tensor": shared_with(value)}
    if type(value) not in SCALARS and is_scalar(value):
        return {TAG: "numpy", "dtype": value.dtype.str, "value": value.item()}
    if type(value) in (dict, OrderedDict):
        copy = type(value)((key, _tagged(below)) for key, below in value.items())
        if versions := getattr(value, "_metadata", None):
            vars(copy)["_metadata"] = _tagged(versions)
        return {TAG: "dict", "items": copy} if TAG in copy else copy
    return type(value)(map(_tagged, value)) if type(value) in (list, tuple) else value


def _untagged(value: Any, known: dict[int, Any]) -> Any:
    """Undo :func:`_tagged`; each container once, though a pickle may have it in many places."""
    return _once(value, known, _read)


def _once(value: Any, known: dict[int, Any], read: Callable[[Any, dict[int, Any]], Any]) -> Any:
    if type(value) not in (dict, OrderedDict, list, tuple):
        return value
    if id(value) not in known:
        known[id(value)] = value  # which is what one that lies in itself finds there
        known[id(value)] = read(value, known)
    return known[id(value)]


def _read(value: Any, known: dict[int, Any]) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_untagged(below, known) for below in value)
    match value.get(TAG):
        case "ndarray" if isinstance(value["tensor"], Tensor):
            return array_of(value["tensor"])
        case "numpy" if type(value["value"]) in SCALARS:
            return Decoder({}).node(value)
        case "dict":
            return _once(value["items"], known, _with_values)
    return _with_values(value, known)


def _with_values(value: Any, known: dict[int, Any]) -> Any:
    copy = type(value)((key, _untagged(below, known)) for key, below in value.items())
    if versions := getattr(value, "_metadata", None):
        vars(copy)["_metadata"] = _untagged(versions, known)
    return copy


def _loads_back(value: Any) -> bool:
    file = io.BytesIO()
    torch.save(_tagged(_without_data(value, {})), file)
    file.seek(0)
    try:
        check_pickle(check_archive(file))
        file.seek(0)
        torch.load(file, weights_only=True)
    except UNREADABLE:
        return False
    return True


def _without_data(value: Any, stand_ins: dict[torch.dtype, Tensor]) -> Any:
    """Return *value* with one empty tensor per dtype in the place of all that there are; containers are copied."""
    if isinstance(value, Tensor):
        return stand_ins.setdefault(value.dtype, torch.empty(0, dtype=value.dtype))
    if type(value) in (dict, OrderedDict, Counter):
        copy = type(value)({key: _without_data(below, stand_ins) for key, below in value.items()})
        if versions := getattr(value, "_metadata", None):
            vars(copy)["_metadata"] = versions
        return copy
    if type(value) in (list, tuple):
        return type(value)(_without_data(below, stand_ins) for below in value)
    return value


def _refuse(tree: Mapping[str, Any]) -> None:
    value: Any = tree
    path = "checkpoint"
    while (below := list(_below(value))) and not _loads_back([held for _, held in below]):
        key, value = _first_refused(below)
        path += f"[{key!r}]"
    what = "has a key" if below else f"is of type {type(value).__name__}"
    raise CheckpointError(
        f"{path} {what} that format='pth' can't hold, as torch.load(weights_only=True) refuses it; put plain numbers, "
        "strings and tensors there, or use format='safetensors'."
    )


def _below(value: Any) -> Iterator[tuple[object, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _first_refused(items: list[tuple[object, Any]]) -> tuple[object, Any]:
    """Return the first that is refused, of which there is one, in as few tries as halving takes."""
    while len(items) > 1:
        half = items[: len(items) // 2]
        items = items[len(half) :] if _loads_back([held for _, held in half]) else half
    return items[0]

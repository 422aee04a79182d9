"""A checkpoint's tree as one file of torch.save, for programs that read nothing else.

Whether ``torch.load(weights_only=True)`` takes a tree is found by trying, as that differs from version to version.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.archive import check_archive, check_pickle
from eventrunner.checkpoint.codec import decode
from eventrunner.checkpoint.image import Image
from eventrunner.checkpoint.manifest import TensorEntry
from eventrunner.errors import CheckpointError, CorruptCheckpointError

__all__ = ["UNREADABLE", "plain_tree", "read_tree"]

UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, ImportError, struct.error, zipfile.BadZipFile),
)
"""What ``torch.load(weights_only=True)`` raises of a file that is damaged, or holds what it doesn't take."""

_SHOWN = 300


def plain_tree(image: Image) -> dict[str, Any]:
    """The tree that *image* is of, for torch.save; its tensors share the image's memory.

    Raises:
        CheckpointError: ``torch.load(weights_only=True)`` would refuse it; the message has the path to what it refuses.
    """
    tensors = {file: _tensors_in(data, file, image.tensors) for file, data in image.files.items()}
    tree = decode(image.document, tensors)
    if not _loads_back(tree):
        _refuse(tree)
    return tree


def read_tree(file: Path, device: torch.device) -> dict[str, Any]:
    """The tree in a ``checkpoint.pth``.

    Raises:
        CorruptCheckpointError: it holds something else, or can't be read with ``weights_only=True``.
    """
    try:
        check_pickle(check_archive(file))
        tree = torch.load(file, map_location=device, weights_only=True)
    except UNREADABLE as error:
        raise CorruptCheckpointError(
            f"{file} can't be read with weights_only=True, as it is damaged or wasn't written by a Store: "
            f"{str(error)[:_SHOWN]}"
        ) from error
    if not isinstance(tree, dict):
        raise CorruptCheckpointError(f"{file} holds a {type(tree).__name__}, where a checkpoint is a dict.")
    return tree


def _tensors_in(data: memoryview, file: str, entries: Iterable[TensorEntry]) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory, without a copy."""
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:length]))
    found = {}
    for entry in entries:
        if entry.pieces[0].file == file:
            begin, end = header[entry.name]["data_offsets"]
            found[entry.name] = _over(data[length + begin : length + end], entry)
    return found


def _over(data: memoryview, entry: TensorEntry) -> Tensor:
    taken = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return taken.view(getattr(torch, entry.dtype)).view(entry.shape)


def _loads_back(value: Any) -> bool:
    file = io.BytesIO()
    torch.save(_hollow(value, {}), file)
    file.seek(0)
    try:
        check_pickle(check_archive(file))
        file.seek(0)
        torch.load(file, weights_only=True)
    except UNREADABLE:
        return False
    return True


def _hollow(value: Any, stand_ins: dict[torch.dtype, Tensor]) -> Any:
    """*value* with one empty tensor per dtype in place of all that it holds."""
    if isinstance(value, Tensor):
        return stand_ins.setdefault(value.dtype, torch.empty(0, dtype=value.dtype))
    if type(value) in (dict, OrderedDict):
        copy = type(value)((key, _hollow(below, stand_ins)) for key, below in value.items())
        if versions := getattr(value, "_metadata", None):
            vars(copy)["_metadata"] = versions
        return copy
    return type(value)(_hollow(below, stand_ins) for below in value) if type(value) in (list, tuple) else value


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
    """The first that is refused, of which there is one, in as few tries as halving takes."""
    while len(items) > 1:
        half = items[: len(items) // 2]
        items = items[len(half) :] if _loads_back([held for _, held in half]) else half
    return items[0]

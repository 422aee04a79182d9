"""How a staged checkpoint lies in its folder: as safetensors files and ``state.json``, or as one ``checkpoint.pth``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eventrunner.checkpoint.codec import walk
from eventrunner.checkpoint.manifest import PTH_NAME, STATE_LIMIT, STATE_NAME, FileEntry, TensorEntry
from eventrunner.checkpoint.plan import make_plan
from eventrunner.checkpoint.pth import check_plain, plain_tree
from eventrunner.checkpoint.staging import StagedCheckpoint
from eventrunner.checkpoint.tree import leaves_of
from eventrunner.errors import CheckpointError, OptionError, did_you_mean
from eventrunner.files import disk

__all__ = ["FORMATS", "Contents", "check_tree", "contents_of"]

FORMATS = ("safetensors", "pth")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint consists of but its manifest.

    Attributes:
        nbytes: About as many bytes as the files will have.
        tensors: The manifest's table of them.
        write: Writes the files into a folder, each to the disk, and returns the manifest's entries for them.
    """

    nbytes: int
    tensors: tuple[TensorEntry, ...]
    write: Callable[[Path], dict[str, FileEntry]]


def contents_of(staged: StagedCheckpoint, tree_format: str) -> Contents:
    """Return what to write of *staged*, which must not change until that is done.

    Raises:
        OptionError: *tree_format* is none of :data:`FORMATS`.
        CheckpointError: it can't hold the tree, or what it writes couldn't be read again.
    """
    if tree_format not in FORMATS:
        end = did_you_mean(tree_format, FORMATS) or "."
        raise OptionError(f"a checkpoint's format is {' or '.join(map(repr, FORMATS))}, not {tree_format!r}{end}")
    document = _to_bytes(staged.document)
    nbytes = staged.nbytes + len(document)
    if tree_format == "pth":
        return Contents(nbytes, (), functools.partial(_write_one, functools.partial(torch.save, plain_tree(staged))))
    parts = {**staged.files, STATE_NAME: memoryview(document)}
    return Contents(nbytes, staged.tensors, functools.partial(_write_each, parts))


def check_tree(tree: Mapping[str, Any], tree_format: str) -> None:
    """Refuse what a save of *tree* would refuse; no tensor is copied.

    Raises:
        CheckpointError: there is something in it that the format can't hold; the message has the path to it.
    """
    branches = walk(tree)
    plan = make_plan(tree, branches, leaves_of(branches))
    _to_bytes(plan.document(tree, [branch.skeleton for branch in branches]))
    if tree_format == "pth":
        check_plain(tree)


def _write_each(parts: Mapping[str, memoryview], folder: Path) -> dict[str, FileEntry]:
    return {name: FileEntry(*disk.write_image(folder / name, data)) for name, data in parts.items()}


def _write_one(save: Callable[[disk.Sink], object], folder: Path) -> dict[str, FileEntry]:
    return {PTH_NAME: FileEntry(*disk.write_stream(folder / PTH_NAME, save))}


def _to_bytes(document: Mapping[str, Any]) -> bytes:
    data = json.dumps(document, allow_nan=False).encode()
    if len(data) > STATE_LIMIT:
        raise CheckpointError(
            f"{STATE_NAME} would have {len(data)} bytes, more than the {STATE_LIMIT} that are read again; put large "
            "lists of numbers into tensors."
        )
    return data

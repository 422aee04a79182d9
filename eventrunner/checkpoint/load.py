"""Reading checkpoints back: verified first, parsed within bounds, and never executed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eventrunner.checkpoint.codec import decode
from eventrunner.checkpoint.manifest import PTH_NAME, STATE_LIMIT, STATE_NAME, Manifest, read_manifest
from eventrunner.checkpoint.pth import UNREADABLE, read_tree
from eventrunner.checkpoint.staging import memory_of
from eventrunner.checkpoint.verify import check_files, is_checkpoint, missing_checkpoint, verify_checkpoint
from eventrunner.errors import CheckpointError, CorruptCheckpointError, OptionError, listed
from eventrunner.files.reader import read_json, reading

__all__ = ["load_checkpoint", "load_weights"]

_MODEL = "model.safetensors"
_SUFFIX = ".safetensors"
_PICKLES = (".pth", ".pt", ".bin")
_CPU = torch.device("cpu")


def load_checkpoint(
    path: str | os.PathLike[str], *, verify: bool = True, map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Return the tree that was saved in the folder at *path*.

    Args:
        path: A checkpoint's folder.
        verify: Whether digests are compared, which is done while the files are read and costs about a tenth more
            (for a ``checkpoint.pth``, another read). File names and sizes always are.
        map_location: The device for all tensors. Numpy arrays stay on the host.

    Returns:
        The tree; its tensors own their memory, so the folder may go.

    Raises:
        CheckpointNotFoundError: there is no checkpoint at *path*; the message names those near it.
        CorruptCheckpointError: its bytes are not those that were committed, or can't be parsed.
        CheckpointError: of a format that this version doesn't know.
        OptionError: *map_location* is no device.
    """
    folder, device = Path(path), _device(map_location)
    manifest = verify_checkpoint(folder, digests=False)
    names = [name for name in manifest.files if name.endswith(_SUFFIX)]
    digests = _digests(manifest) if verify else {}
    if PTH_NAME in manifest.files:
        check_files(folder, manifest, digests.keys())
        return read_tree(folder / PTH_NAME, device)
    # What is read below is digested on the way.
    check_files(folder, manifest, digests.keys() - {*names, STATE_NAME})
    document = _document(folder, digests)
    return decode(document, _tensors(folder, names, device, digests), where=str(folder / STATE_NAME))


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights at *path* on the CPU, under the names that they were saved with.

    Args:
        path: A checkpoint's folder (its ``state_dict``; the files of the optimizer and the rest are not read), a
            ``.safetensors`` file, or a ``.pth``, ``.pt`` or ``.bin`` file, read with ``weights_only=True`` (its
            ``state_dict`` if it has one, otherwise all of it).

    Raises:
        CheckpointNotFoundError: there is nothing at *path*, or a folder that is no checkpoint.
        CorruptCheckpointError: the file can't be parsed, or isn't the one that was committed.
        CheckpointError: there are no weights in it, or it is a pickle with more than tensors and plain containers.
        OptionError: a file with another suffix.
    """
    source = Path(path)
    if source.is_dir():
        return _weights_of_folder(source)
    if not source.exists():
        raise missing_checkpoint(source)
    if source.suffix == _SUFFIX:
        return _read_tensors(source.resolve(), None)
    if source.suffix in _PICKLES:
        return _weights_of_pickle(source)
    raise OptionError(
        f"can't load weights from {source}, as it is neither a checkpoint's folder nor a file that ends in "
        f"{listed((_SUFFIX, *_PICKLES))}."
    )


def _weights_of_folder(folder: Path) -> dict[str, Tensor]:
    if not is_checkpoint(folder):
        raise missing_checkpoint(folder)
    manifest = read_manifest(folder)
    pickled = [name for name in (PTH_NAME,) if name in manifest.files]
    check_files(folder, manifest, pickled)
    tree = read_tree(folder / PTH_NAME, _CPU) if pickled else _tree_of_weights(folder, manifest)
    if "state_dict" not in tree:
        raise CheckpointError(f"{folder} has no weights, as it was saved without a 'state_dict'.")
    weights: Any = tree["state_dict"]
    if not isinstance(weights, dict):
        raise CheckpointError(f"{folder} has a {type(weights).__name__} as 'state_dict', where weights are a dict.")
    return weights


def _tree_of_weights(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the part of a checkpoint's tree that needs only the model's file."""
    digests = _digests(manifest)
    document = _document(folder, digests)
    names = [name for name in (_MODEL,) if name in manifest.files]
    weights = {key: node for key, node in document.items() if key == "state_dict"}
    return decode(weights, _tensors(folder, names, _CPU, digests), where=str(folder / STATE_NAME))


def _weights_of_pickle(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"can't load weights from {file}, as it is not a plain file.")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(
            f"can't load weights from {file}, as it is damaged or holds more than tensors and plain containers; save "
            "its state_dict alone with torch.save, or as a .safetensors file."
        ) from error
    nested = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(nested, dict):
        raise CheckpointError(f"{file} holds a {type(nested).__name__}, where weights are a dict by name.")
    for name, value in nested.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file} holds a {type(value).__name__} under {name!r}, where weights are tensors by name, or such a "
                "dict under 'state_dict'."
            )
    return nested


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"map_location={name!r} is not a device such as 'cpu' or 'cuda:0'.") from error


def _digests(manifest: Manifest) -> dict[str, str]:
    return {name: entry.digest for name, entry in manifest.files.items()}


def _document(folder: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    document = read_json(folder / STATE_NAME, STATE_LIMIT, digests.get(STATE_NAME))
    if not isinstance(document, dict):
        raise CorruptCheckpointError(f"{folder / STATE_NAME} is no JSON object.")
    return document


def _tensors(
    folder: Path, names: Iterable[str], device: torch.device, digests: Mapping[str, str]
) -> dict[str, dict[str, Tensor]]:
    read = {name: _read_tensors(folder / name, digests.get(name)) for name in names}
    return {file: {name: tensor.to(device) for name, tensor in tensors.items()} for file, tensors in read.items()}


def _read_tensors(file: Path, digest: str | None) -> dict[str, Tensor]:
    """Read all tensors of a file, each into memory of its own: the bytes hashed are those returned."""
    with reading(file, digest) as reader:
        mapped = _mapped(file, reader.name)
        tensors = {name: torch.empty_like(tensor) for name, tensor in mapped.items()}
        header = reader.size - sum(tensor.nbytes for tensor in tensors.values())  # safetensors allows no holes
        reader.take(header)
        reader.fill(memory_of(tensor) for tensor in tensors.values() if tensor.nbytes)
    return tensors


def _mapped(file: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a file in the order of their bytes, not read yet; safetensors has checked the header."""
    try:
        with safe_open(name, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.offset_keys()}
    except (SafetensorError, RuntimeError) as error:
        raise CorruptCheckpointError(f"{file} is not a safetensors file that can be read: {error}.") from error

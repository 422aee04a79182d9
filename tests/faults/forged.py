"""Forged checkpoints: other bytes in a file's place, and a manifest that vouches for them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from eventrunner.checkpoint.manifest import MANIFEST_NAME, FileEntry, read_manifest, write_manifest

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    """One of them.

    Attributes:
        name: What is hostile about it.
        change: Makes a checkpoint's folder hostile.
        tree_format: Of the checkpoint before.
        refused: Whether loading it must fail; otherwise it may, and must be harmless.
        always: Whether it is tried in short runs too, whatever is drawn.
    """

    name: str
    change: Change
    tree_format: str = "safetensors"
    refused: bool = True
    always: bool = False


def put(name: str, data: bytes) -> Change:
    """Other bytes in a file's place, or one file more, and a manifest that agrees."""

    def change(folder: Path) -> None:
        manifest = read_manifest(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        (folder / MANIFEST_NAME).unlink()
        entry = FileEntry(len(data), xxhash.xxh3_128_hexdigest(data))
        write_manifest(folder, dataclasses.replace(manifest, files={**manifest.files, name: entry}))

    return change


def signed(text: bytes) -> bytes:
    """A manifest's bytes with their digest at the end."""
    return text[:-1] + b',"digest":"%b"}' % xxhash.xxh3_128_hexdigest(text).encode()


def manifest(text: bytes) -> Change:
    """Any bytes for a manifest, with the right digest."""
    return lambda folder: (folder / MANIFEST_NAME).write_bytes(signed(text))


def says(edit: Callable[[dict[str, Any]], object]) -> Change:
    """A manifest with something changed in it, with the right digest."""

    def change(folder: Path) -> None:
        body = json.loads((folder / MANIFEST_NAME).read_bytes())
        del body["digest"]
        edit(body)
        (folder / MANIFEST_NAME).write_bytes(signed(json.dumps(body).encode()))

    return change


def state(node: object) -> Change:
    """A document with one value, given as its node."""
    return put("state.json", json.dumps({"state_dict": node, "value": 1.0}).encode())


def tensors(header: object, data: bytes = b"", length: int | None = None) -> Change:
    """A file of tensors for the model."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return put("model.safetensors", (size % 2**64).to_bytes(8, "little") + text + data)

"""The manifest: what a checkpoint consists of. It is written last, so that a folder which has one is whole.

It needs no torch, so that checkpoints can be listed and verified without it.
"""

from __future__ import annotations

import datetime
import functools
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import xxhash

from eventrunner.errors import CheckpointError, CorruptCheckpointError, OptionError
from eventrunner.files import disk
from eventrunner.files.reader import parse_json, read_bytes

__all__ = [
    "FORMAT",
    "MANIFEST_NAME",
    "PTH_NAME",
    "STATE_LIMIT",
    "STATE_NAME",
    "Chunk",
    "FileEntry",
    "Manifest",
    "TensorEntry",
    "is_plain_name",
    "plain_json",
    "read_manifest",
    "write_manifest",
]

FORMAT = 1
MANIFEST_NAME = "MANIFEST.json"
PTH_NAME = "checkpoint.pth"
"""The one file of a checkpoint that was saved with ``format="pth"``."""

STATE_NAME = "state.json"
STATE_LIMIT = 256 * 1024 * 1024
"""Bytes of ``state.json`` that are written and read at most; a larger one is an accident or an attack."""

_LIMIT = 64 * 1024 * 1024
_LARGEST_FILE = 2**63 - 1
_TAIL = len(',"digest":""}') + 32

_KNOWN = 4096  # of shapes and files there are few in a checkpoint
_quoted = json.encoder.encode_basestring_ascii

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its size in bytes and the xxh3_128 digest of its bytes, as 32 hex digits."""

    size: int
    digest: str


class Chunk(NamedTuple):
    """Where one part of a tensor lies: in *file*, a block of *shape* that begins at *offsets* of the whole."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


class TensorEntry(NamedTuple):
    """One tensor under its name in the files: dtype, shape of the whole, and the chunks that make it up.

    One process writes one chunk at offset zero; several would write one each. dtype and shape are those in the file
    (a dtype that safetensors doesn't have is there as ``uint8``).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint consists of.

    Attributes:
        step: Iterations that the saved state has completed.
        epoch: Epochs that it has completed.
        created: When the state was committed: ISO 8601, in UTC. A link has the time of what it is a link to.
        versions: Version by package: what wrote the checkpoint.
        files: Every file of the folder but the manifest, by name.
        tensors: Every tensor in the safetensors files; none for a ``checkpoint.pth``.
        meta: Whatever the caller adds; plain JSON.
        format: Number of the format; other numbers than :data:`FORMAT` are not read.
    """

    step: int
    epoch: int
    created: str
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    tensors: tuple[TensorEntry, ...]
    meta: Mapping[str, Any]
    format: int = FORMAT


def is_plain_name(name: str) -> bool:
    """Return whether *name* can only be an entry of a folder: no separator, no leading dot, nothing unprintable."""
    return bool(name) and name.isprintable() and not name.startswith(".") and not set(name) & set("/\\")


def plain_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return *meta* as it comes back from JSON: a copy, tuples as lists.

    Raises:
        OptionError: it holds something that JSON can't.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"meta={reprlib.repr(meta)} can't be put in a manifest, which is JSON: {error}.") from error
    return plain


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into *folder* and sync the file.

    Its last member is the digest of the bytes that it would have without that member.

    Raises:
        CheckpointError: it is larger than what would be read again.
    """
    text = _to_json(manifest).encode()
    data = text[:-1] + _tail_of(text)
    if len(data) > _LIMIT:
        raise CheckpointError(f"the manifest would have {len(data)} bytes, more than the {_LIMIT} that are read.")
    disk.write_bytes(folder / MANIFEST_NAME, data)
    disk.fsync_file(folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of *folder*, every field checked; the files that it lists are not looked at.

    Raises:
        CorruptCheckpointError: missing, or not as it was written.
        CheckpointError: of a format that this version doesn't know.
    """
    path = folder / MANIFEST_NAME
    data = read_bytes(path, _LIMIT)
    try:
        body = parse_json(_without_digest(data), path)
        number = _count(body, "format")
        manifest = _from_json(body) if number == FORMAT else None
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not a manifest: {error}.") from error
    if manifest is None:
        raise CheckpointError(
            f"{path} has format {reprlib.repr(number)}, and this version of eventrunner reads format {FORMAT}."
        )
    return manifest


def _tail_of(text: bytes) -> bytes:
    return b',"digest":"%b"}' % xxhash.xxh3_128_hexdigest(text).encode()


def _without_digest(data: bytes) -> bytes:
    # Bytes are compared, not what they mean: JSON has several ways to write a number or a letter.
    text = data[:-_TAIL] + b"}"
    if data[-_TAIL:] != _tail_of(text):
        raise ValueError("it doesn't end in the digest of all that it holds before")
    return text


def _to_json(manifest: Manifest) -> str:
    values = {
        "format": manifest.format,
        "step": manifest.step,
        "epoch": manifest.epoch,
        "created": manifest.created,
        "versions": dict(manifest.versions),
        "meta": dict(manifest.meta),
        "files": {name: {"size": file.size, "digest": file.digest} for name, file in manifest.files.items()},
    }
    texts = {
        key: json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False) for key, value in values.items()
    }
    texts["tensors"] = f"[{','.join(map(_tensor_to_json, manifest.tensors))}]"  # there may be many: no object for each
    return "{" + ",".join(f'"{key}":{text}' for key, text in sorted(texts.items())) + "}"


def _tensor_to_json(tensor: TensorEntry) -> str:
    placed = _chunks_to_json(tensor.chunks, tensor.shape)
    return f'{{"dtype":{_quoted(tensor.dtype)},"name":{_quoted(tensor.name)},{placed}}}'


@functools.lru_cache(_KNOWN)
def _chunks_to_json(chunks: tuple[Chunk, ...], shape: tuple[int, ...]) -> str:
    pieces = [{"file": one.file, "offsets": one.offsets, "shape": one.shape} for one in chunks]
    return json.dumps({"pieces": pieces, "shape": shape}, separators=(",", ":"))[1:-1]


def _from_json(body: Mapping[str, Any]) -> Manifest:
    listed = {_file_name(name): _file(entry) for name, entry in _field(body, "files", dict).items()}
    return Manifest(
        step=_count(body, "step"),
        epoch=_count(body, "epoch"),
        created=_moment(body),
        versions={name: _of(value, str, name) for name, value in _field(body, "versions", dict).items()},
        files=listed,
        tensors=tuple(_tensor(entry, listed) for entry in _field(body, "tensors", list)),
        meta=_field(body, "meta", dict),
    )


def _of(value: object, kind: type[T], what: str) -> T:
    # Not isinstance: JSON's true is an int to it.
    if type(value) is not kind:
        raise ValueError(f"{reprlib.repr(what)} is {reprlib.repr(value)}, not of type {kind.__name__}")
    return value


def _field(body: object, key: str, kind: type[T]) -> T:
    if not isinstance(body, dict):
        raise ValueError(f"{reprlib.repr(body)} is where an object with {key!r} belongs")
    if key not in body:
        raise ValueError(f"{key!r} is missing")
    return _of(body[key], kind, key)


def _natural(value: object, what: str) -> int:
    number = _of(value, int, what)
    if number < 0:
        raise ValueError(f"{what!r} is {reprlib.repr(number)}, less than 0")
    return number


def _count(body: object, key: str) -> int:
    return _natural(_field(body, key, int), key)


def _sizes(body: object, key: str) -> tuple[int, ...]:
    return tuple(_natural(value, key) for value in _field(body, key, list))


def _moment(body: Mapping[str, Any]) -> str:
    created = _field(body, "created", str)
    try:
        moment = datetime.datetime.fromisoformat(created)
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() != datetime.timedelta(0) or moment.isoformat() != created:
        raise ValueError(f"'created' is {reprlib.repr(created)}, not a time in UTC")
    return created


def _file_name(name: str) -> str:
    if not is_plain_name(name) or name == MANIFEST_NAME:
        raise ValueError(f"it lists {reprlib.repr(name)}, which is not a plain file name")
    return name


def _file(entry: object) -> FileEntry:
    size = _count(entry, "size")
    if size > _LARGEST_FILE:
        raise ValueError(f"'size' is {reprlib.repr(size)}, and no file has more than {_LARGEST_FILE} bytes")
    return FileEntry(size, _field(entry, "digest", str))


def _tensor(entry: object, listed: Iterable[str]) -> TensorEntry:
    shape = _sizes(entry, "shape")
    chunks = tuple(_chunk(chunk, shape, listed) for chunk in _field(entry, "pieces", list))
    return TensorEntry(_field(entry, "name", str), _field(entry, "dtype", str), shape, chunks)


def _chunk(entry: object, whole: tuple[int, ...], listed: Iterable[str]) -> Chunk:
    chunk = Chunk(_field(entry, "file", str), _sizes(entry, "offsets"), _sizes(entry, "shape"))
    if chunk.file not in listed:
        raise ValueError(f"a tensor lies in {reprlib.repr(chunk.file)}, which it doesn't list")
    part, full = reprlib.repr([*chunk.shape]), reprlib.repr([*whole])
    if not len(chunk.offsets) == len(chunk.shape) == len(whole):
        raise ValueError(f"a chunk of shape {part} is no part of a tensor of shape {full}")
    if any(begin + size > end for begin, size, end in zip(chunk.offsets, chunk.shape, whole, strict=True)):
        raise ValueError(f"a chunk of shape {part} reaches out of a tensor of shape {full}")
    return chunk

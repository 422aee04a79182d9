"""Layouts: where tensors lie in a safetensors file, before there is a byte of them.

A safetensors file is eight bytes with the length of its header, the header (JSON, padded with spaces), and the tensors'
bytes one after another (https://huggingface.co/docs/safetensors, "Format"). Here every file's tensors begin at a page,
and in memory the file itself does, so that it can go to the disk in large aligned writes, past the kernel's cache where
that is possible; other readers don't notice.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from eventrunner.checkpoint.manifest import Chunk, TensorEntry

__all__ = ["DTYPES", "PAGE", "Layout", "Shaped", "Spec", "entries_of", "lay_out", "paged"]

PAGE = 4096
"""Bytes to which files in memory, and tensors in files, are aligned: what writing past the cache asks for."""

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}
"""What safetensors stores as it is, by its own names; any other dtype is stored as its bytes."""


_KNOWN = 4096  # of dtypes and shapes there are few in a file
_quoted = json.encoder.encode_basestring_ascii


class Shaped(Protocol):
    """What a layout asks of a tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """One of :data:`DTYPES`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""

    @property
    def itemsize(self) -> int:
        """The bytes to a multiple of which it is aligned."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor in a file, without its bytes; see :class:`Shaped`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Layout:
    """One file.

    Attributes:
        header: Its first bytes, in whole pages: the length, the JSON and the padding.
        places: By tensor, where in the file its bytes begin.
        nbytes: All of the file.
    """

    header: bytes
    places: Mapping[str, int]
    nbytes: int


def lay_out(tensors: Mapping[str, Shaped]) -> Layout:
    """Place the tensors of a file behind its header, those of large elements first: aligned, and without holes."""
    offset, places = 0, {}
    table = ['{"__metadata__":{"format":"pt"}']  # which other readers ask for
    for name in sorted(tensors, key=lambda name: -tensors[name].itemsize):
        tensor = tensors[name]
        places[name], end = offset, offset + tensor.nbytes
        kind = _described(tensor.dtype, tuple(tensor.shape))
        table.append(f'{_quoted(name)}:{{{kind},"data_offsets":[{offset},{end}]}}')
        offset = end
    text = (",".join(table) + "}").encode()
    length = paged(8 + len(text))
    header = (length - 8).to_bytes(8, "little") + text.ljust(length - 8)
    return Layout(header, {name: length + place for name, place in places.items()}, length + offset)


@functools.lru_cache(_KNOWN)
def _described(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f'"dtype":"{DTYPES[dtype]}","shape":[{",".join(map(str, shape))}]'


def paged(size: int) -> int:
    """*size* rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def entries_of(files: Mapping[str, Mapping[str, Shaped]]) -> tuple[TensorEntry, ...]:
    """Return the manifest's table of the tensors, given by file and name."""
    return tuple(_entry(file, name, tensor) for file, content in files.items() for name, tensor in content.items())


def _entry(file: str, name: str, tensor: Shaped) -> TensorEntry:
    dtype, shape, pieces = _whole(file, tensor.dtype, tuple(tensor.shape))
    return TensorEntry(name, dtype, shape, pieces)


@functools.lru_cache(_KNOWN)
def _whole(file: str, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], tuple[Chunk, ...]]:
    return str(dtype).removeprefix("torch."), shape, (Chunk(file, (0,) * len(shape), shape),)

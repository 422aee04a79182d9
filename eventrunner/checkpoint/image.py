"""Images: the bytes of a save's files, whole, in memory that is laid out as the files are."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eventrunner.checkpoint.codec import Encoded
from eventrunner.checkpoint.layout import PAGE, Layout, entries_of, lay_out, paged
from eventrunner.checkpoint.manifest import TensorEntry

__all__ = ["PAGE", "Image", "allocate", "entries_of", "image_of", "memory_of", "write_header"]

_LARGE = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Image:
    """What a save writes.

    Attributes:
        document: What ``state.json`` holds.
        files: The bytes of each safetensors file, by name. They must not change while the image is in use.
        tensors: Every tensor in the files, for the manifest.
    """

    document: Mapping[str, Any]
    files: Mapping[str, memoryview]
    tensors: tuple[TensorEntry, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the files, headers and their padding included."""
        return sum(data.nbytes for data in self.files.values())


def allocate(nbytes: int, pinned: bool = False) -> Tensor:
    """Host memory of so many bytes that begins at a page; ``pinned`` for copies from a CUDA device.

    The operating system gives a page when it is first written to, which costs ten times the writing itself: write to
    all of it before it matters. Huge pages are asked for, where that is possible.
    """
    if pinned:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    memory = mmap.mmap(-1, max(nbytes, PAGE))
    if nbytes >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=max(nbytes, PAGE))[:nbytes]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, without a copy; the view keeps them alive."""
    exporter: Any = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())  # numpy may not be there
    exporter.owner = tensor
    return memoryview(exporter).cast("B")


def write_header(file: Tensor, layout: Layout) -> None:
    """Write what stands before the tensors into the memory of a file."""
    file[: len(layout.header)] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)


def image_of(encoded: Encoded) -> Image:
    """Copy what was encoded into memory of its own."""
    layouts = {file: lay_out(content) for file, content in encoded.tensors.items()}
    memory = allocate(sum(paged(layout.nbytes) for layout in layouts.values()))
    files, start = {}, 0
    for file, layout in layouts.items():
        data = memory[start : start + layout.nbytes]
        write_header(data, layout)
        for name, place in layout.places.items():
            tensor = encoded.tensors[file][name]
            data[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        files[file], start = memory_of(data), start + paged(layout.nbytes)
    return Image(encoded.document, files, entries_of(encoded.tensors))

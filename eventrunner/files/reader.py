"""Bounded reads: plain files alone, no more bytes than allowed, hashed on the way, and JSON that means one thing."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import reprlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from eventrunner.errors import CorruptCheckpointError

__all__ = ["Reader", "check_digest", "parse_json", "read_bytes", "read_json", "reading"]

_CHUNK = 1024 * 1024  # per read: still in the processor's cache when it is hashed
_MOST_BUFFERS = 1000  # in one call; Linux takes 1024
_NO_FILE = (errno.ENXIO, errno.ENODEV)  # sockets, and devices that aren't there


class Reader:
    """A plain file, read once from front to back, and hashed on the way if that is asked for.

    Attributes:
        size: Bytes of the file.
    """

    def __init__(self, descriptor: int, path: Path, hashed: bool) -> None:
        self._descriptor, self._path = descriptor, path
        self._hasher = xxhash.xxh3_128() if hashed else None
        self.size = os.fstat(descriptor).st_size

    @property
    def name(self) -> str:
        """The file's path, or where that is no UTF-8 another that leads to it for as long as it is open here."""
        path = str(self._path)
        try:
            path.encode()
        except UnicodeEncodeError:
            return f"/dev/fd/{self._descriptor}"
        return path

    def fill(self, buffers: Iterable[memoryview]) -> None:
        """Read the next bytes into *buffers*, one after another, until all are full.

        Raises:
            CorruptCheckpointError: the file ends before.
        """
        for batch in _batches(buffers):
            missing = list(batch)
            while missing:
                count = os.readv(self._descriptor, missing)
                if not count:
                    raise CorruptCheckpointError(f"{self._path} ended while it was read.")
                missing = _after(missing, count)
            if self._hasher is not None:
                for filled in batch:
                    self._hasher.update(filled)

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes."""
        data = bytearray(count)
        self.fill([memoryview(data)])
        return bytes(data)

    def check(self, digest: str | None) -> None:
        """Compare what was read, which must be all, with *digest*.

        Raises:
            CorruptCheckpointError: they differ.
        """
        if self._hasher is not None and self._hasher.hexdigest() != digest:
            raise CorruptCheckpointError(f"{self._path} has other bytes than were committed, by their xxh3 digest.")


def _batches(buffers: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Yield the buffers in chunks, as many together as one call takes and the processor's cache holds."""
    batch: list[memoryview] = []
    room = _CHUNK
    for buffer in buffers:
        while buffer:
            batch.append(buffer[:room])
            buffer, room = buffer[room:], room - len(batch[-1])
            if not room or len(batch) == _MOST_BUFFERS:
                yield batch
                batch, room = [], _CHUNK
    if batch:
        yield batch


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of *buffers* behind their first *count* bytes."""
    while buffers and count >= len(buffers[0]):
        count -= len(buffers[0])
        buffers = buffers[1:]
    return [buffers[0][count:], *buffers[1:]] if count else buffers


@contextlib.contextmanager
def reading(path: Path, digest: str | None = None) -> Iterator[Reader]:
    """Yield a reader of the file at *path*; if the body succeeds, what it has read is compared with *digest*, if given.

    Raises:
        CorruptCheckpointError: there is no plain file at *path*, or its digest is another.
    """
    with _opened(path) as descriptor:
        reader = Reader(descriptor, path, hashed=digest is not None)
        yield reader
        reader.check(digest)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Without O_NONBLOCK, a named pipe put in a file's place would be waited on for ever.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"{path} is missing.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptCheckpointError(f"{path} is a symbolic link, where a checkpoint has plain files.") from None
        if error.errno in _NO_FILE:
            raise CorruptCheckpointError(f"{path} is not a plain file.") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptCheckpointError(f"{path} is not a plain file.")
        yield descriptor
    finally:
        os.close(descriptor)


def check_digest(path: Path, digest: str) -> None:
    """Compare the file's bytes with their xxh3_128 digest. It finds accidents, not attackers: it is no signature.

    Raises:
        CorruptCheckpointError: they differ, or there is no plain file at *path*.
    """
    buffer = memoryview(bytearray(_CHUNK))
    with reading(path, digest) as reader:
        for begin in range(0, reader.size, _CHUNK):
            reader.fill([buffer[: reader.size - begin]])


def read_json(path: Path, limit: int, digest: str | None = None) -> Any:
    """Return what a JSON file of at most *limit* bytes holds; ``NaN`` and ``Infinity`` are not JSON.

    Raises:
        CorruptCheckpointError: missing, not a plain file, too large, not of that *digest*, or not JSON.
    """
    return parse_json(read_bytes(path, limit, digest), path)


def read_bytes(path: Path, limit: int, digest: str | None = None) -> bytes:
    """Return all of a file of at most *limit* bytes.

    Raises:
        CorruptCheckpointError: missing, not a plain file, too large, or not of that *digest*.
    """
    with reading(path, digest) as reader:
        if reader.size > limit:
            raise CorruptCheckpointError(f"{path} has {reader.size} bytes, more than the {limit} that are read.")
        return reader.take(reader.size)


def parse_json(data: bytes, path: Path) -> Any:
    """Return what JSON in UTF-8 holds: no ``NaN``, no number that a float or Python's limit can't hold, no key twice.

    Containers take up to fifty times the bytes of their text.

    Raises:
        CorruptCheckpointError: it is something else; *path* is what it is called.
    """
    try:
        return json.loads(
            data.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats
        )
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}.") from error


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is no JSON number")


def _finite(token: str) -> float:
    number = float(token)
    if math.isinf(number):
        raise ValueError(f"{reprlib.repr(token)} is more than a float holds")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found

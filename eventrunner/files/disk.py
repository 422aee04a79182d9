"""Every change that a store makes to a disk, and every bounded read, in one place.

The store calls these as ``files.rename(…)``, never ``os.rename(…)``, so that one module stands between it and the
disk. All of them are POSIX; none follows a symbolic link out of a checkpoint. What moves many bytes lets other
threads run meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import reprlib
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from eventrunner.errors import CorruptCheckpointError

__all__ = [
    "Reader",
    "Sink",
    "check_digest",
    "free_space",
    "fsync_file",
    "fsync_folder",
    "fsync_parents",
    "link",
    "make_folder",
    "make_folders",
    "parse_json",
    "read_bytes",
    "read_json",
    "reading",
    "remove_tree",
    "rename",
    "write_bytes",
    "write_image",
    "write_stream",
]

_PAGE = 4096
_PIECE = 32 * 1024 * 1024  # per write past the cache: a quarter of it costs a fifth more time
_CHUNK = 1024 * 1024  # per read: still in the processor's cache when it is hashed
_SMALL = 1024 * 1024
_MOST_BUFFERS = 1000  # in one call; Linux takes 1024
_NO_SYNC_HERE = (errno.EINVAL, errno.ENOTSUP)
_NO_LINK_HERE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FILE = (errno.ENXIO, errno.ENODEV)  # sockets, and devices that aren't there
_NOT_DIRECTLY = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_O_DIRECT = getattr(os, "O_DIRECT", 0)


def free_space(folder: Path) -> int | None:
    """Return the bytes that may still be written to *folder*, which needn't be there yet; None where nothing says so.

    A user's quota is not looked at.
    """
    there = next(one for one in (folder, *folder.parents) if one.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write *data* to a new file; not synced. An existing file is an error, never truncated."""
    with _created(path) as descriptor:
        _write(descriptor, memoryview(data))


def write_image(path: Path, data: memoryview) -> tuple[int, str]:
    """Write *data*, which must not change meanwhile, to a new file; once this returns, it is on the disk.

    One pass over the memory, which is hashed on the way. Where the file system takes it and *data* begins at a page,
    whole pages go past the kernel's cache: training loses a seventh of the processor time, and its files in the cache
    stay there. (Writing over the blocks of a retired file would be a little faster still, and no cheaper; but what
    still reads that file would see it change. Reserving the space first gains nothing.)

    Returns:
        Size in bytes and xxh3_128 digest.

    Raises:
        OSError: the disk failed or is full, or the file exists. A failed sync is final, as the kernel then drops what
            it couldn't write.
    """
    hasher = xxhash.xxh3_128()
    with _created(path) as descriptor:
        if len(data) >= _SMALL:
            _past_cache(descriptor, True)
        for begin, end in _pieces(len(data)):
            if end % _PAGE:
                _past_cache(descriptor, False)
            hasher.update(data[begin:end])
            _write(descriptor, data[begin:end])
        os.fsync(descriptor)
    return len(data), hasher.hexdigest()


def write_stream(path: Path, produce: Callable[[Sink], object]) -> tuple[int, str]:
    """Write to a new file whatever *produce* writes to the sink it is given; once this returns, it is on the disk.

    Returns:
        Size in bytes and xxh3_128 digest.

    Raises:
        OSError: as :func:`write_image`.
    """
    with _created(path) as descriptor:
        sink = Sink(descriptor)
        produce(sink)
        if sink.error is not None:
            raise sink.error
        os.fsync(descriptor)
    return sink.size, sink.hasher.hexdigest()


class Sink:
    """A file to write to from front to back, that is hashed on the way.

    A failed write is kept in ``error`` and not raised, and what comes after is dropped: torch.save reports an error
    of the file that it writes to in words that hide it, and may take the process down.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.hasher = xxhash.xxh3_128()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of *data*."""
        if self.error is None:
            try:
                _write(self._descriptor, memoryview(data))
            except OSError as error:
                self.error = error
        self.hasher.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a file begin and end: all but the last in whole pages."""
    whole = size - size % _PAGE
    for begin in range(0, whole, _PIECE):
        yield begin, min(begin + _PIECE, whole)
    if whole < size:
        yield whole, size


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            # Memory that isn't aligned, or where a short write has left off, can only go through the cache.
            if error.errno not in _NOT_DIRECTLY or not _past_cache(descriptor, False):
                raise


def _past_cache(descriptor: int, wanted: bool) -> bool:
    """Have writes go past the kernel's cache or through it; whether that changed anything."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    chosen = flags | _O_DIRECT if wanted else flags & ~_O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, chosen)
    except OSError as error:
        if error.errno not in _NOT_DIRECTLY:
            raise
        return False
    return chosen != flags


def fsync_file(path: Path) -> None:
    """Return once the file's bytes are on the disk; a failure is final, as the kernel then drops the dirty pages."""
    _fsync(path, os.O_RDONLY)


def fsync_folder(path: Path) -> None:
    """Return once the folder's entries are on the disk. File systems that can't sync a folder are let pass."""
    try:
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_SYNC_HERE:
            raise


def fsync_parents(path: Path) -> None:
    """Return once a folder's name is on the disk, and the names of all above it up to the root of their file system.

    Costs little where they are. Folders that may not be looked into, or written to by anybody, are passed over.
    """
    device = path.stat().st_dev
    for folder in path.resolve().parents:
        try:
            if folder.stat().st_dev != device:
                break
            fsync_folder(folder)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a new folder; not synced."""
    os.mkdir(path)


def make_folders(path: Path) -> None:
    """Make a folder and its missing parents, each synced into the one above it."""
    for folder in reversed([one for one in (path, *path.parents) if not one.exists()]):
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Rename within one file system: at every instant *target* is the old thing or the new; not synced."""
    os.rename(source, target)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or make a synced copy of it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK_HERE:
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
        fsync_file(target)


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, or a file, or a symbolic link but not what it points at."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


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
            data.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_twins
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


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found

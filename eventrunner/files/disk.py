"""Every change to a disk, in one place.

It is called as ``disk.rename(…)``, never ``os.rename(…)``, so that one module stands between a store and the disk. All
of it is POSIX; nothing follows a symbolic link out of a checkpoint. What moves many bytes lets other threads run
meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

__all__ = [
    "Sink",
    "free_space",
    "fsync_file",
    "fsync_folder",
    "fsync_parents",
    "link",
    "make_folder",
    "make_folders",
    "remove_tree",
    "rename",
    "replace_text",
    "write_bytes",
    "write_image",
    "write_stream",
]

_PAGE = 4096
_CHUNK = 32 * 1024 * 1024  # per write past the cache: a quarter of it costs a fifth more time
_SMALL = 1024 * 1024
_NO_SYNC_HERE = (errno.EINVAL, errno.ENOTSUP)
_NO_LINK_HERE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
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
        for begin, end in _chunks(len(data)):
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


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a file begin and end: all but the last in whole pages."""
    whole = size - size % _PAGE
    for begin in range(0, whole, _CHUNK):
        yield begin, min(begin + _CHUNK, whole)
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


def replace_text(path: Path, text: str) -> None:
    """Put *text* in the place of the file at *path*: written to another, synced, and renamed over it.

    Raises:
        OSError: the disk refused; the file is as it was, and no other is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a process of that number may have died here
    try:
        write_bytes(temporary, text.encode())
        fsync_file(temporary)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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

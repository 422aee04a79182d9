"""Every change that a store makes to a disk, and every bounded read, in one place.

The store calls these as ``files.rename(…)``, never ``os.rename(…)``, so that one module stands between it and the
disk. All of them are POSIX; none follows a symbolic link out of a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, TensorSpec, serialize_file

from eventrunner.errors import CheckpointError, CorruptCheckpointError

__all__ = [
    "digest_file",
    "fsync_file",
    "fsync_folder",
    "link",
    "make_folder",
    "make_folders",
    "read_json",
    "remove_tree",
    "rename",
    "write_bytes",
    "write_tensors",
]

_CHUNK = 4 * 1024 * 1024
_NO_SYNC_HERE = (errno.EINVAL, errno.ENOTSUP)
_NO_LINK_HERE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)


def write_bytes(path: Path, data: bytes) -> None:
    """Write *data* to a new file; not synced. An existing file is an error, never truncated."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def write_tensors(path: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Write one safetensors file; not synced. The caller keeps the memory that the specs point at alive.

    Raises:
        OSError: as the system reported it; safetensors itself only quotes the number in a message.
        CheckpointError: a spec that is not consistent.
    """
    try:
        serialize_file(dict(specs), path)
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise CheckpointError(f"{path} can't be written: {error}.") from error
    # safetensors makes files that only their owner can read. The umask can't be asked for without setting it, which
    # other threads would feel, so the mode is taken from the folder, which was made under that umask.
    os.chmod(path, os.stat(path.parent).st_mode & 0o666)


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
    """A second name for a file, or a synced copy of it where the file system has no hard links."""
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
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptCheckpointError(f"{path} is not a plain file.")
        yield descriptor
    finally:
        os.close(descriptor)


def digest_file(path: Path) -> tuple[int, str]:
    """Size in bytes and xxh3_128 digest of a file. It finds accidents, not attackers: it is no signature.

    Raises:
        CorruptCheckpointError: there is no plain file at *path*.
    """
    hasher, buffer = xxhash.xxh3_128(), bytearray(_CHUNK)
    size, view = 0, memoryview(buffer)
    with _opened(path) as descriptor:
        while count := os.readv(descriptor, [buffer]):
            hasher.update(view[:count])
            size += count
    return size, hasher.hexdigest()


def read_json(path: Path, limit: int) -> Any:
    """What a JSON file of at most *limit* bytes holds; ``NaN`` and ``Infinity`` are not JSON.

    Raises:
        CorruptCheckpointError: missing, not a plain file, too large, or not JSON.
    """
    with _opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise CorruptCheckpointError(f"{path} has {size} bytes, more than the {limit} that are read.")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit)
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}.") from error


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is no JSON number")

"""One writer per folder of checkpoints.

The lock is the kernel's: it ends with the process that holds it, however that ends, so none is ever stale. It is a
record lock of POSIX, which a forked child doesn't inherit: the workers that a killed run leaves behind hold nothing.
Such locks don't tell the holders within one process apart, so a table does.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import threading
from pathlib import Path
from types import TracebackType

from eventrunner.errors import LockedError
from eventrunner.files import disk

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = ".lock"
"""The locked file; its text says who holds the lock, or held it last."""

_OWNER_LIMIT = 1000
_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_INSTEAD = "let it end first, or save to a folder of your own."

_held: dict[tuple[int, int], int] = {}
# By device and inode of the locked file, the process that holds it: a forked child has this table, but not the locks.
_guard = threading.Lock()


class FolderLock:
    """The right to write to one folder of checkpoints; taken by ``with``, or by :meth:`acquire` and :meth:`release`.

    It keeps other holders of a FolderLock out, on this machine and on others that share the folder by a file system
    with locks. On one without, it keeps out only those in this process. The file ``.lock`` stays in the folder;
    removing it while the lock is held, or opening it in the holding process, gives the lock up.

    Attributes:
        folder: Whose lock it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None
        self._key = (0, 0)

    def acquire(self) -> None:
        """Take the lock, without waiting; the folder is made if it isn't there.

        Raises:
            LockedError: another process holds it, or something else in this one; the message says who.
            OSError: the folder or the file in it can't be made.
        """
        disk.make_folders(self.folder)
        with _guard:
            if _held.get(_key_of(self.folder / LOCK_NAME)) == os.getpid():
                # Seen before it is opened: closing any descriptor of the file would give up this process's lock.
                raise LockedError(f"another run of this process writes checkpoints to {self.folder}; {_INSTEAD}")
            descriptor = os.open(
                self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
            )
            try:
                _lock(descriptor, self.folder)
                _sign(descriptor)
                found = os.fstat(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor, self._key = descriptor, (found.st_dev, found.st_ino)
            _held[self._key] = os.getpid()

    def release(self) -> None:
        """Give the lock up; does nothing if it isn't held."""
        with _guard:
            if self._descriptor is not None:
                _held.pop(self._key, None)
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _key_of(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_ELSEWHERE:
            owner = _owner(descriptor)
            raise LockedError(f"another process{owner} writes checkpoints to {folder}; {_INSTEAD}") from None
        if error.errno not in _NO_LOCKS_HERE:
            raise


def _sign(descriptor: int) -> None:
    # For people. A full disk mustn't keep a run from what needs no space; what has other names is somebody else's too.
    if os.fstat(descriptor).st_nlink > 1:
        return
    with contextlib.suppress(OSError):
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = f"pid {os.getpid()} on {socket.gethostname()}\nsince {since}\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _owner(descriptor: int) -> str:
    """Who signed last, in brackets; nothing where the holder hasn't come to it yet."""
    lines = os.pread(descriptor, _OWNER_LIMIT, 0).decode(errors="replace").splitlines()
    return f" ({lines[0]})" if lines and lines[0].isprintable() else ""

"""A disk that fails on demand: it stands behind Python's ``os``, for one folder, on top of the real file system.

It notes each operation below its folder, in which thread it was done and with which bytes, and makes one fail: with an
error, half done, done and yet with an error, or by the death of the process. All else is done as usual.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from operations import WRITES, Fault, Op

__all__ = ["Disk", "Killed"]


class Killed(BaseException):
    """The process is dead: nothing that it does reaches the disk any more."""


class Disk:
    """The disk below the folder *root*, from ``with`` to ``with``; everything above it is the real one.

    Attributes:
        root: The folder.
        ops: What was done, in order.
        fired: Whether the fault has happened.
        reached: Set when something hangs.
        awake: Set to let what hangs go on.
        dead: Whether everything that is asked for is refused.
    """

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self.root = os.path.realpath(root)
        self.fault = fault
        self.ops: list[Op] = []
        self.fired = self.dead = False
        self.reached, self.awake = threading.Event(), threading.Event()
        self._number = self._handles = self._matching = 0
        self._torn = False
        self._open: dict[int, tuple[int, str]] = {}  # by descriptor: handle and path
        self._lock = threading.RLock()
        self._undo = contextlib.ExitStack()

    def tell(self, line: str) -> None:
        """Note that this was told now."""
        with self._lock:
            if not self.dead:
                self.ops.append(Op(0, "told", "", line))

    def told(self) -> list[str]:
        """All that was told."""
        return [op.other for op in self.ops if op.kind == "told"]

    def __enter__(self) -> Disk:
        for name in ("write", "pwrite", "readv", "fsync", "fdatasync", "ftruncate", "close", "sendfile"):
            self._stand_behind(os, name, getattr(self, f"_{name}"))
        for name, kind in (("mkdir",) * 2, ("rmdir",) * 2, ("unlink",) * 2, ("remove", "unlink")):
            self._stand_behind(os, name, self._at_one(kind))
        for name, kind in (("rename",) * 2, ("replace", "rename"), ("link",) * 2):
            self._stand_behind(os, name, self._at_two(kind))
        self._stand_behind(os, "symlink", self._symlink)
        self._stand_behind(os, "open", self._os_open)
        self._stand_behind(builtins, "open", self._builtin_open)
        self._stand_behind(io, "open", self._builtin_open)
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _stand_behind(self, module: Any, name: str, ours: Callable[..., Any]) -> None:
        real = getattr(module, name)
        self._undo.callback(setattr, module, name, real)
        setattr(module, name, lambda *args, **options: ours(real, *args, **options))

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path relative to the root, or None if it isn't below it."""
        if isinstance(path, int):
            return None
        base = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        found = os.path.normpath(os.path.join(base, os.fsdecode(path)))
        folder, name = os.path.split(found)
        found = os.path.join(os.path.realpath(folder), name)
        return os.path.relpath(found, self.root) if f"{found}/".startswith(f"{self.root}/") else None

    def _do(self, op: Op, real: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Do *op* by calling *real*, or half of it, or let it fail."""
        with self._lock:
            if self.dead:
                raise Killed
            self._number += 1
            op.number = self._number
            kind = self._goes_wrong(op)
            if kind != "hang":
                self.ops.append(op)
                return self._done(op, real) if kind is None else self._fail(op, kind, real, half or real)
        self.reached.set()
        self.awake.wait()
        with self._lock:
            self.ops.append(op)
            return self._done(op, real)

    def _goes_wrong(self, op: Op) -> str | None:
        if self.fault is None:
            return None
        self._matching += self.fault.where in f"{op.kind} {op.path}"
        wrong = self.fault.befalls(op, self._matching)
        self.fired = self.fired or wrong
        return self.fault.kind if wrong else None

    def _done(self, op: Op, real: Callable[[], Any]) -> Any:
        if self._torn and op.kind in WRITES:
            op.error = "ENOSPC"
            raise _error("ENOSPC", op)
        try:
            value = real()
        except OSError as error:
            op.error = errno.errorcode.get(error.errno or 0, "?")
            raise
        op.done = True
        return value

    def _fail(self, op: Op, kind: str, real: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if kind == "die":
            self.dead = True
            self.ops.pop()
            if op.kind == "close":
                real()  # the kernel does, for the dead
            raise Killed
        if kind.startswith("kill"):
            if kind == "kill halfway":
                with contextlib.suppress(OSError):
                    half()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind.startswith("short"):
            done = self._done(op, half)
            self._torn = kind != "short"
            return done
        op.error = kind.removeprefix("done, yet ")
        if kind != op.error or op.kind == "close":
            self._done(op, real)
        raise _error(op.error, op)

    def _at_one(self, kind: str) -> Callable[..., Any]:
        def call(real: Callable[..., Any], path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> Any:
            def work() -> Any:
                return real(path, *args, dir_fd=dir_fd, **options)

            below = self._path(path, dir_fd)
            return work() if below is None else self._do(Op(0, kind, below), work)

        return call

    def _at_two(self, kind: str) -> Callable[..., Any]:
        def call(real: Callable[..., Any], source: Any, target: Any, **options: Any) -> Any:
            source_path = self._path(source, options.get("src_dir_fd"))
            target_path = self._path(target, options.get("dst_dir_fd"))
            if source_path is None or target_path is None:
                return real(source, target, **options)
            return self._do(Op(0, kind, source_path, target_path), lambda: real(source, target, **options))

        return call

    def _symlink(self, real: Callable[..., Any], target: Any, path: Any, *args: Any, **options: Any) -> Any:
        below = self._path(path, options.get("dir_fd"))
        if below is None:
            return real(target, path, *args, **options)
        return self._do(Op(0, "symlink", below, os.fsdecode(target)), lambda: real(target, path, *args, **options))

    def _os_open(
        self, real: Callable[..., Any], path: Any, flags: int, *args: Any, dir_fd: int | None = None, **options: Any
    ) -> int:
        below = self._path(path, dir_fd)
        if below is None:
            return int(real(path, flags, *args, dir_fd=dir_fd, **options))
        new = bool(flags & os.O_CREAT) and not os.path.lexists(os.path.join(self.root, below))
        op = Op(0, "create" if new else "truncate" if flags & os.O_TRUNC else "open", below)

        def work() -> int:
            descriptor = int(real(path, flags, *args, dir_fd=dir_fd, **options))
            self._handles += 1
            op.handle = self._handles
            self._open[descriptor] = (op.handle, below)
            if op.error:
                self._forget(descriptor)  # who asked for it never sees it
            return descriptor

        return int(self._do(op, work))

    def _forget(self, descriptor: int) -> None:
        del self._open[descriptor]
        os.close(descriptor)

    def _builtin_open(self, real: Callable[..., Any], file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not isinstance(mode, str) or "+" in mode or not set(mode) & set("wxa") or self._path(file) is None:
            return real(file, mode, *args, **options)
        flags = {"w": os.O_TRUNC, "x": os.O_EXCL, "a": os.O_APPEND}[(set(mode) & set("wxa")).pop()]
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
        buffered = io.BufferedWriter(_Raw(self, descriptor))
        options = {key: value for key, value in options.items() if key in ("encoding", "errors", "newline")}
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **options)

    def _close(self, real: Callable[..., Any], descriptor: int) -> None:
        held = self._open.pop(descriptor, None)
        if self.dead:
            with contextlib.suppress(OSError):  # rmtree closes a second time what it couldn't close
                real(descriptor)
            return None
        if held is None:
            return real(descriptor)
        return self._do(Op(0, "close", held[1], handle=held[0]), lambda: real(descriptor))

    def _on(self, kind: str, descriptor: Any, real: Callable[[], Any]) -> Any:
        held = self._open.get(descriptor) if isinstance(descriptor, int) else None
        return real() if held is None else self._do(Op(0, kind, held[1], handle=held[0]), real)

    def _readv(self, real: Callable[..., Any], descriptor: int, *args: Any) -> Any:
        return self._on("read", descriptor, lambda: real(descriptor, *args))

    def _fsync(self, real: Callable[..., Any], descriptor: int) -> Any:
        return self._on("fsync", descriptor, lambda: real(descriptor))

    _fdatasync = _fsync

    def _ftruncate(self, real: Callable[..., Any], descriptor: int, length: int) -> Any:
        held = self._open.get(descriptor)
        op = Op(0, "truncate", held[1] if held else "", handle=held[0] if held else 0, offset=length)
        return real(descriptor, length) if held is None else self._do(op, lambda: real(descriptor, length))

    def _written(self, descriptor: int, data: bytes, offset: int, real: Callable[[int], int]) -> int:
        """Write *data* by *real*, which takes how much of it to write."""
        handle, path = self._open[descriptor]
        op = Op(0, "write", path, handle=handle, offset=offset)

        def write(count: int) -> int:
            written = real(count)
            op.data = data[:written]
            return written

        return int(self._do(op, lambda: write(len(data)), lambda: write(max(1, len(data) // 2))))

    def _write(self, real: Callable[..., Any], descriptor: int, data: Any) -> int:
        if descriptor not in self._open:
            return int(real(descriptor, data))
        view = memoryview(data).cast("B")
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        return self._written(descriptor, bytes(view), offset, lambda count: real(descriptor, view[:count]))

    def _pwrite(self, real: Callable[..., Any], descriptor: int, data: bytes, offset: int) -> int:
        if descriptor not in self._open:
            return int(real(descriptor, data, offset))
        return self._written(descriptor, data, offset, lambda count: real(descriptor, data[:count], offset))

    def _sendfile(self, real: Callable[..., Any], target: int, source: int, offset: int, count: int) -> int:
        if target not in self._open:
            return int(real(target, source, offset, count))
        data = os.pread(source, min(count, 2**26), offset)
        return os.write(target, data) if data else 0


class _Raw(io.RawIOBase):
    """A file of Python's own that writes by ``os.write``, where the disk stands."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk, self._descriptor = disk, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        return len(data) if self._disk.dead else os.write(self._descriptor, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)


def _error(kind: str, op: Op) -> OSError:
    number = getattr(errno, kind)
    return OSError(number, os.strerror(number), op.path, None, op.other or None)

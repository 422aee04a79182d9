"""Operations on a disk, and what can go wrong with each of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

__all__ = ["CHANGING", "ERRORS", "WRITES", "Fault", "Op", "faults_for"]

WRITES = ("write", "sendfile")
NAMING = ("mkdir", "rmdir", "unlink", "rename", "link", "symlink")
CHANGING = (*WRITES, *NAMING, "create", "truncate", "fsync")
"""The kinds of operations that change what is on the disk, or for how long."""

_FULL = (*WRITES, "create", "mkdir", "rename", "link", "symlink", "fsync", "close")
ERRORS = {
    "EIO": (*CHANGING, "open", "read", "close"),
    "ENOSPC": _FULL,
    "EDQUOT": _FULL,
    "EINTR": (*WRITES, "create", "open", "fsync", "close"),
    "EROFS": (*WRITES, *NAMING, "create"),
    "EACCES": (*NAMING, "create"),
    "EMFILE": ("create", "open"),
    "EXDEV": ("link",),
    "short": WRITES,
    "short, then ENOSPC": WRITES,
    "done, yet EIO": (*NAMING, "create", "close"),
}
"""The faults, and the kinds of operations that they befall."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: One of :data:`ERRORS`; or ``kill``, the end of this process by SIGKILL; ``kill halfway``, the same in the
            middle of a write; ``die``, which is raised as :class:`Killed` and ends only what the disk is asked for; or
            ``hang``, until :attr:`Disk.awake` is set.
        at: In the how manieth operation, from 1, of those that *where* says.
        lasting: Whether all later operations of the kinds that the fault befalls fail as well.
        where: What an operation's kind and path contain, as in ``write run/epoch_1``; by default anything.
    """

    kind: str
    at: int
    lasting: bool = False
    where: str = ""

    def befalls(self, op: Op, count: int) -> bool:
        """Whether it goes wrong here, in the *count*-th operation that *where* says."""
        there = self.where in f"{op.kind} {op.path}" and (count >= self.at if self.lasting else count == self.at)
        return there and op.kind in ERRORS.get(self.kind, (*CHANGING, "open", "read", "close"))


@dataclass
class Op:
    """One operation, or what was told between two (``told``).

    Attributes:
        number: From 1; 0 if something was told.
        kind: What was done.
        path: Where, relative to the disk's folder.
        other: The second path of a rename or link; the target of a symbolic link; what was told.
        handle: Which of the files opened so far.
        data: The bytes that were written.
        offset: Where they were written to, or the size that a file was cut to.
        error: The error's name, if it failed; it may have been done nevertheless.
        done: Whether it was done.
        thread: Its thread's name.
    """

    number: int
    kind: str
    path: str
    other: str = ""
    handle: int = 0
    data: bytes = b""
    offset: int = 0
    error: str = ""
    done: bool = False
    thread: str = field(default_factory=lambda: threading.current_thread().name)

    def __str__(self) -> str:
        what = f"{self.number}: {self.kind} {self.path} {self.other} {len(self.data) or ''}".rstrip()
        return f"{what} → {self.error}" if self.error else what


def faults_for(op: Op) -> list[str]:
    """The kinds of :data:`ERRORS` that can befall an operation."""
    return [kind for kind, befallen in ERRORS.items() if op.kind in befallen]

"""The exceptions, one tree.

    EventRunnerError
    ├── UnknownSiteError          a name that no one declared as a site         (AttributeError)
    ├── UnknownScalarError        a scalar that a message hub has no history of (KeyError)
    ├── SignatureError            a receiver and a payload that don't fit       (TypeError)
    ├── HookError                 something that can't be registered as a hook  (TypeError)
    ├── ArgumentError             an argument that a call doesn't take          (TypeError)
    ├── OptionError               an argument with a value that can't be        (ValueError)
    ├── InvalidLossError          a loss that is infinite or NaN                (AssertionError)
    ├── MissingExtraError         an optional package that isn't installed      (ImportError)
    ├── RunExistsError            a work folder that holds another run          (FileExistsError)
    ├── LaneError                 a lane that can't do what it was asked for    (RuntimeError)
    │   ├── LaneFullError             it has as many jobs as it may have
    │   └── LaneTimeoutError          its jobs weren't finished in time           (TimeoutError)
    ├── RankError                 processes that can't run as one               (RuntimeError)
    │   └── RankFailedError           another of them has failed
    └── CheckpointError           a checkpoint that can't be written or read    (RuntimeError)
        ├── CheckpointNotFoundError                                             (FileNotFoundError)
        ├── CorruptCheckpointError    its bytes are not those that were committed
        ├── NoSpaceError              a disk without room for it                (OSError)
        ├── LockedError               a folder that another run writes to
        └── ResumeError               it doesn't fit the run that wants to go on from it

``Preempted``, a ``SystemExit``, is no error and no part of the tree: it ends a process whose run is saved.

Each is also the built-in exception that one would have expected in its place, so that code that catches
``ValueError`` or ``FileNotFoundError`` goes on working. Every message is one sentence: what was attempted, on
what, and what is allowed instead.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CorruptCheckpointError",
    "EventRunnerError",
    "HookError",
    "InvalidLossError",
    "LaneError",
    "LaneFullError",
    "LaneTimeoutError",
    "LockedError",
    "MissingExtraError",
    "NoSpaceError",
    "OptionError",
    "Preempted",
    "RankError",
    "RankFailedError",
    "ResumeError",
    "RunExistsError",
    "SignatureError",
    "UnknownScalarError",
    "UnknownSiteError",
    "did_you_mean",
    "listed",
]


class Preempted(SystemExit):
    """No error: the run was asked by a signal to end, and has. Its code is what the process exits with.

    Attributes:
        code: 75.
        signal: The signal's name.
    """

    def __init__(self, code: int, signal: str) -> None:
        super().__init__(code)
        self.signal = signal


class EventRunnerError(Exception):
    """Base of every exception that eventrunner raises on its own account."""


class UnknownSiteError(EventRunnerError, AttributeError):
    """A site was asked for that nobody declared."""


class UnknownScalarError(EventRunnerError, KeyError):
    """A scalar was asked for that the hub has no history of."""

    __str__ = Exception.__str__  # KeyError would show the sentence in quotes


class SignatureError(EventRunnerError, TypeError):
    """A receiver names a payload that its site doesn't offer, or an emission one that the site doesn't declare."""


class HookError(EventRunnerError, TypeError):
    """Something can't be registered as a hook."""


class ArgumentError(EventRunnerError, TypeError):
    """A call was given an argument that it doesn't take."""


class OptionError(EventRunnerError, ValueError):
    """An argument has a value that it can't have."""


class InvalidLossError(EventRunnerError, AssertionError):
    """A loss is infinite or NaN."""


class MissingExtraError(EventRunnerError, ImportError):
    """An optional package is needed and not installed; the message has the command that installs it."""


class RunExistsError(EventRunnerError, FileExistsError):
    """The work folder holds another run, and nothing was said of resuming it."""


class LaneError(EventRunnerError, RuntimeError):
    """A lane can't do what it was asked for."""


class LaneFullError(LaneError):
    """A lane has as many unfinished jobs as it may have."""


class LaneTimeoutError(LaneError, TimeoutError):
    """The jobs of a lane weren't finished in time."""


class RankError(EventRunnerError, RuntimeError):
    """The processes of a run can't be one: they didn't meet, or were given different things."""


class RankFailedError(RankError):
    """Another process of the run has failed; the message says which, where and of what, a note has its traceback."""


class CheckpointError(EventRunnerError, RuntimeError):
    """A checkpoint can't be written or read."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint where one was looked for."""


class CorruptCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not the ones that were committed."""


class NoSpaceError(CheckpointError, OSError):
    """A checkpoint has no room on its disk, or in the user's share of it; ``errno`` is ENOSPC.

    Attributes:
        needed: Bytes that the checkpoint has.
        free: Bytes that were free when this was raised, or 0 where the file system doesn't say.
    """

    def __init__(self, message: str, needed: int = 0, free: int = 0) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC
        self.needed = needed
        self.free = free


class LockedError(CheckpointError):
    """Another run writes to the folder of checkpoints."""


class ResumeError(CheckpointError):
    """A checkpoint is sound but doesn't fit the run that is to go on from it."""


def did_you_mean(name: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the nearest of *allowed*, or an empty string where none is near."""
    near = difflib.get_close_matches(name, sorted(allowed), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str], empty: str = "nothing") -> str:
    """Return the names, separated by commas, for the end of a sentence."""
    return ", ".join(names) or empty

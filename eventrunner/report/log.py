"""The lines of a run: structlog events, written to stdout and kept in ``log.txt``.

On a terminal a line is written for eyes; in a pipe it has the UTC time first and ``key=value`` pairs. ``log.txt`` has
the terminal's lines. Nothing is configured globally: two runs in one process have two logs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import structlog
from structlog.processors import LogfmtRenderer

from eventrunner.errors import OptionError, did_you_mean
from eventrunner.units import shown, shown_path

__all__ = ["RunLog", "drop_unwritten", "headed", "is_terminal"]

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Fields whose value says enough for a reader; a program still finds them by name in the piped form.
_BARE = frozenset({"reason", "path"})
_OWN = ("time", "level", "event")
_logfmt = LogfmtRenderer(key_order=list(_OWN), bool_as_flag=False)
_GONE = (errno.EPIPE, errno.EIO)  # nobody reads any more: the pipe's other end or the terminal is closed
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_PLAIN_SIGNS = str.maketrans({"★": "*", "●": "o", "·": "-", "…": "..."})


class _Logger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]  # a class that is made
    """structlog's logger, and what code that takes a ``logging.Logger`` asks of it."""

    name, level, handlers = "eventrunner", logging.DEBUG, ()

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        """Return whether the file has events of that level."""
        return level >= self.level

    def getEffectiveLevel(self) -> int:  # noqa: N802
        """Return the least level that the file has."""
        return self.level

    def log(self, level: int, event: Any, *args: Any, **fields: Any) -> None:
        """Log at a level, or at the nearest one below it that has a name."""
        if self.isEnabledFor(level):
            super().log(
                max(each for each in map(logging.getLevelName, LEVELS) if each <= level), event, *args, **fields
            )


class RunLog:
    """Takes events through :attr:`logger` and writes each to stdout and, once :meth:`open` was called, to a file.

    A line is written before the call returns: it comes before what the script prints next, and a process that is
    killed has it. Nothing is buffered and no lock is held, so threads and forked processes may log at any time.
    Where stdout fails, the file says so once, and nothing is raised.

    An event may have a field ``line``: how it reads on a terminal, where its other fields are for programs.

    Args:
        level: The least level that reaches stdout; the file has every level.
        rank: This process's number; of others than the first only errors reach stdout, with it.
    """

    def __init__(self, level: str = "INFO", rank: int = 0) -> None:
        if level not in LEVELS:
            near = did_you_mean(str(level).upper(), LEVELS)
            raise OptionError(f"log_level={level!r} is not one of {', '.join(LEVELS)}{near or '.'}")
        self.threshold = max(getattr(logging, level), logging.ERROR if rank else 0)
        self.aside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        """Entered around what is written to stdout: what draws on the terminal steps aside."""
        self.on_failure: Callable[[OSError], None] | None = None
        """Called with what the file fails of, once, instead of raising it."""
        self._file: FileIO | None = None
        self._file_failed = False
        self._failed_streams: set[str] = set()  # those of which the file has said so
        self.logger: Any = structlog.wrap_logger(
            _Sink(self),
            processors=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                _without_logging,
                structlog.processors.format_exc_info,
                _hand_over,
            ],
            wrapper_class=_Logger,
        )
        if rank:
            self.logger = self.logger.bind(rank=rank)

    def open(self, path: Path) -> None:
        """Append to *path* from now on."""
        self.close()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # closed by close()
        self._file_failed = False

    def close(self) -> None:
        """Close the file; events still reach stdout."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError) if self._file_failed else contextlib.nullcontext():
                file.close()

    def write(self, level: str, event: Mapping[str, Any]) -> None:
        """Write one event, to the file and to stdout.

        Raises:
            OSError: of the file, without :attr:`on_failure`; stdout has the event all the same.
        """
        line = _line(level, event)
        try:
            self._append(line)
        finally:
            if getattr(logging, level.upper()) >= self.threshold:
                self._print(level, event, line)

    def _print(self, level: str, event: Mapping[str, Any], line: str) -> None:
        stream = sys.stdout
        if stream is None:  # under pythonw there is nobody to read
            return
        if getattr(stream, "closed", False):
            self.report_failure("stdout", ValueError("it is closed"))
            return
        try:
            text = _encodable(line if is_terminal(stream) else _piped(level, event), stream)
            with self.aside():
                stream.write(text + "\n")
                stream.flush()
        except Exception as error:  # noqa: BLE001  # whatever a stream of the script's own fails of
            drop_unwritten(stream, error)
            self.report_failure("stdout", error)

    def _append(self, line: str) -> None:
        if self._file is None or self._file_failed:
            return
        # Bytes in a file's name that are no UTF-8 reach a line as characters that have no place in it.
        data = (line + "\n").encode("utf-8", "backslashreplace")
        try:
            while data:  # in one go, unless the disk has no room for all of it
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file_failed = True
            if self.on_failure is None:
                raise
            self.on_failure(error)

    def report_failure(self, stream: str, error: Exception) -> None:
        """Have the file say, once, that a stream of the process can't be written to."""
        if self._file is not None and stream not in self._failed_streams:
            self._failed_streams.add(stream)
            reason = f"{error!r}; the run goes on, and this file has all of its lines"
            self._append(_line("warning", {"event": stream, "reason": reason}))


class _Sink:
    """What structlog calls at the end of the chain."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def msg(self, level: str, event: dict[str, Any]) -> None:
        self._log.write(level, event)

    debug = info = warning = error = critical = exception = msg


def headed(head: str, *parts: str) -> str:
    """Return a line whose parts begin in one column, below those of other lines with short headings."""
    return f"{head:<11} {'   '.join(part for part in parts if part)}".rstrip()


def _without_logging(_: Any, method: str, event: Any) -> Any:
    """Spread what ``logging`` has in ``extra``, and drop what says where to look for the caller."""
    for name in ("stacklevel", "stack_info"):
        event.pop(name, None)
    extra = event.pop("extra", None)
    return {**(extra if isinstance(extra, Mapping) else {}), **event}


def _hand_over(_: Any, method: str, event: Any) -> tuple[tuple[str, dict[str, Any]], dict[str, Any]]:
    level = "error" if method == "exception" else method
    return (level, event), {}


def _line(level: str, event: Mapping[str, Any]) -> str:
    if "line" in event:
        text = str(event["line"])
    else:
        fields = [(key, shown(value)) for key, value in event.items() if key not in ("event", "exception")]
        text = headed(str(event["event"]), *(value if key in _BARE else f"{key} {value}" for key, value in fields))
    if "exception" in event:
        text += "\n" + event["exception"]
    return text if level in ("debug", "info") else f"{level}   {text}"


def _piped(level: str, event: Mapping[str, Any]) -> str:
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {_key(key): _plain(value) for key, value in event.items() if key not in (*_OWN, "line")}
    return str(_logfmt(None, "", {"time": moment, "level": level, "event": _plain(event["event"]), **fields}))


@functools.cache
def _key(key: str) -> str:
    return re.sub(r"\s", "_", key)


def _plain(value: Any) -> str:
    """Spell out what would move the cursor in a value; the renderer does so with line breaks."""
    text = f"{value:.6g}" if isinstance(value, float) else shown_path(value) if isinstance(value, Path) else str(value)
    return text if text.isprintable() else _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _encodable(text: str, stream: Any) -> str:
    """Put plain signs where the stream can't encode the text's, so that a line never fails for a star."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_SIGNS).encode(encoding, "replace").decode(encoding)
    return text


def is_terminal(stream: Any) -> bool:
    """Return whether somebody reads along."""
    return hasattr(stream, "isatty") and not getattr(stream, "closed", False) and bool(stream.isatty())


def drop_unwritten(stream: Any, error: Exception) -> None:
    """Have a stream forget what it couldn't write: Python would try once more at exit, and end with status 120.

    Where nobody reads any more, the null device takes its place: what the script itself prints would fail next.
    """
    if not isinstance(error, OSError) or error.errno == errno.EBADF:  # by its number it may be another file now
        return
    with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "wb") as nowhere:
        descriptor = stream.fileno()  # if it has any
        back = None if error.errno in _GONE else os.dup(descriptor)
        os.dup2(nowhere.fileno(), descriptor)
        try:
            stream.flush()
        finally:
            if back is not None:
                os.dup2(back, descriptor)
                os.close(back)

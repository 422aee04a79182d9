"""What a run leaves in writing: lines for people, and rows for programs.

Lines are structlog events, written to stdout and kept in ``log.txt``. On a terminal a line is written for eyes; in a
pipe it has the UTC time first and ``key=value`` pairs. ``log.txt`` has the terminal's lines. Rows are JSON, in
``log.jsonl``. Nothing is configured globally: two runs in one process have two logs.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import logging
import math
import operator
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import structlog
from structlog.processors import LogfmtRenderer

from eventrunner.errors import OptionError, did_you_mean
from eventrunner.files.replace import replace_text
from eventrunner.report.soon import Soon

__all__ = ["RowLog", "RunLog", "drop_unwritten", "headed", "shown", "shown_path"]

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
        """Whether the file has events of that level."""
        return level >= self.level

    def getEffectiveLevel(self) -> int:  # noqa: N802
        """The least level that the file has."""
        return self.level

    def log(self, level: int, event: Any, *args: Any, **fields: Any) -> None:
        """Log at a level, or at the nearest one below it that has a name."""
        if self.isEnabledFor(level):
            super().log(
                max(each for each in map(logging.getLevelName, LEVELS) if each <= level), event, *args, **fields
            )


class RunLog:
    """Takes events through :attr:`logger` and writes each to stdout and, once :meth:`open` was called, to a file.

    Where stdout fails, the file says so once, and nobody else is told.

    An event may have a field ``line``: how it reads on a terminal, where its other fields are for programs.

    Args:
        level: The least level that reaches stdout; the file has every level.
        silent: Nothing reaches stdout at all (ranks other than the first).
    """

    def __init__(self, level: str = "INFO", silent: bool = False) -> None:
        if level not in LEVELS:
            near = did_you_mean(str(level).upper(), LEVELS)
            raise OptionError(f"log_level={level!r} is not one of {', '.join(LEVELS)}{near or '.'}")
        self.threshold = logging.CRITICAL + 1 if silent else getattr(logging, level)
        self.aside: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
        """Entered around what is written to stdout: what draws on the terminal steps aside."""
        self.on_failure: Callable[[OSError], None] | None = None
        """Called with what the file fails of, once, instead of raising it."""
        self._file: IO[str] | None = None
        self._file_failed = False
        self._failed_streams: set[str] = set()  # those of which the file has said so
        self._begin()
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

    def _begin(self) -> None:
        """Have nothing that waits, and a lock that nobody holds."""
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._later: deque[tuple[float, IO[str] | None, Callable[[], None]]] = deque()  # asked for when, stdout then
        self._soon = Soon()
        self._asked: tuple[float, IO[str] | None] | None = None  # the same of what is being written
        self._lines: list[str] = []  # of the file, and below of stdout, that are written when there are no more
        self._prints: list[tuple[IO[str], str]] = []
        self._failure: Exception | None = None  # of who caught up unasked

    def _guard(self) -> threading.RLock:
        """The lock; in a process that was forked a new one, with nothing that waits: that is its parent's."""
        if os.getpid() != self._pid:
            self._begin()
        return self._lock

    def open(self, path: Path) -> None:
        """Append to *path* from now on."""
        self.close()
        # Bytes in a file's name that are no UTF-8 reach a line as characters that have no place in it.
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  # closed by close()
        self._file_failed = False

    def close(self) -> None:
        """Write what waits and close the file; events still reach stdout."""
        self._guard()
        self._soon.cancel()
        try:
            self._catch_up()
        finally:
            file, self._file = self._file, None
            if file is not None:
                with contextlib.suppress(OSError) if self._file_failed else contextlib.nullcontext():
                    file.close()

    def soon(self, write: Callable[[], None], at_once: bool = False) -> None:
        """Call *write*, which logs, within a tenth of a second, in turn and before anything else is logged.

        What comes faster than that is written together, by another thread if this one is held up, each with the time
        and to the stdout of when it was asked for. *at_once* waits for no more to come. A process that dies takes
        along what waits.

        Raises:
            Exception: of *write* or of the file, now or when another thread wrote; what waits is written all the same.
        """
        with self._guard():
            self._later.append((time.time(), sys.stdout, write))
            if at_once or self._soon.due(self._catch_up_unasked):
                self._catch_up()

    def write(self, level: str, event: dict[str, Any]) -> None:
        """Write one event, after those that were to be written soon.

        Raises:
            Exception: as :meth:`soon`; the event is written all the same.
        """
        with self._guard():
            if self._asked is None:
                self.soon(functools.partial(self.write, level, event), at_once=True)
            else:
                self._put(level, event, *self._asked)

    def _catch_up(self) -> None:
        with self._guard():
            if self._asked is not None:
                return
            failure, self._failure = self._failure, None
            self._soon.done()
            try:
                while self._later:
                    when, stream, write = self._later[0]
                    self._asked = when, stream
                    try:
                        write()
                    except Exception as error:  # noqa: BLE001  # raised below: it isn't the fault of what comes after
                        failure = failure or error
                    self._later.popleft()  # and not before: an interrupt leaves it to the next one who writes
            finally:
                self._asked = None
                self._flush()
        if failure is not None:
            raise failure

    def _catch_up_unasked(self) -> None:
        try:
            self._catch_up()
        except Exception as error:  # noqa: BLE001
            self._failure = error  # for the thread that logs, at its next word

    def _put(self, level: str, event: dict[str, Any], when: float, stream: IO[str] | None) -> None:
        line = _line(level, event)
        self._lines.append(line + "\n")
        if getattr(logging, level.upper()) < self.threshold:
            return
        if getattr(stream, "closed", False):  # it stood in for stdout when the line was asked for, and no longer
            stream = sys.stdout
        if stream is None:  # under pythonw there is nobody to read
            return
        if getattr(stream, "closed", False):
            self.tell_failure("stdout", ValueError("it is closed"))
            return
        text = line if _is_terminal(stream) else _piped(level, event, when)
        self._prints.append((stream, _encodable(text, stream) + "\n"))

    def _flush(self) -> None:
        """Write in one go, so that a fork finds nothing half-written, and what is written together is so."""
        prints, self._prints = self._prints, []
        try:
            for stream, group in itertools.groupby(prints, operator.itemgetter(0)):
                self._print(stream, "".join(text for _, text in group))
        finally:  # second, as it may have to say that stdout failed
            lines, self._lines = self._lines, []
            if lines and self._file is not None and not self._file_failed:
                self._append(self._file, "".join(lines))

    def _print(self, stream: IO[str], text: str) -> None:
        try:
            with self.aside():
                stream.write(text)
                stream.flush()
        except Exception as error:  # noqa: BLE001  # whatever a stream of the script's own fails of
            drop_unwritten(stream, error)
            self.tell_failure("stdout", error)

    def _append(self, file: IO[str], text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            self._file_failed = True
            if self.on_failure is None:
                raise
            self.on_failure(error)

    def tell_failure(self, stream: str, error: Exception) -> None:
        """Have the file say, with the next line and once, that a stream of the process can't be written to."""
        if self._file is not None and stream not in self._failed_streams:
            self._failed_streams.add(stream)
            reason = f"{error!r}; the run goes on, and this file has all of its lines"
            self._lines.append(_line("warning", {"event": stream, "reason": reason}) + "\n")


class _Sink:
    """What structlog calls at the end of the chain."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def msg(self, level: str, event: dict[str, Any]) -> None:
        self._log.write(level, event)

    debug = info = warning = error = critical = exception = msg


class RowLog:
    """``log.jsonl``: one JSON object a line, each with the ``step`` after which it was written.

    A number that is none stands there as Python's json writes and reads it: ``NaN``, ``Infinity``.

    Args:
        path: The file, appended to; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_torn_line(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append rows, which another process can read when this returns."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()

    def sync(self) -> None:
        """Return once the rows are on the disk."""
        os.fsync(self._file.fileno())

    def cut_back(self, step: int, validates_again: bool) -> list[dict[str, Any]]:
        """Drop, whole or not at all, what a run that goes on after *step* is about to write again.

        Args:
            step: Rows after it go, and those that can't be read.
            validates_again: Whether validation rows of that very step go too.

        Returns:
            The rows that stay.
        """
        self._file.close()
        stay = [(line, row) for line, row in _read(self.path) if _stays(row, step, validates_again)]
        replace_text(self.path, "".join(line + "\n" for line, _ in stay))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # closed by close()
        return [row for _, row in stay]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def shown(value: Any) -> str:
    """A value as a line shows it: floats between 0.01 and 10,000 with four digits, so that columns stay in line."""
    if isinstance(value, Path):
        return shown_path(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size and not 0.01 <= size < 10_000:
        return f"{value:.2e}"
    return f"{value:.{4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 1}f}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as it is typed in the working directory: relative to it where it lies below."""
    with contextlib.suppress(ValueError, OSError):  # elsewhere, or in a directory that was removed
        return str(Path(path).relative_to(Path.cwd()))
    return os.fspath(path)


def headed(head: str, *parts: str) -> str:
    """A line whose parts begin in one column, below those of other lines with short headings."""
    return f"{head:<11} {'   '.join(part for part in parts if part)}".rstrip()


def _without_logging(_: Any, method: str, event: Any) -> Any:
    """Spread what ``logging`` has in ``extra``, and drop what says where to look for the caller."""
    for name in ("stacklevel", "stack_info"):
        event.pop(name, None)
    extra = event.pop("extra", None)
    return {**(extra if isinstance(extra, Mapping) else {}), **event}


def _hand_over(_: Any, method: str, event: Any) -> tuple[tuple[str, dict[str, Any]], dict[str, Any]]:
    level = "error" if method == "exception" else method
    return (level, dict(event)), {}


def _line(level: str, event: Mapping[str, Any]) -> str:
    fields = [(key, value) for key, value in event.items() if key not in ("event", "line", "exception")]
    parts = [shown(value) if key in _BARE else f"{key} {shown(value)}" for key, value in fields]
    text = str(event["line"]) if "line" in event else headed(str(event["event"]), *parts)
    if "exception" in event:
        text += "\n" + event["exception"]
    return text if level in ("debug", "info") else f"{level}   {text}"


def _piped(level: str, event: Mapping[str, Any], when: float) -> str:
    moment = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {_key(key): _plain(value) for key, value in event.items() if key not in (*_OWN, "line")}
    return str(_logfmt(None, "", {"time": moment, "level": level, "event": _plain(event["event"]), **fields}))


@functools.cache
def _key(key: str) -> str:
    return re.sub(r"\s", "_", key)


def _plain(value: Any) -> str:
    """A value with what would move the cursor spelt out; the renderer does so with line breaks."""
    text = f"{value:.6g}" if isinstance(value, float) else shown_path(value) if isinstance(value, Path) else str(value)
    return text if text.isprintable() else _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _encodable(text: str, stream: Any) -> str:
    """The text with plain signs where the stream can't encode it, so that a line never fails for a star."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN_SIGNS).encode(encoding, "replace").decode(encoding)
    return text


def _is_terminal(stream: Any) -> bool:
    return bool(stream.isatty()) if hasattr(stream, "isatty") else False


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


def _end_torn_line(path: Path) -> None:
    """End a line that a killed process left unfinished: the next row must not run into it."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines that are rows, as text and parsed."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield line, row


def _stays(row: Mapping[str, Any], step: int, validates_again: bool) -> bool:
    repeated = validates_again and row["step"] == step and any(key.startswith("val/") for key in row)
    return bool(row["step"] <= step and not repeated)

"""The rows of a run, for programs: JSON in ``log.jsonl``, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eventrunner.files.disk import replace_text

__all__ = ["EventLog", "RowLog", "ending", "sync_rows", "write_row"]


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

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row, which another process can read when this returns."""
        self._file.write(json.dumps(row) + "\n")
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


class EventLog:
    """TensorBoard's event files, which have what ``log.jsonl`` has, but for the epochs.

    Args:
        folder: Where they lie; made.
        purge_step: The step from which on what earlier files have doesn't count any more.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads files in the order of their names, which begin with the second of their making and then have
        # the process's number: of two files of one second, the later might be read first, and its purge lost.
        seconds = [re.search(r"tfevents\.(\d+)\.", path.name) for path in folder.glob("*tfevents*")]
        newest = max((int(found[1]) for found in seconds if found), default=0)
        while newest == int(time.time()):
            time.sleep(0.01)
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        for key, value in row.items():
            if key not in ("step", "epoch"):
                self._writer.add_scalar(key, value, row["step"])

    def sync(self) -> None:
        """Return once the rows are on the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


@contextlib.contextmanager
def ending(failed: Callable[[OSError], None]) -> Iterator[None]:
    """Let a file that fails within the block end the run, once that is saved, rather than what is under way."""
    try:
        yield
    except OSError as error:
        failed(error)


def write_row(files: Sequence[RowLog | EventLog], failed: Callable[[OSError], None], row: Mapping[str, Any]) -> None:
    """Write a row to each file; *failed* is called for one that fails."""
    for file in files:
        with ending(failed):
            file.write(row)


def sync_rows(files: Sequence[RowLog | EventLog], failed: Callable[[OSError], None]) -> None:
    """Return once all rows are on the disk, or *failed* was called."""
    with ending(failed):
        for file in files:
            file.sync()


def _end_torn_line(path: Path) -> None:
    """End a line that a killed process left unfinished: the next row must not run into it."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines that are rows, as text and parsed."""
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield line, row


def _stays(row: Mapping[str, Any], step: int, validates_again: bool) -> bool:
    repeated = validates_again and row["step"] == step and any(key.startswith("val/") for key in row)
    return bool(row["step"] <= step and not repeated)

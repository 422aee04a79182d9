"""Times, sizes, numbers and paths, as people write and read them."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["clock", "duration", "pace", "parse_duration", "shown", "shown_path", "size"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Return the seconds of a time such as ``"10min"``.

    Raises:
        ValueError: it is no number above 0 with ms, s, min or h.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is not a time; write a number and ms, s, min or h, as in '10min'.")
    return float(match[1]) * _SECONDS[match[2]]


def pace(seconds: float) -> str:
    """Return the time of an iteration: ``1.53 ms/it`` or ``2.1 s/it``."""
    return f"{seconds * 1000:.3g} ms/it" if seconds < 0.9995 else f"{seconds:.3g} s/it"


def duration(seconds: float) -> str:
    """Return ``7 ms``, ``0.21 s``, ``12 s``, ``3:05`` or ``2:03:05``."""
    if seconds < 0.0095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"
    return clock(seconds)


def clock(seconds: float) -> str:
    """Return ``0:07``, ``3:05`` or ``2:03:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Return ``12 B``, ``3.4 kB`` … in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def shown(value: Any) -> str:
    """Return a value as a line shows it: floats between 0.01 and 10,000 with four digits, to keep columns in line."""
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

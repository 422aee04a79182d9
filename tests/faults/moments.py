"""Moments in the life of a training, at which it may be hit: in terms of what can be seen of it, or of time alone."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import STEPS

_ROWS = STEPS + STEPS // 10  # at least so many are logged
_LIFE = 0.45  # seconds that a whole training takes, about


def await_moment(chance: random.Random, folder: Path, process: Any) -> str:
    """Return at a random moment in the life of *process*, which trains in *folder*, and say which, in words."""
    kind = chance.choices(sorted(_MOMENTS), [_WEIGHTS[name] for name in sorted(_MOMENTS)])[0]
    return _MOMENTS[kind](chance, folder, process.is_alive)


def _early(chance: random.Random, folder: Path, alive: Callable[[], bool]) -> str:
    return _slept(chance.random() * 0.07)


def _any_time(chance: random.Random, folder: Path, alive: Callable[[], bool]) -> str:
    return _slept(chance.random() * _LIFE)


def _at_row(chance: random.Random, folder: Path, alive: Callable[[], bool]) -> str:
    rows = rows_of(folder) + chance.randrange(1, 25)
    _spin(lambda: rows_of(folder) >= rows, alive)
    return f"at row {rows}, {_slept(chance.random() * 0.01)}"


def _at_the_end(chance: random.Random, folder: Path, alive: Callable[[], bool]) -> str:
    _spin(lambda: rows_of(folder) >= _ROWS, alive)
    return f"at the end, {_slept(chance.random() * 0.02)}"


def _at_work(what: str) -> Callable[[random.Random, Path, Callable[[], bool]], str]:
    def wait(chance: random.Random, folder: Path, alive: Callable[[], bool]) -> str:
        count = chance.randrange(1, 7)
        for _ in range(count):
            _spin(lambda: not hidden(folder, what), alive)
            _spin(lambda: hidden(folder, what), alive)
        return f"at {what} {count}, {_slept(chance.choice((0, 0.001)) * chance.random())}"

    return wait


_MOMENTS = {"early": _early, "any": _any_time, "row": _at_row, "end": _at_the_end}
_MOMENTS |= {what: _at_work(what) for what in ("tmp", "trash")}
_WEIGHTS = {"early": 2, "any": 2, "row": 3, "end": 1, "tmp": 3, "trash": 3}


def hidden(folder: Path, what: str) -> list[str]:
    """The store's hidden names of that kind in *folder*, without those of this process."""
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(folder) if name.startswith(f".{what}-") and _of_another(name)]
    return []


def _of_another(name: str) -> bool:
    pid = name.split("-")[-2] if name.count("-") > 2 else ""
    return pid.isdigit() and int(pid) != os.getpid()


def rows_of(folder: Path) -> int:
    """How many rows its log has."""
    with contextlib.suppress(OSError):
        return (folder / "log.jsonl").read_bytes().count(b"\n")
    return 0


def _spin(until: Callable[[], Any], alive: Callable[[], bool]) -> None:
    while alive() and not until():
        time.sleep(0.0002)  # not for order: any moment will do


def _slept(seconds: float) -> str:
    time.sleep(seconds)
    return f"{seconds * 1000:.1f} ms later"

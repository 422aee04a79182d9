"""What the benchmarks have in common when they report: conditions, tables, JSON, and tables within a Markdown file.

A report is ``{"conditions": str, "columns": [str, ...], "rows": [[cell, ...], ...]}``, and whatever else a benchmark
adds to it. Its cells are numbers where they are measured, and are formatted only when they are shown.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["between", "conditions", "processor", "resident", "save", "table", "told", "version_of"]

Cell = str | float | None


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution, or None where it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def conditions(*more: str, packages: Sequence[str] = ("torch",)) -> str:
    """One line: date, machine, Python, the versions of *packages* and of this one, and *more*, which is added as is."""
    versions = [f"{name} {found}" for name in (*packages, "eventrunner") if (found := version_of(name))]
    machine = f"{processor()}, {os.cpu_count()} CPUs, {platform.system()}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([date.today().isoformat(), machine, python, *versions, *more])


def cell(value: Cell) -> str:
    """Return a cell as text: a number with three significant digits, but with all of those before the point."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a Markdown table: the first column to the left, those with a number in them to the right."""
    right = [any(isinstance(row[index], (int, float)) for row in rows) for index in range(len(columns))]
    rule = ["---:" if index and numbers else "---" for index, numbers in enumerate(right)]
    lines = [columns, rule, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def resident() -> float:
    """Megabytes of the process that are in memory; NaN where the system doesn't tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def told(met: bool) -> str:
    """How a target fared, in a word."""
    return "met" if met else "missed"


def save(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, making the folder if need be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def between(text: str, name: str, inner: str) -> str:
    """*text* with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced by *inner*.

    Raises:
        ValueError: *text* has no such markers.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not (found and ended):
        raise ValueError(f"can't put the table of {name!r} where there is no {opening} … {closing}")
    return f"{before}{opening}\n{inner}\n{closing}{after}"

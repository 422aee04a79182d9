"""What saves cost a training, beside torch.save and torch.distributed.checkpoint.

$ python benchmarks/checkpoint.py [section …] [--repeats N] [--large] [--patience SECONDS] [--folder DIR] [--json FILE]

Contenders take turns, in one process per section, and medians are compared. A name that ends in "; x" compares with x.
"Blocked" is how long the training thread stands still for a save; "lost" is by how much longer the steps from a save to
the next one take than as many without. Nothing else should run meanwhile; on a machine that is shared, --patience waits
for quiet moments, and has measured again what was disturbed.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from checkpoint_measures import SECTIONS, Row, Settings, run_section
from checkpoint_task import Calm
from report import conditions, save, table, told

COLUMNS = ["measured; compared with", "unit", "ours", "baseline", "ratio", "target", ""]


@dataclasses.dataclass(frozen=True)
class Result:
    """A section's rows, how long they took, and in how many of its measurements others used the cores."""

    section: str
    rows: list[Row]
    seconds: float
    measured: int
    disturbed: int


def measured(name: str, settings: Settings) -> Result:
    """Run a section in a new process, so that none inherits another's threads or memory."""
    folder, began = settings.folder / name, time.perf_counter()
    folder.mkdir()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows, calm = pool.submit(run_section, name, dataclasses.replace(settings, folder=folder)).result()
    return Result(name, rows, time.perf_counter() - began, calm.measured, calm.disturbed)


def file_system(folder: Path) -> str:
    """Of what kind the one is that the folder is in."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [(len(place), kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(around)[1]


def report(names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Measure these sections, one after the other."""
    results = []
    for name in names:
        print(f"{name}: {SECTIONS[name].__doc__}", file=sys.stderr, flush=True)
        results.append(measured(name, settings))
    under = conditions(file_system(settings.folder), f"medians of {settings.repeats} interleaved repeats")
    return {"conditions": under, "sections": [as_json(result) for result in results]}


def as_json(result: Result) -> dict[str, Any]:
    rows = [{**dataclasses.asdict(row), "ratio": row.ratio, "met": row.met} for row in result.rows]
    return {**dataclasses.asdict(result), "rows": rows}


def shown(report: dict[str, Any]) -> str:
    """Return the report as Markdown: a table for each section, below what it measures and how quiet the machine was."""
    parts = [report["conditions"] + "."]
    for section in report["sections"]:
        name, disturbed = section["section"], f"{section['disturbed']} of {section['measured']} measurements"
        parts.append(f"`{name}`: {SECTIONS[name].__doc__} Others disturbed {disturbed}.")
        parts.append(table(COLUMNS, [cells(row) for row in section["rows"]]))
    return "\n\n".join(parts)


def cells(row: dict[str, Any]) -> list[str | float | None]:
    verdict = "" if row["met"] is None else told(row["met"])
    return [row["name"], row["unit"], row["ours"], row["baseline"], row["ratio"], target(row), verdict]


def target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return ""
    what = {"ours": row["unit"], "ratio": "×", "difference": f"{row['unit']} more"}[row["bounds"]]
    return f"≤ {row['target']:.3g} {what}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="a state of 2 GB too: needs 10 GB of memory, and of disk")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where to write; a new folder in it, which is removed"
    )
    parser.add_argument(
        "--patience", type=float, default=0, help="seconds for which a section may wait for other processes to be quiet"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"{unknown[0]!r} is no section; there are {', '.join(SECTIONS)}.")
    with tempfile.TemporaryDirectory(prefix="checkpoint-benchmark-", dir=args.folder) as folder:
        settings = Settings(Path(folder), args.repeats, args.large, Calm(args.patience))
        found = report(args.sections or list(SECTIONS), settings)
    if args.json:
        save(args.json, found)
    print(shown(found))


if __name__ == "__main__":
    main()

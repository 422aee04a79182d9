"""What saves cost a training, beside torch.save and torch.distributed.checkpoint.

$ python benchmarks/checkpoint.py [section …] [--repeats N] [--large] [--patience SECONDS] [--folder FOLDER] [--json]

Contenders take turns, in one process per section, and medians are compared. A name that ends in "; x" compares with x.
"Blocked" is how long the training thread stands still for a save; "lost" is by how much longer the steps from a save to
the next one take than as many without. Nothing else should run meanwhile; on a machine that is shared, --patience waits
for quiet moments, and has measured again what was disturbed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from checkpoint_measures import SECTIONS, Row, Settings, run_section
from checkpoint_task import Calm

from eventrunner.version import __version__


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


def conditions(settings: Settings) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "kernel": platform.release(),
        "file system": file_system(settings.folder),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "eventrunner": __version__,
        "repeats": settings.repeats,
    }


def file_system(folder: Path) -> str:
    """Of what kind the one is that the folder is in."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = [(len(place), kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return max(around)[1]


def show(result: Result) -> None:
    print(f"\n{result.section}: {SECTIONS[result.section].__doc__}")
    print(f"({result.seconds:.0f} s; others disturbed {result.disturbed} of {result.measured} measurements)\n")
    print("| measured; compared with | ours | baseline | ratio | target | |")
    print("|---|---:|---:|---:|---:|---|")
    for row in result.rows:
        base = "" if row.baseline is None else f"{number(row.baseline)} {row.unit}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        verdict = {None: "", True: "met", False: "NOT MET"}[row.met]
        print(f"| {row.name} | {number(row.ours)} {row.unit} | {base} | {ratio} | {target(row)} | {verdict} |")


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def target(row: Row) -> str:
    if row.target is None:
        return ""
    what = {"ours": "", "ratio": " ×", "difference": f" {row.unit} more"}[row.bounds]
    unit = f" {row.unit}" if row.bounds == "ours" else ""
    return f"≤ {row.target:.3g}{unit}{what}"


def main() -> int:
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
    parser.add_argument("--json", action="store_true", help="print JSON, and no table")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"{unknown[0]!r} is no section; there are {', '.join(SECTIONS)}.")
    results = []
    with tempfile.TemporaryDirectory(prefix="checkpoint-benchmark-", dir=args.folder) as folder:
        settings = Settings(Path(folder), args.repeats, args.large, Calm(args.patience))
        told = conditions(settings)
        if not args.json:
            print(", ".join(f"{name} {value}" for name, value in told.items()))
        for name in args.sections or SECTIONS:
            results.append(measured(name, settings))
            if not args.json:
                show(results[-1])
                sys.stdout.flush()
    if args.json:
        print(json.dumps({"conditions": told, "sections": [as_json(result) for result in results]}, indent=1))
    return 0


def as_json(result: Result) -> dict[str, Any]:
    rows = [{**dataclasses.asdict(row), "ratio": row.ratio, "met": row.met} for row in result.rows]
    return {**dataclasses.asdict(result), "rows": rows}


if __name__ == "__main__":
    sys.exit(main())

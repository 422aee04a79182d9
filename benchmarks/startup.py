"""How long it takes until a training trains: importing, and from ``Runner(…)`` to the first step.

$ python benchmarks/startup.py [--repeats N] [--json FILE]

Each measurement has an interpreter of its own, and they take turns. The clock runs within it, from the import's
beginning to its end, so that starting and ending an interpreter doesn't count. What Python's garbage collector took
meanwhile is told beside: `import torch` leaves it short of a collection of all that torch has made, which falls into
whatever comes next. What comes before the first step is measured once all is imported and the model has gone forward
and backward by hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from report import conditions, save, table, told

HERE = Path(__file__).resolve().parent
TORCH, PACKAGE, RUNNER = "import torch", "import eventrunner", "from eventrunner import Runner"
AFTER_TORCH = f"{TORCH}; {RUNNER}"  # as most scripts have it
IMPORTS = (TORCH, PACKAGE, RUNNER, AFTER_TORCH)
IMPORT_TARGET = 1.15
STEP_TARGET = 50.0  # milliseconds
TIMED = """
import gc, time
collected = 0.0
def count(phase, info):
    global collected
    collected += time.perf_counter() if phase == "stop" else -time.perf_counter()
gc.callbacks.append(count)
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
print(took * 1e3, collected * 1e3)
"""
# Without the collector, whose work would be put down to the module that it happens to interrupt.
ALONE = f"{TORCH}\nimport gc\ngc.disable()\nimport eventrunner.version\n{RUNNER}"
LARGEST = 5
BEFORE = ("Runner(…)", "train() to before_run", "before_run to before_train", "before_train to the first step")
Milliseconds = dict[str, float]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=HERE, check=True, capture_output=True, text=True)


def import_time(statement: str) -> tuple[float, float]:
    """Milliseconds of a statement in a fresh interpreter, and those of them that went into collecting garbage."""
    took, collected = python("-c", TIMED.format(statement=statement)).stdout.split()
    return float(took), float(collected)


def by_module() -> Milliseconds:
    """Milliseconds that each module takes, without those that it imports, which a Runner adds to torch."""
    found: Milliseconds = {}
    for line in python("-X", "importtime", "-c", ALONE).stderr.splitlines():
        label, _, rest = line.partition(":")
        if label != "import time" or "self [us]" in rest:
            continue
        alone, _, name = (part.strip() for part in rest.split("|"))
        found[name] = int(alone) / 1e3
        if name == "torch":  # told when it is complete, and with it all that came before
            found = {}
    return found


def first_step() -> Milliseconds:
    """Milliseconds of each part from ``Runner(…)`` to the first step, in a fresh interpreter."""
    told = json.loads(python("startup_task.py").stdout)
    assert isinstance(told, dict)
    return told


def medians(repeats: Iterable[Milliseconds]) -> Milliseconds:
    """Return the median of each name; 0 counts where a repeat lacks one."""
    every = list(repeats)
    names = dict.fromkeys(name for each in every for name in each)
    return {name: statistics.median(each.get(name, 0.0) for each in every) for name in names}


def by_package(modules: Milliseconds) -> Milliseconds:
    """Return the sums by the first part of the name."""
    sums: Milliseconds = {}
    for name, took in modules.items():
        package = name.partition(".")[0]
        sums[package] = sums.get(package, 0.0) + took
    return sums


def largest(found: Milliseconds, shown: int = LARGEST) -> Milliseconds:
    return dict(sorted(found.items(), key=lambda pair: -pair[1])[:shown])


def measured(repeats: int) -> dict[str, Any]:
    """Run all of it; returns the report."""
    imports: dict[str, list[tuple[float, float]]] = {statement: [] for statement in IMPORTS}
    modules: list[Milliseconds] = []
    steps: list[Milliseconds] = []
    for repeat in range(repeats):
        first = repeat % len(IMPORTS)
        for statement in IMPORTS[first:] + IMPORTS[:first]:
            imports[statement].append(import_time(statement))
        modules.append(by_module())
        steps.append(first_step())
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
    return report(imports, medians(modules), steps)


def report(
    imports: dict[str, list[tuple[float, float]]], modules: Milliseconds, steps: list[Milliseconds]
) -> dict[str, Any]:
    base = [took for took, _ in imports[TORCH]]
    ratios = {
        name: statistics.median(took[0] / b for took, b in zip(every, base, strict=True))
        for name, every in imports.items()
    }
    rows: list[list[Any]] = []
    for name, every in imports.items():
        took, collected = (statistics.median(column) for column in zip(*every, strict=True))
        rows.append([name, took, collected, ratios[name]])
    parts = medians(steps)
    before = [sum(value for name, value in each.items() if name in BEFORE) for each in steps]
    return {
        "conditions": conditions(f"medians of {len(base)} interleaved repeats, each in a fresh interpreter"),
        "columns": ["import", "ms", "of which collecting garbage", "ratio to torch"],
        "rows": rows,
        "first step": {
            "columns": ["until the first step", "ms"],
            "rows": [[name, parts[name]] for name in parts],
        },
        "modules": largest(modules),
        "packages": largest(by_package(modules)),
        "verdict": verdicts(ratios, statistics.median(before)),
        "repeats": {"imports": imports, "first step": steps},
    }


def verdicts(ratios: dict[str, float], step: float) -> list[str]:
    """Return what is to be reached, and whether it is."""
    lines = [
        f"`{name}`: {ratio:.2f} of `{TORCH}`, target ≤ {IMPORT_TARGET:.2f}: {told(ratio <= IMPORT_TARGET)}"
        for name, ratio in ratios.items()
        if name not in (TORCH, PACKAGE)
    ]
    to_step = f"from `Runner(…)` to the first step: {step:.1f} ms, target ≤ {STEP_TARGET:.0f} ms"
    return [*lines, f"{to_step}: {told(step <= STEP_TARGET)}"]


def listed(found: Milliseconds) -> str:
    return ", ".join(f"{name} {took:.1f}" for name, took in found.items())


def shown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    return "\n\n".join(
        [
            report["conditions"] + ".",
            table(report["columns"], report["rows"]),
            f"What a Runner adds to torch, in ms, with the collector switched off: {listed(report['packages'])}; "
            f"of single modules, each without what it imports, {listed(report['modules'])}.",
            table(report["first step"]["columns"], report["first step"]["rows"]),
            "\n".join(f"- {line}" for line in report["verdict"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = measured(args.repeats)
    if args.json:
        save(args.json, found)
    print(shown(found))


if __name__ == "__main__":
    main()

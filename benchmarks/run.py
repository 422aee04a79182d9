"""Run all benchmarks, one after the other, and put what they measured into results/ and README.md.

$ python benchmarks/run.py [--quick] [--skip-checkpoint] [--only NAME …]

Takes about ten minutes, a minute or two with --quick, which leaves out the long training of endurance.py; nothing else
should run meanwhile. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import between

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE / "README.md"
QUICK = {
    "dispatch": ["--repeats", "11"],
    "iteration": ["--iters", "500", "--repeats", "3", "--save-every", "200"],
    "startup": ["--repeats", "3"],
    "checkpoint": ["--repeats", "2", "stall"],
}
NAMES = ("dispatch", "iteration", "startup", "endurance", "checkpoint")


def run(name: str, *options: str) -> str:
    """Run a benchmark, with what it prints to the standard error going there; returns its standard output."""
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(name: str, options: list[str]) -> str:
    """Run a benchmark and save its report; returns what goes into the README."""
    path = RESULTS / f"{name}.json"
    text = run(name, *options, "--json", str(path)).strip()
    if name == "iteration":
        plot(json.loads(path.read_text(encoding="utf-8")), RESULTS / "iteration.svg")
        text += "\n\n![Overhead per iteration, by loop](results/iteration.svg)"
    return text


def plot(report: dict[str, Any], path: Path) -> None:
    """Microseconds per iteration above the bare loop, on a logarithmic scale, with what the repeats were between."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "iteration", "svg.fonttype": "none", "font.size": 10})
    bars = overheads(report)
    colors = {"ours": "tab:orange", "complete": "tab:gray", "less": "lightgray"}
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(bars) + 1), layout="constrained")
    for name, (low, middle, high), kind in bars:
        axes.barh(name, middle, color=colors[kind], height=0.6)
        axes.plot([low, high], [name, name], color="black", linewidth=1)
        axes.annotate(f" {middle:,.0f} µs", (max(middle, high), name), va="center")
    axes.set_xscale("log")
    axes.set_xlim(1, 3 * max(high for _, (_, _, high), _ in bars))
    axes.invert_yaxis()
    axes.set_xlabel(
        "µs per iteration above a loop by hand\n(line: least to most of the repeats; pale: does less than that loop)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def overheads(report: dict[str, Any]) -> list[tuple[str, tuple[float, float, float], str]]:
    """For each loop that is slower than the bare one: least, median and most above it, and how to draw it."""
    names = [row[0] for row in report["rows"]]
    base = [took["mean"] for took in report["repeats"][names[0]]]
    found = []
    for (name, *cells), complete in zip(report["rows"], report["complete"], strict=True):
        above = [took["mean"] - bare for took, bare in zip(report["repeats"][name], base, strict=True)]
        if cells[2] > 1:
            kind = "less" if not complete else "ours" if name.startswith("Runner") else "complete"
            found.append((name, (max(min(above), 1), cells[2], max(above)), kind))
    return sorted(found, key=lambda bar: bar[1][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that all of it works")
    parser.add_argument("--skip-checkpoint", action="store_true", help="it takes longest, and writes gigabytes")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="the others' tables stay as they are")
    args = parser.parse_args()
    for name in args.only:
        if (name == "checkpoint" and args.skip_checkpoint) or (args.quick and name not in QUICK):
            continue
        text = measure(name, QUICK[name] if args.quick else [])
        README.write_text(between(README.read_text("utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()

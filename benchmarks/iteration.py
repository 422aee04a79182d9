"""What an iteration costs above a loop written by hand that does the same, here and in other trainers.

$ python benchmarks/iteration.py [--iters N] [--repeats N] [--save-every N] [--only NAME …] [--json FILE]

A tiny model (Linear 8×8, batches of 8, SGD), a scheduler stepped at each iteration, a line each 50, a checkpoint each
2,500. Each contender lives in a process of its own; they take turns, one repeat at a time, in an order that changes.
The mean iteration has everything in it, lines and saves too; the quiet one is the median. What comes before the 250th
iteration or after the last doesn't count. The other trainers come with the extra `bench`; those that aren't installed
are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from report import conditions, save, table, told

HERE = Path(__file__).resolve().parent
BASELINE, OURS = "bare", "runner"
CONTENDERS = (
    BASELINE,
    OURS,
    "ignite",
    "torchtnt",
    "mmengine",
    "keras",
    "transformers",
    "lightning",
    "composer",
)
TARGET = 12.0  # microseconds above the bare loop
SHARE_TARGET = 0.25  # of what the best of the others is above it
COLUMNS = ("loop", "version", "µs per iteration", "above the bare loop", "ratio", "quiet iteration", "quiet, above")
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


class Worker:
    """A contender's process."""

    def __init__(self, name: str, log: IO[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peers.worker", name],
            cwd=HERE,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.said = self.hear()
        self.failure: str | None = self.said.get("error")

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with {self.process.wait()}"}
        assert isinstance(answer, dict)
        return answer

    def measure(self, order: dict[str, Any]) -> dict[str, float] | None:
        """Return what one repeat took, or None where the contender fails, now or before."""
        if self.failure is None:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            answer = self.hear()
            self.failure = answer.get("error")
            if self.failure is None:
                return answer
        return None

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@dataclass(frozen=True)
class Turn:
    """A variant and its repeats, in the order of the repeats."""

    worker: Worker
    variant: str
    took: list[dict[str, float]]

    @property
    def complete(self) -> bool:
        """Whether it does all that the task asks for."""
        return bool(self.variant == self.worker.said["variants"][0])


def take_turns(workers: list[Worker], repeats: int, order: dict[str, Any]) -> list[Turn]:
    """Have each variant repeat, beginning with another one each time; without those that fail."""
    turns = [Turn(worker, variant, []) for worker in workers for variant in worker.said.get("variants", ())]
    for repeat in range(repeats):
        first = repeat * len(turns) // repeats
        for turn in turns[first:] + turns[:first]:
            took = turn.worker.measure({"variant": turn.variant, **order})
            if took is not None:
                turn.took.append(took)
        print(f"repeat {repeat + 1} of {repeats}", file=sys.stderr)
    return [turn for turn in turns if turn.worker.failure is None]


def against(turn: Turn, base: Turn, what: str) -> list[float]:
    """Median of *what*, of its difference to the bare loop of the same repeat, and of its ratio to it."""
    pairs = [(took[what], bare[what]) for took, bare in zip(turn.took, base.took, strict=True)]
    columns = zip(*((ours, ours - bare, ours / bare) for ours, bare in pairs), strict=True)
    return [statistics.median(column) for column in columns]


def verdicts(rows: list[list[Any]], turns: list[Turn]) -> list[str]:
    """Return what is to be reached, and whether it is: above the bare loop, and beside the best of the others.

    That is the best of those that do all that the task asks for; what else was measured of it is compared with too.
    """
    pairs = list(zip(turns, (row[3] for row in rows), strict=True))
    complete = {turn.worker.name: (above, turn) for turn, above in pairs if turn.complete}
    del complete[BASELINE]
    if OURS not in complete or len(complete) == 1:
        return []
    least, ours = complete.pop(OURS)
    name, best = ours.variant, min(complete.values(), key=lambda pair: pair[0])[1].worker
    lines = [f"{name}: {least:.1f} µs above the bare loop, target ≤ {TARGET:.0f} µs: {told(least <= TARGET)}"]
    for turn, above in pairs:
        if turn.worker is best:
            part = f"of what {turn.variant} is above it ({above:.1f} µs), target ≤ {SHARE_TARGET:.2f}"
            share = f"{least / above:.2f}" if above > 0 else "no share"
            lines.append(f"{name}: {share} {part}: {told(least <= SHARE_TARGET * above)}")
    return lines


def measured(names: list[str], repeats: int, order: dict[str, Any], log: IO[str]) -> dict[str, Any]:
    """Run all of it; returns the report."""
    workers = [Worker(name, log) for name in names]
    try:
        turns = take_turns(workers, repeats, order)
    finally:
        for worker in workers:
            worker.close()
    base = next((turn for turn in turns if turn.worker.name == BASELINE), None)
    if base is None:
        raise SystemExit(f"the bare loop failed: {workers[0].failure}")
    rows = [
        [turn.variant, turn.worker.said["version"], *against(turn, base, "mean"), *against(turn, base, "quiet")[:2]]
        for turn in turns
    ]
    return {
        "conditions": conditions_of(repeats, order),
        "columns": COLUMNS,
        "rows": rows,
        "verdict": verdicts(rows, turns),
        "complete": [turn.complete for turn in turns],
        "differences": {turn.variant: turn.worker.said["differs"] for turn in turns if turn.complete},
        "left out": {worker.name: worker.failure for worker in workers if worker.failure is not None},
        "repeats": {turn.variant: turn.took for turn in turns},
    }


def conditions_of(repeats: int, order: dict[str, Any]) -> str:
    saves = f"a save each {order['save_every']}" if order["save_every"] else "no saves"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return conditions(
        f"{order['iters']:,} iterations on one thread of {cores} usable cores",
        f"a line each {order['log_every']}",
        saves,
        f"medians of {repeats} interleaved repeats",
    )


def shown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    parts = [report["conditions"] + ".", table(report["columns"], report["rows"])]
    if report["verdict"]:
        parts.append("\n".join(f"- {line}" for line in report["verdict"]))
    lines = [f"- {name}: {' '.join(sentences)}" for name, sentences in report["differences"].items()]
    parts.append("What they do more or less than the bare loop:\n\n" + "\n".join(lines))
    if report["left out"]:
        reasons = [f"{name} ({reason})" for name, reason in report["left out"].items()]
        parts.append(f"Left out: {'; '.join(reasons)}.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--iters", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=2500, help="0: never")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--log", default=os.devnull, metavar="FILE", help="where what the trainers print goes")
    args = parser.parse_args()
    names = [name for name in CONTENDERS if not args.only or name in (BASELINE, *args.only)]
    order = {"iters": args.iters, "log_every": args.log_every, "save_every": args.save_every}
    with open(args.log, "w", encoding="utf-8") as log:
        report = measured(names, args.repeats, order, log)
    if args.json:
        save(args.json, report)
    print(shown(report))


if __name__ == "__main__":
    main()

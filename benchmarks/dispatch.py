"""What an emission costs: the ways to emit, against a bare ``for`` over a list of the same receivers.

$ python benchmarks/dispatch.py [--repeats N] [--no-peers] [--json FILE]

Receivers take the whole payload and do nothing, so what is measured is the way to them. All contenders of all cases
take turns within each repeat, so that a slow moment of the machine meets them all. What is told is the median over the
repeats, of nanoseconds and of the ratio to the bare loop of the same case and repeat; read the ratios, since
nanoseconds are those of one machine. The other event systems come with the extra `bench`; those that aren't installed
are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blinker
import peers_dispatch
from report import conditions, save, table, told, version_of

from eventrunner.bus.bus import Bus
from eventrunner.bus.ledger import TIMED, WHOLE, Ledger
from eventrunner.hook import Hook, connect_hook

SPAN = 0.5e-3  # seconds of one measurement: longer than the clock's grain, shorter than a scheduler's slice
TURN = TIMED + WHOLE  # emissions of a Runner, some of them timed by receiver
PAYLOAD = "batch_idx=3, data_batch=data, outputs=outputs"
BARE, EMPTY, EMITTERS, RUNNER = "bare for", "an empty call", "Emitters", "a Runner's"
STATEMENTS = {
    BARE: f"for receiver in receivers: receiver(runner, {PAYLOAD})",
    EMPTY: f"empty(runner, {PAYLOAD})",
    EMITTERS: f"if emitters.after_train_iter: emitters.after_train_iter(runner, {PAYLOAD})",
    f"{EMITTERS}, by position": "emit = emitters.after_train_iter\nif emit: emit(runner, 3, data, outputs)",
    RUNNER: f"if accounted.after_train_iter: accounted.after_train_iter(runner, {PAYLOAD})",
    f"{RUNNER}, by position": "emit = accounted.after_train_iter\nif emit: emit(runner, 3, data, outputs)",
    "Site.emit": f"site.emit(runner, {PAYLOAD})",
    "Site.send": f"site.send(runner, {PAYLOAD})",
    "blinker.Signal.send": f"signal.send(runner, {PAYLOAD})",
}
Times = dict[str, list[float]]


class Sender:
    """Stands for the runner."""


class Idle(Hook):
    """A hook without the site that is measured."""

    def before_train_epoch(self, runner: Any) -> None:
        """Not called."""


@dataclass(frozen=True)
class Case:
    """So many receivers at the site, so many hooks without it, and so many receivers at other sites."""

    receivers: int
    idle: int = 0
    elsewhere: int = 0

    @property
    def name(self) -> str:
        also = f" + {self.idle} hooks without the site" if self.idle else ""
        return f"{self.receivers}{also}" + (f" + {self.elsewhere:,} elsewhere" if self.elsewhere else "")


SIX, SIX_BESIDE = Case(6), Case(6, elsewhere=1000)
CASES = (Case(0), Case(1), SIX, Case(32), Case(6, idle=6), Case(0, elsewhere=1000), SIX_BESIDE)


@dataclass
class Contender:
    """A statement, run so many times that it takes a while, and the nanoseconds of one run, repeat by repeat."""

    timer: timeit.Timer
    number: int = 1
    took: list[float] = field(default_factory=list)

    def calibrate(self) -> None:
        """Also lets what is compiled or resolved at the first emission be so.

        A ledger aggregates each so many emissions, so a multiple of these has its share of that.
        """
        self.timer.timeit(TURN)
        self.number = TURN * max(1, round(SPAN / self.timer.timeit(TURN)))

    def measure(self) -> None:
        self.took.append(self.timer.timeit(self.number) / self.number * 1e9)


def make_receiver() -> Callable[..., None]:
    """Return a receiver that names the whole payload and does nothing."""

    def receiver(runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        pass

    return receiver


def contenders(case: Case) -> dict[str, Contender]:
    """Each way to emit to the receivers of one sender; only a case without receivers compares with an empty call."""
    bus, signal, runner = Bus(), blinker.Signal(), Sender()
    receivers = [make_receiver() for _ in range(case.receivers)]
    for receiver in receivers:
        bus.after_train_iter.connect(receiver, runner)
        signal.connect(receiver, runner, weak=False)
    for _ in range(case.idle):
        connect_hook(bus, Idle(), runner)
    others = [site for site in bus if site is not bus.after_train_iter]
    for index in range(case.elsewhere):
        others[index % len(others)].connect(lambda: None, runner)
    names: dict[str, Any] = {
        "receivers": receivers,
        "empty": make_receiver(),
        "emitters": bus.emitters(runner),
        "accounted": bus.emitters(runner, Ledger()),
        "site": bus.after_train_iter,
        "signal": signal,
        "runner": runner,
        "data": object(),
        "outputs": {"loss": 0.5},
    }
    return {name: Contender(timeit.Timer(statement, globals=names)) for name, statement in STATEMENTS.items()}


def measured(every: dict[str, dict[str, Contender]], repeats: int) -> dict[str, Times]:
    """Return the nanoseconds of each contender of each case in each repeat, beginning with another case each time."""
    groups = list(every.values())
    for group in groups:
        for contender in group.values():
            contender.calibrate()
    for repeat in range(repeats):
        first = repeat % len(groups)
        for group in groups[first:] + groups[:first]:
            for contender in group.values():
                contender.measure()
        print(f"\rrepeat {repeat + 1} of {repeats}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {case: {name: each.took for name, each in group.items()} for case, group in every.items()}


def ratio(ours: list[float], base: list[float]) -> float:
    """Return the median of what each repeat gives."""
    return statistics.median(mine / theirs for mine, theirs in zip(ours, base, strict=True))


def verdicts(times: dict[str, Times]) -> list[str]:
    """Return what is to be reached, and whether it is."""
    none, six, many = (times[Case(count).name] for count in (0, 6, 32))
    beside, idle = times[SIX_BESIDE.name], times[Case(6, idle=6).name]
    wanted: list[tuple[str, float, float]] = []
    for way in (EMITTERS, RUNNER):
        for form in (way, f"{way}, by position"):
            wanted.append((f"no receiver, {form}: to an empty call", ratio(none[form], none[EMPTY]), 1.5))
            wanted.append((f"6 receivers, {form}: to the bare for", ratio(six[form], six[BARE]), 1.1))
            wanted.append(
                (f"32 receivers, {form}: to the bare for", ratio(many[form], many[BARE]), 1.1 if way == RUNNER else 1)
            )
    form = f"{EMITTERS}, by position"
    lines = [f"{name} {value:.2f}, target ≤ {target:.2f}: {told(value <= target)}" for name, value, target in wanted]
    return [
        *lines,
        f"6 receivers, {form}: with 1,000 on other sites {ratio(beside[form], six[form]):.2f} of without",
        f"6 receivers, {form}: with 6 hooks that lack the site {ratio(idle[form], six[form]):.2f} of without",
    ]


def report(repeats: int, with_peers: bool) -> dict[str, Any]:
    """Measure all of it."""
    every = {case.name: contenders(case) for case in CASES}
    names, left_out = peers_dispatch.find(SIX.receivers) if with_peers else ({}, {})
    every[SIX.name].update({name: Contender(timer) for name, timer in names.items()})
    times = measured(every, repeats)
    six = times[SIX.name]
    packages = [peer.package for peer in peers_dispatch.PEERS if peer.name in names]
    return {
        "conditions": conditions(
            f"medians of {repeats} interleaved repeats of {SPAN * 1e3:g} ms or {TURN} emissions",
            packages=("blinker", *packages),
        ),
        "columns": ["nanoseconds, by receivers", *times],
        "rows": [[way, *(statistics.median(times[case][way]) for case in times)] for way in STATEMENTS],
        "ratios": [[way, *compared(times, way)] for way in STATEMENTS],
        "peers": {
            "columns": ["six receivers through", "version", "nanoseconds", "ratio to the bare for", "what is called"],
            "rows": [peer_row(peer, six) for peer in peers_dispatch.PEERS if peer.name in names],
        },
        "verdict": verdicts(times),
        "left out": left_out,
    }


def compared(times: dict[str, Times], way: str) -> list[float | None]:
    """Ratios to the bare loop, case by case; without receivers that is an empty loop, and says little."""
    return [ratio(each[way], each[BARE]) for each in times.values()]


def peer_row(peer: peers_dispatch.Peer, six: Times) -> list[Any]:
    took = six[peer.name]
    return [peer.name, version_of(peer.package), statistics.median(took), ratio(took, six[BARE]), peer.told]


def shown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    ratios = ["ratio to the bare for, by receivers", *report["columns"][1:]]
    parts = [report["conditions"] + "."]
    parts.append(table(report["columns"], report["rows"]))
    parts.append(table(ratios, report["ratios"]))
    if report["peers"]["rows"]:
        parts.append(table(report["peers"]["columns"], report["peers"]["rows"]))
    parts.append("\n".join(f"- {line}" for line in report["verdict"]))
    if report["left out"]:
        parts.append(f"Left out: {'; '.join(f'{name} ({why})' for name, why in report['left out'].items())}.")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument(
        "--no-peers", action="store_true", help="without the other event systems, some of which load long"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = report(args.repeats, not args.no_peers)
    if args.json:
        save(args.json, found)
    print(shown(found))


if __name__ == "__main__":
    main()

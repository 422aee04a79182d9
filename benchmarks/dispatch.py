"""What an emission costs: the ways to emit, against a bare ``for`` over a list of the same receivers.

$ python benchmarks/dispatch.py [repeats]

The contenders take turns within each repeat, so that a slow moment of the machine meets them all. What is compared
is the median over the repeats; read the ratios, since nanoseconds are those of one machine.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import timeit
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import blinker

from eventrunner.bus import Bus
from eventrunner.version import __version__

COUNTS = (0, 1, 6, 32)
ELSEWHERE = 1000
NUMBER = 2000
PAYLOAD = "batch_idx=3, data_batch=data, outputs=outputs"
STATEMENTS = {
    "bare for": f"for receiver in receivers: receiver(runner, {PAYLOAD})",
    "Emitters": f"if emitters.after_train_iter: emitters.after_train_iter(runner, {PAYLOAD})",
    "Site.emit": f"site.emit(runner, {PAYLOAD})",
    "Site.send": f"site.send(runner, {PAYLOAD})",
    "blinker.Signal.send": f"signal.send(runner, {PAYLOAD})",
}


class Runner:
    """Stands for the sender."""


def make_receiver() -> Callable[..., None]:
    """A receiver that names the whole payload and does nothing."""

    def receiver(runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        pass

    return receiver


def timers(count: int, elsewhere: int) -> dict[str, timeit.Timer]:
    """A timer for each contender, over *count* receivers of one sender, with *elsewhere* more on other sites."""
    bus, signal, runner = Bus(), blinker.Signal(), Runner()
    receivers = [make_receiver() for _ in range(count)]
    for receiver in receivers:
        bus.after_train_iter.connect(receiver, runner)
        signal.connect(receiver, runner, weak=False)
    others = [site for site in bus if site is not bus.after_train_iter]
    for index in range(elsewhere):
        others[index % len(others)].connect(lambda: None, runner)
    names: dict[str, Any] = {
        "receivers": receivers,
        "emitters": bus.emitters(runner),
        "site": bus.after_train_iter,
        "signal": signal,
        "runner": runner,
        "data": object(),
        "outputs": {"loss": 0.5},
    }
    return {name: timeit.Timer(statement, globals=names) for name, statement in STATEMENTS.items()}


def measure(contenders: dict[str, timeit.Timer], repeats: int) -> dict[str, float]:
    """The median nanoseconds of one emission, for each contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for timer in contenders.values():
        timer.timeit(NUMBER)  # the first emission compiles
    for _ in range(repeats):
        for name, timer in contenders.items():
            times[name].append(timer.timeit(NUMBER) / NUMBER * 1e9)
    return {name: statistics.median(values) for name, values in times.items()}


def row(label: str, medians: dict[str, float]) -> str:
    """A line of the table: the bare loop in nanoseconds, the others in nanoseconds and as ratios to it."""
    bare, *others = medians.values()
    return " | ".join([f"| {label}", f"{bare:,.0f} ns", *(f"{ns:,.0f} ns, {ns / bare:.2f} ×" for ns in others)]) + " |"


def main(repeats: int) -> None:
    """Measure all cases and print them as a Markdown table."""
    print(
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, {platform.python_implementation()} "
        f"{platform.python_version()}, eventrunner {__version__}, blinker {version('blinker')}; medians of {repeats} "
        f"interleaved repeats of {NUMBER:,} emissions\n"
    )
    print(" | ".join(["| receivers", *STATEMENTS]) + " |")
    print("|---" + "|---:" * len(STATEMENTS) + "|")
    for count in COUNTS:
        print(row(str(count), measure(timers(count, 0), repeats)))
    for count in (0, 6):
        label = f"{count}, and {ELSEWHERE:,} on other sites"
        print(row(label, measure(timers(count, ELSEWHERE), repeats)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 51)

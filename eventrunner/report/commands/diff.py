"""``diff``: what two runs, or two checkpoints, don't have in common. For runs it needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eventrunner.checkpoint.verify import is_checkpoint
from eventrunner.errors import OptionError
from eventrunner.report.commands.output import Output
from eventrunner.report.commands.runs import is_run
from eventrunner.session.rundir import read_run

__all__ = ["diff"]


def diff(first: Path, second: Path, out: Output) -> int:
    """Compare two runs by what their run.json says, or the weights of two checkpoints."""
    kinds = {is_run(path) and not is_checkpoint(path) for path in (first, second)}
    if kinds == {True}:
        return _diff_runs(first, second, out)
    if len(kinds) > 1:
        raise OptionError(f"can't compare {first} with {second}, as one is a run; give two runs or two checkpoints.")
    from eventrunner.report.commands.weights import diff_weights  # which imports torch

    return diff_weights(first, second, out)


def _diff_runs(first: Path, second: Path, out: Output) -> int:
    ours, theirs = (dict(_settings(read_run(path) or {})) for path in (first, second))
    differ = {
        name: (ours.get(name), theirs.get(name))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    }
    out.data({"differ": {name: {"a": a, "b": b} for name, (a, b) in differ.items()}})
    rows = [(name, *("" if one is None else str(one) for one in pair)) for name, pair in differ.items()]
    out.table(("SETTING", str(first), str(second)), rows)
    if not differ:
        out.line("the two runs say the same of themselves")
    return 0


def _settings(facts: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is known under dotted names; the words of a command line are one."""
    if isinstance(facts, dict):
        for key, below in facts.items():
            yield from _settings(below, f"{name}.{key}".lstrip("."))
    elif isinstance(facts, list) and all(isinstance(word, str) for word in facts):
        yield name, " ".join(facts)
    else:
        yield name, facts

"""``diff``: what two runs, or two checkpoints, don't have in common. For runs it needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eventrunner.checkpoint.manifest import STATE_LIMIT, STATE_NAME
from eventrunner.checkpoint.verify import is_checkpoint
from eventrunner.errors import CheckpointError, OptionError
from eventrunner.files.reader import read_json
from eventrunner.report.commands.output import Output
from eventrunner.report.commands.runs import is_run, read

__all__ = ["diff"]

_NODE = "$"  # the key by which state.json sets what is no plain dict apart


def diff(first: Path, second: Path, out: Output) -> int:
    """Compare two runs by their settings, or two checkpoints by their weights."""
    kinds = {is_run(path) and not is_checkpoint(path) for path in (first, second)}
    if kinds == {True}:
        return _diff_runs(first, second, out)
    if len(kinds) > 1:
        raise OptionError(f"can't compare {first} with {second}, as one is a run; give two runs or two checkpoints.")
    from eventrunner.report.commands.weights import diff_weights  # which imports torch

    return diff_weights(first, second, out)


def _diff_runs(first: Path, second: Path, out: Output) -> int:
    ours, theirs = (dict(_flat(_settings(path))) for path in (first, second))
    differ = {
        name: (ours.get(name), theirs.get(name))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    }
    out.data({"differ": {name: {"a": a, "b": b} for name, (a, b) in differ.items()}})
    rows = [(name, *("" if one is None else str(one) for one in pair)) for name, pair in differ.items()]
    out.table(("SETTING", str(first), str(second)), rows)
    if not differ:
        out.line("the two runs have the same settings")
    return 0


def _settings(folder: Path) -> dict[str, Any]:
    """Return what run.json says, and what the newest whole checkpoint has of the optimizers and the data."""
    run = read(folder)
    whole = [one for one in run.checkpoints if one.manifest and not one.problem and STATE_NAME in one.manifest.files]
    try:
        document = read_json(whole[-1].path / STATE_NAME, STATE_LIMIT) if whole else {}
    except (CheckpointError, OSError):  # damaged, which is for verify to say
        document = {}
    kinds, facts = _at(document, "meta", "kinds"), _at(document, "loop", "data", "facts")
    return {**run.facts, **(kinds or {}), "optimizer": _groups(document.get("optimizer")), "data": facts}


def _at(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _groups(optimizer: Any) -> Any:
    """Return the options of each parameter group, of one optimizer or of several by name."""
    if not isinstance(optimizer, dict):
        return None
    groups = optimizer.get("param_groups") or _at(optimizer, "optimizer", "param_groups")  # which a wrapper holds
    if not isinstance(groups, list):
        return {name: _groups(below) for name, below in optimizer.items()}
    plain = [group for group in groups if isinstance(group, dict)]
    return {str(number): {**group, "params": None} for number, group in enumerate(plain)}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is known under dotted names; a list is one text, and what isn't there, or no plain value, is not."""
    if isinstance(value, dict) and _NODE in value:
        value = value.get("items")  # of a tuple; a tensor has none
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _flat(below, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        yield name, " ".join(map(str, value))
    elif value is not None:
        yield name, value

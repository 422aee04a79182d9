"""``verify``: whether the bytes of checkpoints are those that were committed. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from eventrunner.checkpoint.verify import is_checkpoint, listing, missing_checkpoint, verify_checkpoint
from eventrunner.errors import CheckpointError
from eventrunner.report.commands.output import Output
from eventrunner.report.commands.runs import find_runs
from eventrunner.units import size

__all__ = ["verify"]


def verify(paths: Sequence[Path], out: Output) -> int:
    """Read checkpoints through, those of a run, or of all runs below a folder; return 1 if one is damaged."""
    chosen = dict.fromkeys(one for path in paths for one in _below(path))
    results = []
    for path in chosen:
        try:
            count, reason = sum(file.size for file in verify_checkpoint(path).files.values()), ""
        except (CheckpointError, OSError) as error:
            count, reason = 0, str(error)
        out.line(f"damaged  {path}: {reason}" if reason else f"whole    {path}, {size(count)}", bad=bool(reason))
        results.append({"path": str(path), "whole": not reason, "size": count, "problem": reason})
    out.data({"checkpoints": results})
    return int(any(result["problem"] for result in results))


def _below(path: Path) -> Sequence[Path]:
    found = [path] if is_checkpoint(path) else [one for run in find_runs(path) for one in _in_run(run)]
    if not found:
        raise missing_checkpoint(path)
    return found


def _in_run(folder: Path) -> Iterator[Path]:
    found = listing(folder)
    yield from (path for path, _ in (*found.complete, *found.unreadable))

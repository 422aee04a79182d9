"""``ls`` and ``show``: which runs and checkpoints there are, and what is known of one. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from eventrunner.checkpoint.manifest import TensorEntry, read_manifest
from eventrunner.checkpoint.verify import is_checkpoint, missing_checkpoint
from eventrunner.errors import CheckpointNotFoundError, OptionError
from eventrunner.report.commands.output import Output, ago
from eventrunner.report.commands.runs import Run, find_runs, is_run, problem_of, read, scores
from eventrunner.session.rundir import resumes_in
from eventrunner.units import shown, size

__all__ = ["ls", "show"]


def ls(folder: Path | None, out: Output) -> int:
    """List the runs below a folder, newest last; of a run, list the checkpoints."""
    folder = folder or Path("runs" if os.path.isdir("runs") else ".")
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"can't list {folder}, as no folder is there.")
    if is_checkpoint(folder):
        raise OptionError(f"can't list {folder}, which is a checkpoint; 'eventrunner show' says what is in it.")
    runs, unreadable = [], {}
    for path in find_runs(folder):
        try:
            runs.append(read(path))
        except OSError as error:  # somebody else's, or it was removed just now
            unreadable[str(path)] = str(error)
    runs.sort(key=lambda run: (run.started, run.path))
    out.data({"runs": [run.as_dict() for run in runs], "unreadable": unreadable})
    if [run.path for run in runs] == [folder]:
        out.line(f"{folder}: {runs[0].ended}")
        rows = runs[0].checkpoints
        bad = [number for number, one in enumerate(rows) if one.problem]
        head = ("CHECKPOINT", "STEP", "EPOCH", "SIZE", "CREATED", "")
        out.table(head, [one.row() for one in rows], right=head[1:4], bad=bad)
    elif runs:
        head = ("RUN", "STARTED", "SAVES", "SIZE", "BEST", "ENDED")
        bad = [number for number, run in enumerate(runs) if any(one.problem for one in run.checkpoints)]
        out.table(head, [run.row() for run in runs], right=head[2:4], bad=bad)
    elif not unreadable:
        out.line(f"no run is below {folder}")
    for reason in unreadable.values():
        out.line(f"unreadable: {reason}", bad=True)
    return 0


def show(path: Path, tensors: bool, out: Output) -> int:
    """Print what is known of a run or of a checkpoint."""
    if is_checkpoint(path):
        _show_checkpoint(path, tensors, out)
    elif is_run(path):
        _show_run(read(path), out)
    else:
        raise missing_checkpoint(path)
    return 0


def _show_run(run: Run, out: Output) -> None:
    resumes = resumes_in(run.path)
    out.data({**run.as_dict(), "run": dict(run.facts), "resumes": resumes})
    facts = run.facts
    newest = [one.path.name for one in run.checkpoints if not one.problem]
    git = facts.get("git")
    out.line(str(run.path))
    out.fields(
        {
            "command": " ".join(map(str, facts["argv"])) if isinstance(facts.get("argv"), list) else "",
            "experiment": str(facts.get("experiment_name") or ""),
            "started": _dated(run.started),
            "ended": run.ended,
            "seed": str(facts.get("seed", "")),
            "versions": _pairs(facts.get("versions")),
            "git": f"{git.get('commit')}{', with changes' if git.get('dirty') else ''}"
            if isinstance(git, dict)
            else "",
            "resumes": "; ".join(f"at step {one['step']}" for one in resumes),
            "checkpoints": f"{len(run.checkpoints)}, {size(run.nbytes)}" + (f", newest {newest[-1]}" if newest else ""),
            "best": scores(run.best),
            "damaged": ", ".join(one.path.name for one in run.checkpoints if one.problem),
        }
    )


def _show_checkpoint(path: Path, tensors: bool, out: Output) -> None:
    manifest = read_manifest(path)
    listed = [
        {"name": one.name, "dtype": one.dtype, "shape": one.shape, "files": _files(one)} for one in manifest.tensors
    ]
    files = {name: {"size": entry.size, "digest": entry.digest} for name, entry in manifest.files.items()}
    head = {"step": manifest.step, "epoch": manifest.epoch, "created": manifest.created, "format": manifest.format}
    facts = {**head, "versions": dict(manifest.versions), "meta": dict(manifest.meta), "files": files}
    problem = problem_of(path, manifest)
    out.data({"path": str(path), **facts, "problem": problem, **({"tensors": listed} if tensors else {})})
    out.line(str(path))
    out.fields(
        {
            "step": str(manifest.step),
            "epoch": str(manifest.epoch),
            "created": _dated(datetime.fromisoformat(manifest.created)),
            "versions": _pairs(manifest.versions),
            **{str(key): _pairs(value) for key, value in manifest.meta.items()},
            "tensors": f"{len(listed)}" + ("" if tensors else "; --tensors lists them") if listed else "",
            "damaged": problem,
        }
    )
    out.line()
    rows = [(name, size(entry.size), entry.digest) for name, entry in manifest.files.items()]
    out.table(("FILE", "SIZE", "XXH3-128"), rows, right=("SIZE",))
    if tensors:
        out.line()
        held = [(one.name, one.dtype, _shape(one.shape), ", ".join(_files(one))) for one in manifest.tensors]
        out.table(("TENSOR", "DTYPE", "SHAPE", "FILE"), held)


def _files(tensor: TensorEntry) -> list[str]:
    return list(dict.fromkeys(chunk.file for chunk in tensor.chunks))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _dated(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({ago(moment)})"


def _pairs(value: object) -> str:
    return ", ".join(f"{key} {shown(one)}" for key, one in value.items()) if isinstance(value, Mapping) else str(value)

"""Which runs and checkpoints there are, and what is known of each without reading it through. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eventrunner.checkpoint.manifest import MANIFEST_NAME, Manifest
from eventrunner.checkpoint.verify import FINITE, PUBLISHED, check_files, is_checkpoint, listing
from eventrunner.errors import CheckpointError
from eventrunner.report.commands.output import ago
from eventrunner.session.rundir import RUN_FILE, abandoned_in, read_run
from eventrunner.units import shown, size

__all__ = ["Checkpoint", "Run", "checkpoints_of", "find_runs", "is_run", "problem_of", "read", "scores"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as far as it is known without reading its files.

    Attributes:
        path: Its folder.
        manifest: None where there is none that can be read.
        sizes: By device and inode, the bytes of its files: what is saved twice under one name may be there once.
        problem: Why it is no whole checkpoint; empty where the names and sizes of its files are right.
        note: What else sets it apart.
    """

    path: Path
    manifest: Manifest | None
    sizes: Mapping[tuple[int, int], int]
    problem: str
    note: str

    @property
    def state(self) -> str:
        """``whole`` by names and sizes, ``damaged``, or ``incomplete`` without a manifest."""
        if not self.problem:
            return "whole"
        return "damaged" if os.path.lexists(self.path / MANIFEST_NAME) else "incomplete"

    @property
    def best(self) -> dict[str, float]:
        """The metrics by which it is the best, with its scores."""
        said = self.manifest.meta.get("best") if self.manifest is not None else None
        return {str(name): score for name, score in said.items()} if isinstance(said, dict) else {}

    def as_dict(self) -> dict[str, Any]:
        """Return what is known of it, for JSON."""
        known = self.manifest
        facts = {"step": known.step, "epoch": known.epoch, "created": known.created} if known is not None else {}
        bytes_ = sum(self.sizes.values())
        end = {"size": bytes_, "best": self.best, "state": self.state, "problem": self.problem, "note": self.note}
        return {"path": str(self.path), **facts, **end}

    def row(self) -> tuple[str, ...]:
        """Return its cells in a table."""
        known = self.manifest
        step, epoch, created = (
            (str(known.step), str(known.epoch), ago(datetime.fromisoformat(known.created))) if known else ("", "", "")
        )
        best = f"best {scores(self.best)}" if self.best else ""
        problem = f"{self.state}: {self.problem}" if self.problem else ""
        notes = "; ".join(note for note in (problem, best, self.note) if note)
        return self.path.name, step, epoch, size(sum(self.sizes.values())), created, notes


@dataclass(frozen=True, slots=True)
class Run:
    """A folder with a run in it, or with the checkpoints of a loop that wrote no run.json.

    Attributes:
        path: The folder.
        facts: What run.json says; empty without one, or where it can't be read.
        ended: How it ended, in a few words.
        started: When the run began, or else when its first checkpoint was made, or its folder changed.
        checkpoints: The oldest first, and behind them those without a manifest.
    """

    path: Path
    facts: Mapping[str, Any]
    ended: str
    started: datetime
    checkpoints: tuple[Checkpoint, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its checkpoints."""
        return sum({key: count for one in self.checkpoints for key, count in one.sizes.items()}.values())

    @property
    def best(self) -> dict[str, float]:
        """The best scores, the newest of each metric."""
        return {name: score for one in self.checkpoints for name, score in one.best.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return what is known of it, for JSON."""
        return {
            "path": str(self.path),
            "started": self.started.isoformat(),
            "ended": self.facts.get("ended", ""),
            "seed": self.facts.get("seed"),
            "size": self.nbytes,
            "best": self.best,
            "checkpoints": [one.as_dict() for one in self.checkpoints],
        }

    def row(self) -> tuple[str, ...]:
        """Return its cells in a table."""
        bad = [one.state for one in self.checkpoints if one.problem]
        notes = [self.ended, *(f"{bad.count(state)} {state}" for state in dict.fromkeys(bad))]
        saves = str(len(self.checkpoints))
        return str(self.path), ago(self.started), saves, size(self.nbytes), scores(self.best), "; ".join(notes)


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield *folder* and those below it that hold a run or checkpoints; links and hidden ones are passed over."""
    for where, folders, _ in os.walk(folder):
        if is_run(Path(where)):
            yield Path(where)
        folders[:] = [name for name in folders if not name.startswith(".") and not is_checkpoint(Path(where, name))]


def is_run(folder: Path) -> bool:
    """Return whether *folder* holds a run, or checkpoints that were made without one."""
    return (folder / RUN_FILE).is_file() or any(folder.glob(f"*/{MANIFEST_NAME}"))


def read(folder: Path) -> Run:
    """Return what is known of the run in *folder*."""
    run, checkpoints = read_run(folder), tuple(checkpoints_of(folder))
    facts = run or {}
    unread = f"no {RUN_FILE}" if run is None else f"{RUN_FILE} can't be read"
    ended = str(facts.get("ended") or "running or killed") if facts else unread
    created = [one.manifest.created for one in checkpoints if one.manifest is not None]
    said = facts.get("started")
    started = next((_moment(text) for text in (said, *created) if _moment(text)), None)
    return Run(folder, facts, ended, started or datetime.fromtimestamp(folder.stat().st_mtime, UTC), checkpoints)


def checkpoints_of(folder: Path) -> Iterator[Checkpoint]:
    """Yield the checkpoints in *folder*, the oldest first, and then what has no manifest that can be read."""
    found, abandoned = listing(folder), abandoned_in(folder)
    for path, manifest in found.complete:
        notes = {
            "published copy": manifest.meta.get(PUBLISHED),
            "has inf or nan": manifest.meta.get(FINITE) is False,
            "left behind by a resume": abandoned(manifest),
        }
        note = ", ".join(text for text, holds in notes.items() if holds)
        yield Checkpoint(path, manifest, _sizes(path), problem_of(path, manifest), note)
    for path, reason in found.unreadable:
        yield Checkpoint(path, None, _sizes(path), _within(path, reason), "")


def problem_of(path: Path, manifest: Manifest) -> str:
    """Return what is wrong with the names and sizes of a checkpoint's files; nothing if they are right."""
    try:
        check_files(path, manifest, ())
    except (CheckpointError, OSError) as error:
        return _within(path, str(error))
    return ""


def _within(path: Path, reason: str) -> str:
    """Return a reason as it reads next to the checkpoint's name."""
    return reason.replace(f"{path}{os.sep}", "").removesuffix(".")


def _sizes(path: Path) -> dict[tuple[int, int], int]:
    try:
        with os.scandir(path) as entries:
            found = [entry.stat(follow_symlinks=False) for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:  # a run that writes has deleted it by now
        return {}
    return {(one.st_dev, one.st_ino): one.st_size for one in found}


def _moment(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def scores(best: Mapping[str, float]) -> str:
    """Return scores for a reader."""
    return ", ".join(f"{name} {shown(score)}" for name, score in best.items())

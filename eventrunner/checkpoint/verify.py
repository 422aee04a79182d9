"""Which checkpoints a folder holds, and whether their bytes are the ones that were committed. Needs no torch."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventrunner.checkpoint.manifest import (
    MANIFEST_NAME,
    PTH_NAME,
    STATE_NAME,
    FileEntry,
    Manifest,
    is_plain_name,
    read_manifest,
)
from eventrunner.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, did_you_mean, listed
from eventrunner.files.reader import check_digest

__all__ = [
    "FINITE",
    "PUBLISHED",
    "Found",
    "Listing",
    "check_files",
    "find_newest",
    "is_checkpoint",
    "is_of_use",
    "listing",
    "missing_checkpoint",
    "newest_finite",
    "verify_checkpoint",
]

PUBLISHED = "published"
"""The key in a manifest's meta that marks a copy made for others: it has only some parts of a run's state."""

FINITE = "finite"
"""The key in a manifest's meta that is False where the weights aren't numbers: no run should go on from them."""

_MARKS = (MANIFEST_NAME, STATE_NAME, PTH_NAME)
_SHOWN = 8
_LOOKS = 20  # at a folder whose newest is gone each time that it is read


@dataclass(frozen=True, slots=True)
class Found:
    """The newest checkpoint that is sound, or None, those that were passed over on the way, and what was read of it."""

    path: Path | None
    rejected: tuple[tuple[Path, str], ...]
    content: Any = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The checkpoints of a folder, oldest first, and the folders that look like one but have no readable manifest."""

    complete: tuple[tuple[Path, Manifest], ...]
    unreadable: tuple[tuple[Path, str], ...]


def is_checkpoint(path: Path) -> bool:
    """Return whether *path* is a folder with a file that a checkpoint has; it may be damaged, or another's."""
    return path.is_dir() and any(os.path.lexists(path / mark) for mark in _MARKS)


def listing(folder: Path) -> Listing:
    """Return the checkpoints directly in *folder*, ordered by time and step, found by their manifests alone.

    Symbolic links, hidden names and other folders are passed over; a folder that doesn't exist has none.
    """
    complete, unreadable = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_plain_name(path.name) or path.is_symlink() or not is_checkpoint(path):
            continue
        try:
            complete.append((path, read_manifest(path)))
        except (CheckpointError, OSError) as error:
            unreadable.append((path, str(error)))
    # By time first: a run that was taken back to an older step has abandoned the later ones.
    complete.sort(key=lambda pair: (datetime.datetime.fromisoformat(pair[1].created), pair[1].step))
    return Listing(tuple(complete), tuple(unreadable))


def verify_checkpoint(path: str | os.PathLike[str], *, digests: bool = True) -> Manifest:
    """Check that the folder at *path* is the checkpoint that was committed there, and return its manifest.

    Costs about as much as reading the files once; with ``digests=False`` only their names and sizes are compared.

    Raises:
        CheckpointNotFoundError: there is no checkpoint at *path*.
        CorruptCheckpointError: a file is missing, is there without being listed, is not a plain file, or differs in
            size or digest; the message names it.
        CheckpointError: of a format that this version doesn't know.
    """
    folder = Path(path)
    if not is_checkpoint(folder):
        raise missing_checkpoint(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest, manifest.files if digests else ())
    return manifest


def check_files(folder: Path, manifest: Manifest, digested: Collection[str]) -> None:
    """Compare the names and sizes of all files in *folder* with *manifest*, and the digests of those *digested*.

    Raises:
        CorruptCheckpointError: they differ.
    """
    present = {entry.name for entry in folder.iterdir()} - {MANIFEST_NAME}
    if extra := present - set(manifest.files):
        raise CorruptCheckpointError(f"{folder / min(extra)} is not part of the checkpoint, by its {MANIFEST_NAME}.")
    for name, entry in manifest.files.items():
        _check_size(folder / name, entry)
    for name in digested:
        check_digest(folder / name, manifest.files[name].digest)


def _check_size(path: Path, entry: FileEntry) -> None:
    size = path.lstat().st_size if os.path.lexists(path) else None
    if size is None:
        raise CorruptCheckpointError(f"{path} is missing.")
    if path.is_symlink() or not path.is_file():
        raise CorruptCheckpointError(f"{path} is not a plain file.")
    if size != entry.size:
        raise CorruptCheckpointError(f"{path} has {size} bytes, and {entry.size} were committed.")


def find_newest(
    folder: str | os.PathLike[str],
    abandoned: Callable[[Manifest], bool] = lambda manifest: False,
    read: Callable[[Path], Any] = verify_checkpoint,
) -> Found:
    """Find the newest checkpoint in *folder* whose every byte is as committed; pass over damaged ones, and name them.

    Published copies aren't looked at, as no run can go on from them, nor those that *abandoned* is true of. One whose
    weights aren't numbers is passed over and named, too. The file ``last_checkpoint`` is not asked: it is a hint.

    Args:
        folder: Where the checkpoints are.
        abandoned: Whether a checkpoint is to be passed over without a word.
        read: Called with each one that is tried; raises CheckpointError or OSError where it is damaged. What it returns
            is ``content``: ``load_checkpoint``, which verifies as it reads, so reads the bytes once. By default each is
            read through and its manifest returned.
    """
    # A process that writes may delete the newest before it is read; then a newer one is there, which wasn't listed.
    found = Found(None, ())
    for _ in range(_LOOKS):
        before = _entries(Path(folder))
        listed = listing(Path(folder))
        found = _newest_of_those(listed, abandoned, read)
        gone = {name for name, _ in before - _entries(Path(folder))}
        if not gone - _older_than(found.path, listed):
            break
    return found


def _older_than(path: Path | None, listed: Listing) -> set[str]:
    paths = [each for each, _ in listed.complete]
    return {each.name for each in paths[: paths.index(path)]} if path is not None else set()


def _newest_of_those(listed: Listing, abandoned: Callable[[Manifest], bool], read: Callable[[Path], Any]) -> Found:
    rejected = list(listed.unreadable)
    for path, manifest in reversed(listed.complete):
        if manifest.meta.get(PUBLISHED) or abandoned(manifest):
            continue
        if manifest.meta.get(FINITE) is False:
            rejected.append((path, "its weights have an inf or a nan in them; to go on from it, name it"))
            continue
        try:
            content = read(path)
        except (CheckpointError, OSError) as error:
            rejected.append((path, str(error)))
        else:
            return Found(path, tuple(rejected), content)
    return Found(None, tuple(rejected))


def newest_finite(folder: Path) -> str:
    """Return the name of the newest checkpoint that a run could go on from, by the manifests; empty without one."""
    found = [path.name for path, each in listing(folder).complete if is_of_use(each)]
    return found[-1] if found else ""


def is_of_use(manifest: Manifest) -> bool:
    """Return whether a run could go on from a checkpoint: it is no published copy, and its weights are numbers."""
    return not manifest.meta.get(PUBLISHED) and manifest.meta.get(FINITE) is not False


def _entries(folder: Path) -> set[tuple[str, int]]:
    """Return what is visible in *folder*, by name and inode, as a checkpoint may be replaced by one of its name."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            (entry.name, entry.inode())
            for entry in entries
            if is_plain_name(entry.name) and entry.is_dir(follow_symlinks=False)
        }


def missing_checkpoint(path: Path) -> CheckpointNotFoundError:
    """Return the error for a *path* without a checkpoint: what is there, and which checkpoints are near."""
    what = f"{path} is no checkpoint, as it has no {MANIFEST_NAME}" if path.is_dir() else f"nothing is at {path}"
    for folder in (path, path.parent):
        if near := [found.name for found, _ in listing(folder).complete]:
            end = did_you_mean(path.name, near) or "."
            return CheckpointNotFoundError(f"{what}; the checkpoints in {folder} are {_newest_of(near)}{end}")
    return CheckpointNotFoundError(f"{what}, and there is no checkpoint in {path.parent}.")


def _newest_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} older" if len(names) > _SHOWN else ""
    return listed(names[-_SHOWN:]) + more

"""The folder in which checkpoints become durable, whole or not at all.

Order of a save: a hidden folder beside the target → its files, each synced → the manifest, synced → the folder synced
→ renamed to its name → the parent synced → the hint ``last_checkpoint``. Nothing is visible under a checkpoint's name
before all of it is on the disk, and whatever fails before the rename leaves everything older as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from eventrunner.checkpoint.contents import contents_of
from eventrunner.checkpoint.manifest import (
    MANIFEST_NAME,
    STATE_NAME,
    Manifest,
    is_plain_name,
    plain_json,
    read_manifest,
    write_manifest,
)
from eventrunner.checkpoint.plan import encode
from eventrunner.checkpoint.staging import StagedCheckpoint, stage
from eventrunner.checkpoint.verify import (
    PUBLISHED,
    find_newest,
    is_checkpoint,
    listing,
    missing_checkpoint,
    verify_checkpoint,
)
from eventrunner.errors import CheckpointError, CheckpointNotFoundError, NoSpaceError, OptionError
from eventrunner.files import disk
from eventrunner.version import __version__

__all__ = ["HINT_NAME", "Store"]

HINT_NAME = "last_checkpoint"
"""A text file with the name of the checkpoint that was saved last; read by people and scripts, never by a resume."""

_OWN_MARKS = (MANIFEST_NAME, STATE_NAME)
_NOT_SAVED = "was not saved; older ones are as they were"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LONGEST_NAME = 200  # bytes; most file systems allow 255, and a hidden name has 30 more
_LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)
_TICK = datetime.timedelta(microseconds=1)
_FAR_AHEAD = datetime.datetime.max.replace(tzinfo=datetime.UTC) - _TICK
_LEFTOVER = re.compile(r"\.(?P<kind>tmp|old|trash)-(?P<name>.+)-\d+-[0-9a-f]{8}")

_in_use: set[str] = set()
# Hidden names that this process is working on. Of the module, as two stores may share a folder.


class Store:
    """The checkpoints in one folder. Making a Store touches nothing; the folder is made by the first save.

    One process writes to a folder at a time; reading meanwhile is safe, as what is visible is complete.

    Attributes:
        folder: Where the checkpoints lie, each a folder of its own.
        abandoned: Whether nothing is to be committed or deleted any more, though a writer may still be at it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()  # whatever becomes of the working directory
        self.abandoned = False
        self._newest: datetime.datetime | None = None
        self._is_named = False  # whether the folder's own name, and those above it, are on the disk

    def save(
        self,
        name: str,
        tree: Mapping[str, Any],
        *,
        step: int,
        epoch: int = 0,
        meta: Mapping[str, Any] | None = None,
        format: str = "safetensors",  # noqa: A002
    ) -> Path:
        """Commit *tree* as the checkpoint *name*: :meth:`commit` with a staged copy of it.

        The tree's tensors are copied first, which costs their size in memory until this returns.

        Args:
            name: As of :meth:`commit`, and so are *step*, *epoch* and *meta*.
            tree: What :func:`eventrunner.checkpoint.plan.encode` takes.
            step: See *name*.
            epoch: See *name*.
            meta: See *name*.
            format: Its *tree_format*.

        Returns:
            The path of the checkpoint.

        Raises:
            CheckpointError: *tree* can't be held; otherwise as :meth:`commit`.
        """
        staged = stage(encode(tree))
        return self.commit(name, staged, step=step, epoch=epoch, meta=meta, tree_format=format)

    def commit(
        self,
        name: str,
        staged: StagedCheckpoint,
        *,
        step: int,
        epoch: int = 0,
        meta: Mapping[str, Any] | None = None,
        tree_format: str = "safetensors",
    ) -> Path:
        """Commit *staged* as the checkpoint *name*; when this returns, it survives a power cut.

        A checkpoint that has the name already, as when a resumed run repeats a step, is replaced. May be called on
        any thread; others run meanwhile, but for the pickling of ``pth``.

        Args:
            name: Of the new folder; any plain file name that doesn't begin with a dot.
            staged: What to write; its memory must not change until this returns.
            step: Iterations that the state has completed; orders the checkpoints.
            epoch: Epochs that it has completed.
            meta: Anything to note in the manifest; plain JSON. With a true ``"published"`` it is a copy for others:
                the hint stays as it is, and no run is resumed from it by itself.
            tree_format: ``"safetensors"``, or ``"pth"`` for one file of torch.save, ``checkpoint.pth``, which other
                programs can read and is never read here but with ``weights_only=True``.

        Returns:
            The path of the checkpoint.

        Raises:
            OptionError: *name*, *step*, *epoch*, *meta* or *tree_format* is not of that kind.
            CheckpointError: something that is no checkpoint has the name, or the tree can't be held by *tree_format*.
            NoSpaceError: the disk is full, or would be; a note on it says what has become of the checkpoint.
            OSError: the disk failed; with such a note too.
        """
        _check_name(name)
        step, epoch, plain_meta = _natural("step", step), _natural("epoch", epoch), plain_json(meta or {})
        contents = contents_of(staged, tree_format)
        with _noted(name, self.folder, _NOT_SAVED):
            self._check_space(name, contents.nbytes)
        with self._committing(name, contents.nbytes) as temp:
            manifest = Manifest(
                step=step,
                epoch=epoch,
                created=self._moment().isoformat(),
                versions=_versions(),
                files=contents.write(temp),
                tensors=contents.tensors,
                meta=plain_meta,
            )
            write_manifest(temp, manifest)
        if not plain_meta.get(PUBLISHED):
            with _noted(name, self.folder, "is committed; what failed came after", contents.nbytes):
                self._point_at(name)
        return self.folder / name

    def link(self, name: str, source: str, *, meta: Mapping[str, Any] | None = None) -> Path:
        """Commit the checkpoint *source* under another name, without writing its files again.

        The files are hard links (copies where the file system has none), so a link outlives its source and costs
        no more space. The manifest is its own, with *meta* merged into that of the source. A checkpoint that has
        the name already is replaced. The hint stays as it is.

        Returns:
            The path of the link.

        Raises:
            OptionError: *name* or *meta* can't be, or both names are the same.
            CheckpointError: there is no whole checkpoint *source*, or something that is no checkpoint has the name.
            OSError: as in :meth:`save`.
        """
        _check_name(name)
        if name == source:
            raise OptionError(f"can't link {name!r} to itself; a link has a name of its own.")
        with _noted(name, self.folder, _NOT_SAVED):
            origin = self.path(source)
            known = verify_checkpoint(origin, digests=False)
        linked = dataclasses.replace(known, meta={**known.meta, **plain_json(meta or {})})
        with self._committing(name) as temp:
            for file in known.files:
                disk.link(origin / file, temp / file)
            write_manifest(temp, linked)
        return self.folder / name

    def delete(self, name: str) -> None:
        """Remove the checkpoint *name*: it is gone at once, and its space when this returns.

        Raises:
            OptionError: *name* can't be a checkpoint's.
            CheckpointError: there is nothing of that name that is a checkpoint.
            OSError: the disk failed; a note on it says what has become of the checkpoint.
        """
        _check_name(name)
        path = self.folder / name
        if not _is_own(path):
            raise missing_checkpoint(path)
        self._check_wanted(name)
        with self._hidden("trash", name) as trash:
            with _noted(name, self.folder, "was not deleted"):
                disk.rename(path, trash)
            with _noted(name, self.folder, "is deleted, but not all of it may be gone"):
                # Else a power cut could bring the name back, with some of the files.
                disk.fsync_folder(self.folder)
                disk.remove_tree(trash)

    def names(self) -> list[str]:
        """Return the names of all checkpoints with a readable manifest, by time and step, the newest last."""
        return [path.name for path, _ in listing(self.folder).complete]

    def path(self, name: str) -> Path:
        """Return the path of the checkpoint *name*, whose manifest is read; its files are not.

        Raises:
            CheckpointNotFoundError: there is none.
            CorruptCheckpointError: its manifest is not as it was written.
        """
        path = self.folder / name
        if not is_plain_name(name) or path.is_symlink() or not is_checkpoint(path):
            raise missing_checkpoint(path)
        read_manifest(path)
        return path

    def newest_valid(self) -> Path | None:
        """Return the newest checkpoint that verifies; :func:`find_newest` also says which were passed over, and why."""
        return find_newest(self.folder).path

    def clean(self) -> list[Path]:
        """Remove what a process that died left of a save or a delete, and return the paths that were removed.

        A checkpoint that was being replaced when the process died is put back. Call it before looking for the newest,
        and while no other process writes to the folder, which :class:`FolderLock` sees to (but not on a file system
        without locks): the process in a hidden name isn't looked for, as another may have its number by now, in a
        container above all. Only this store's own hidden
        names are touched, and none that this process is working on.
        """
        matches = map(_LEFTOVER.fullmatch, self._listed())
        left = [match for match in matches if match is not None and match.string not in _in_use]
        if left:
            # What was renamed last may not be on the disk. Without it, what is removed here would be needed.
            disk.fsync_folder(self.folder)
        for name in sorted({match["name"] for match in left if match["kind"] == "old"}):
            self._restore(name, [match.string for match in left if match["name"] == name and match["kind"] == "old"])
        removed = [self.folder / match.string for match in left if os.path.lexists(self.folder / match.string)]
        for path in removed:
            disk.remove_tree(path)
        return removed

    def _listed(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []

    def _restore(self, name: str, replaced: list[str]) -> None:
        """Put back the newest of what was being replaced as *name*, if nothing has taken its place."""
        if _is_name(name) and not os.path.lexists(self.folder / name):
            whole = [path for path in map(self.folder.joinpath, replaced) if _is_whole(path)]
            if whole:
                disk.rename(max(whole, key=_created), self.folder / name)
                disk.fsync_folder(self.folder)

    def _moment(self) -> datetime.datetime:
        """Now, but after the time of every checkpoint here: they are ordered by it, and a clock may be put back."""
        if self._newest is None:
            times = (datetime.datetime.fromisoformat(manifest.created) for _, manifest in listing(self.folder).complete)
            self._newest = max(times, default=_LONG_AGO)
        self._newest = max(datetime.datetime.now(datetime.UTC), min(self._newest, _FAR_AHEAD) + _TICK)
        return self._newest

    def _check_space(self, name: str, needed: int) -> None:
        free = disk.free_space(self.folder)
        if free is not None and needed > free:
            raise _no_space(name, self.folder, needed, free, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _committing(self, name: str, needed: int = 0) -> Iterator[Path]:
        """Yield a hidden folder that becomes the checkpoint *name* if the body succeeds, and otherwise vanishes."""
        final = self.folder / name
        exists = os.path.lexists(final)
        if exists and not _is_own(final):
            raise CheckpointError(f"can't save checkpoint {name!r}, as {final} is there and is no checkpoint; move it.")
        with self._hidden("tmp", name) as temp, self._hidden("old", name) as old:
            with _noted(name, self.folder, _NOT_SAVED, needed), _undone_on_failure() as undo:
                self._make_folder()
                undo.callback(_discard, temp)
                disk.make_folder(temp)
                yield temp
                disk.fsync_folder(temp)
                self._check_wanted(name)
                if exists:
                    undo.push(_putting_back(old, final))
                    disk.rename(final, old)
                    self._check_wanted(name)
                disk.rename(temp, final)
            with _noted(name, self.folder, "is in its place, but may not survive a power cut", needed):
                disk.fsync_folder(self.folder)
            if exists:
                with _noted(name, self.folder, "is committed; what failed came after", needed):
                    disk.remove_tree(old)

    def _check_wanted(self, name: str) -> None:
        if self.abandoned:
            raise CheckpointError(f"checkpoint {name!r} was given up while the disk was waited for; begin again.")

    def _make_folder(self) -> None:
        """Make the folder; what made it, or one above it, may not have synced that, so that is done once."""
        disk.make_folders(self.folder)
        if not self._is_named:
            disk.fsync_parents(self.folder)
            self._is_named = True

    @contextlib.contextmanager
    def _hidden(self, kind: str, name: str) -> Iterator[Path]:
        """Return a path that isn't there yet, for this process alone, and that its :meth:`clean` spares."""
        path = self.folder / f".{kind}-{name}-{os.getpid()}-{secrets.token_hex(4)}"
        _in_use.add(path.name)
        try:
            yield path
        finally:
            _in_use.discard(path.name)

    def _point_at(self, name: str) -> None:
        with self._hidden("tmp", HINT_NAME) as temp, _undone_on_failure() as undo:
            undo.callback(_discard, temp)
            disk.write_bytes(temp, name.encode())
            disk.fsync_file(temp)
            disk.rename(temp, self.folder / HINT_NAME)
        disk.fsync_folder(self.folder)


def _is_name(name: str) -> bool:
    return is_plain_name(name) and name != HINT_NAME and len(os.fsencode(name)) <= _LONGEST_NAME


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise OptionError(
            f"{name!r} can't name a checkpoint; a name is a plain file name of at most {_LONGEST_NAME} bytes, without "
            f"separators or a dot in front, and not {HINT_NAME!r}."
        )


def _natural(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"{what}={value!r} is not a number of completed iterations or epochs: an int of at least 0.")
    return int(value)


def _is_own(path: Path) -> bool:
    # Others write a checkpoint.pth too: alone it is not enough to be replaced or deleted.
    return path.is_dir() and not path.is_symlink() and any(os.path.lexists(path / mark) for mark in _OWN_MARKS)


def _is_whole(path: Path) -> bool:
    if not _is_own(path):
        return False
    try:
        verify_checkpoint(path, digests=False)
    except CheckpointError:
        return False
    return True


def _created(path: Path) -> datetime.datetime:
    return datetime.datetime.fromisoformat(read_manifest(path).created)


def _versions() -> dict[str, str]:
    return {"eventrunner": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


@contextlib.contextmanager
def _noted(name: str, folder: Path, what: str, needed: int | None = None) -> Iterator[None]:
    """Say on an OSError which checkpoint it concerns, and what has become of it.

    A full disk is a NoSpaceError, where bytes were *needed*.
    """
    try:
        yield
    except CheckpointNotFoundError:  # nothing of the disk's, though it is an OSError
        raise
    except OSError as error:
        note = f"The checkpoint {name!r} in {folder} {what}."
        if needed is not None and error.errno in _NO_ROOM and not isinstance(error, NoSpaceError):
            full = _no_space(name, folder, needed, disk.free_space(folder) or 0, os.strerror(error.errno))
            for each in (*getattr(error, "__notes__", ()), note):
                full.add_note(each)
            raise full from error
        error.add_note(note)
        raise


def _no_space(name: str, folder: Path, needed: int, free: int, why: str) -> NoSpaceError:
    return NoSpaceError(
        f"no space for checkpoint {name!r} in {folder}, which needs {needed} bytes where {free} are free ({why}); make "
        "room there, or keep fewer checkpoints.",
        needed,
        free,
    )


@contextlib.contextmanager
def _undone_on_failure() -> Iterator[contextlib.ExitStack]:
    """Yield a stack whose callbacks run, last first, only if the body fails."""
    with contextlib.ExitStack() as undo:
        yield undo
        undo.pop_all()


def _discard(path: Path) -> None:
    # The failure that led here is the one to report; what stays is removed by clean().
    with contextlib.suppress(OSError):
        disk.remove_tree(path)


def _putting_back(old: Path, final: Path) -> Callable[..., None]:
    """For an exit stack: puts a checkpoint back that was to be replaced, or notes on the failure that it can't be."""

    def put_back(kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if os.path.lexists(old):
                disk.rename(old, final)
        except OSError as also:
            if error is not None:
                error.add_note(
                    f"The one that it was to replace couldn't be put back ({also}): it is {old.name}, "
                    f"and the next start, or clean(), will do so."
                )

    return put_back

"""What the system calls of a training must be in which order for its saves to survive a power cut."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tracing import Call, descriptor_path, quoted

_WRITES = ("write", "pwrite64", "writev", "ftruncate", "copy_file_range", "sendfile")
_SYNCS = ("fsync", "fdatasync")
ORDERED = (*_WRITES, *_SYNCS, "openat", "link", "linkat", "rename", "renameat", "renameat2")
"""The calls whose order matters."""

_MANIFEST, _HINT = "MANIFEST.json", "last_checkpoint"
_TEMP = re.compile(r"\.tmp-(?P<name>.+)-\d+-[0-9a-f]{8}")


class Saves:
    """The saves that a trace shows, by the renames that commit them.

    Attributes:
        committed: Those renames.
    """

    def __init__(self, folder: Path, notes: Path, keep: int, calls: Sequence[Call]) -> None:
        self._folder, self._notes, self._keep = str(folder), str(notes), keep
        self._calls = [call for call in calls if not call.result.startswith("-")]
        self._renames = [call for call in self._calls if call.name.startswith("rename")]
        self.committed = [call for call in self._renames if self._name_of(call) not in ("", _HINT)]

    def wrong(self) -> list[str]:
        """What is out of order."""
        found = [f"{self._name_of(each)}: {what}" for each in self.committed for what in self._in_save(each)]
        return [*found, *self._told_too_early(), *self._pointed_too_early(), *self._deleted_too_early()]

    def _name_of(self, rename: Call) -> str:
        """The name that is given to what was hidden before; empty for other renames."""
        source, target = quoted(rename.args)[:2]
        match = _TEMP.fullmatch(os.path.basename(source))
        return match["name"] if match and os.path.dirname(target) == self._folder else ""

    def _in_save(self, rename: Call) -> Iterable[str]:
        temp = quoted(rename.args)[0]
        files = {path: self._written(path) for path in self._created(temp)}
        synced = {path: self._synced(path, after.ended, rename.begun) for path, after in files.items()}
        yield from (
            f"{os.path.basename(path)} isn't synced after its last write" for path, end in synced.items() if end is None
        )
        manifest = os.path.join(temp, _MANIFEST)
        if manifest not in files:
            yield "it has no manifest"
            return
        ends = [end for path, end in synced.items() if path != manifest and end is not None]
        if any(end > self._opened(manifest) for end in ends):
            yield "the manifest is written before all else is synced"
        last = max(
            call.ended
            for call in self._calls
            if call.begun < rename.begun
            and f'"{temp}/' in call.args + "/"
            and call.name in ("openat", "link", "linkat")
        )
        last = max([last, *(end for end in synced.values() if end is not None)])
        if self._synced(temp, last, rename.begun) is None:
            yield "its folder isn't synced after all that is in it"
        if self._durable(rename) is None:
            yield "the folder that has its name isn't synced"

    def _created(self, temp: str) -> list[str]:
        made = [quoted(call.args)[0] for call in self._calls if call.name == "openat" and "O_CREAT" in call.args]
        return [path for path in made if os.path.dirname(path) == temp]

    def _written(self, path: str) -> Call:
        return [call for call in self._calls if call.name in (*_WRITES, "openat") and self._is_on(call, path)][-1]

    def _opened(self, path: str) -> int:
        return next(call.begun for call in self._calls if call.name == "openat" and self._is_on(call, path))

    def _is_on(self, call: Call, path: str) -> bool:
        if call.name == "openat":
            return "O_CREAT" in call.args and quoted(call.args)[0] == path
        return descriptor_path(call.args) == path

    def _synced(self, path: str, after: int, before: int) -> int | None:
        """The end of a sync of *path* that lies between."""
        syncs = (call for call in self._calls if call.name in _SYNCS and descriptor_path(call.args) == path)
        return next((call.ended for call in syncs if call.begun > after and call.ended < before), None)

    def _durable(self, rename: Call) -> int | None:
        """When the name that *rename* gave is on the disk."""
        return self._synced(self._folder, rename.ended, self._calls[-1].ended + 1)

    def _told_too_early(self) -> Iterable[str]:
        for call in self._calls:
            words = quoted(call.args)[:1] if call.name == "write" and descriptor_path(call.args) == self._notes else []
            _, step, name = [*(words or [""])[0].replace("\\n", "").split(), "", "", ""][:3]
            if words and words[0].startswith("told ") and not self._is_durable(name, call.begun):
                yield f"{name} is told of at step {step} before its name is on the disk"

    def _pointed_too_early(self) -> Iterable[str]:
        for call in self._renames:
            if self._name_of(call) == _HINT:
                temp = quoted(call.args)[0]
                written = self._written(temp)
                name = quoted(
                    next(each.args for each in self._calls if each.name == "write" and self._is_on(each, temp))
                )[0]
                if not self._is_durable(name, call.begun):
                    yield f"the hint names {name} before its name is on the disk"
                if self._synced(temp, written.ended, call.begun) is None:
                    yield f"the hint that names {name} isn't synced before it is in its place"

    def _is_durable(self, name: str, at: int) -> bool:
        """Whether it has been committed, and its name was on the disk by then."""
        ends = [self._durable(each) for each in self.committed if self._name_of(each) == name and each.ended < at]
        return bool(ends) and ends[-1] is not None and ends[-1] < at

    def _deleted_too_early(self) -> Iterable[str]:
        gone: set[str] = set()
        for call in self._renames:
            target = os.path.basename(quoted(call.args)[1])
            name = os.path.basename(quoted(call.args)[0])
            if target.startswith(".trash-"):
                gone.add(name)
                yield from self._too_few(call, name, gone)

    def _too_few(self, call: Call, name: str, gone: set[str]) -> Iterable[str]:
        prefix = "iter_" if name.startswith("iter_") else "best_"
        there = {self._name_of(each) for each in self.committed if self._name_of(each).startswith(prefix)} - gone
        durable = sorted(each for each in there if self._is_durable(each, call.begun))
        if len(durable) < (self._keep if prefix == "iter_" else 1):
            yield f"{name} is deleted when only {durable} are on the disk"

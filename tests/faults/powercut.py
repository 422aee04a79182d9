"""Which states a disk may be in after a power cut, by what was done to it before.

What POSIX promises, and no more: bytes are there for certain once their file was synced, names once their folder was.
What wasn't synced may be there or not, each name for itself, and of bytes any sectors, in any order. A rename within a
folder is one thing, there or not. A sync that failed promises nothing, and what it should have written isn't promised
by later ones either, as the kernel takes it for written.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from operations import WRITES, Op

__all__ = ["Machine", "State", "materialise", "snapshot"]

State = Mapping[str, bytes | str | None]
"""By path: the bytes of a file, the target of a symbolic link, or None for a folder."""

SECTOR, PAGE = 512, 4096
TORN = ("none", "all", "zeros", "odd sectors", "later pages", "cut at a sector", "cut at a page", "any sectors")
"""What may have become of a file's bytes that weren't synced."""
_EXHAUSTIVE = 256


@dataclass
class _Change:
    """Something that was done to a folder or a file: certain, once it is synced; or lost to a sync that failed."""

    number: int
    names: dict[str, _Node | None] = field(default_factory=dict)
    offset: int = 0
    data: bytes | None = None  # None cuts the file at the offset
    certain: bool = False
    failed: bool = False


@dataclass(eq=False)
class _Node:
    """A folder, a file, or a symbolic link. *entries* or *content* are what was there before all of *changes*."""

    kind: str
    entries: dict[str, _Node] = field(default_factory=dict)
    content: bytes = b""
    target: str = ""
    changes: list[_Change] = field(default_factory=list)

    def open_changes(self) -> list[_Change]:
        return [change for change in self.changes if not change.certain]


class Machine:
    """A disk as the kernel has it, of which a part is on the platters.

    Args:
        base: What is on it for certain, to begin with.
    """

    def __init__(self, base: State) -> None:
        self._root = _Node("folder")
        self._handles: dict[int, _Node] = {}
        self._count = 0
        for path in sorted(base):
            self._folder(path).entries[os.path.basename(path)] = _made(base[path])

    def apply(self, op: Op) -> None:
        """Do what was done to the real one."""
        self._count += 1
        if op.kind == "fsync":
            _sync(self._handles[op.handle], failed=not op.done)
        elif op.done:
            self._apply(op)

    def _apply(self, op: Op) -> None:
        folder, name = self._folder(op.path), os.path.basename(op.path)
        if op.kind in WRITES:
            self._note(self._handles[op.handle], offset=op.offset, data=op.data)
        elif op.kind in ("mkdir", "symlink", "create"):
            node = _Node({"mkdir": "folder", "create": "file"}.get(op.kind, "link"), target=op.other)
            self._handles[op.handle] = node
            self._note(folder, names={name: node})
        elif op.kind in ("open", "truncate"):
            node = self._find(op.path) if op.kind == "open" or not op.offset else self._handles[op.handle]
            self._handles[op.handle] = node
            if op.kind == "truncate":
                self._note(node, offset=op.offset)
        elif op.kind in ("unlink", "rmdir"):
            self._note(folder, names={name: None})
        elif op.kind in ("rename", "link"):
            self._name(op, folder, name)

    def _name(self, op: Op, folder: _Node, name: str) -> None:
        target, new, node = self._folder(op.other), os.path.basename(op.other), self._find(op.path)
        gone: dict[str, _Node | None] = {name: None} if op.kind == "rename" else {}
        if folder is target:
            self._note(folder, names={**gone, new: node})
        else:
            self._note(target, names={new: node})
            self._note(folder, names=gone)

    def _note(
        self, node: _Node, names: dict[str, _Node | None] | None = None, offset: int = 0, data: bytes | None = None
    ) -> None:
        node.changes.append(_Change(self._count, names or {}, offset, data))

    def _folder(self, path: str) -> _Node:
        return self._find(os.path.dirname(path))

    def _find(self, path: str) -> _Node:
        node = self._root
        for name in Path(path).parts:
            node = _entries(node, node.changes)[name]
        return node

    def states(self, rng: random.Random, most: int) -> Iterator[tuple[str, State]]:
        """The states that the disk may be in after a power cut now, each with what of the unsynced there is.

        All of them where there are few; else those of a journal in order, those in which one thing is or isn't there,
        and as many others, drawn from *rng*, as make *most* in all.
        """
        nodes = list(_reachable(self._root))
        names = [change for node in nodes if node.kind == "folder" for change in node.open_changes()]
        torn = [node for node in nodes if node.kind == "file" and node.open_changes()]
        names.sort(key=lambda change: change.number)
        for chosen, tears in itertools.islice(_choices(names, torn, rng), most):
            kept = {id(change) for change in chosen}
            how = dict(zip(map(id, torn), tears, strict=True))
            yield _described(names, kept, tears), dict(_walk(self._root, "", kept, how, rng))


_Choice = tuple[Sequence[_Change], Sequence[str]]


def _choices(names: list[_Change], torn: list[_Node], rng: random.Random) -> Iterator[_Choice]:
    """Which of the names are there, and what has become of the files' bytes."""
    if 2 ** len(names) * len(TORN) ** len(torn) <= _EXHAUSTIVE:
        picks = itertools.product((False, True), repeat=len(names))
        every = itertools.product(picks, itertools.product(TORN, repeat=len(torn)))
        everything = [([*itertools.compress(names, pick)], tears) for pick, tears in every]
        rng.shuffle(everything)
        yield from everything
        return
    yield names, ["none"] * len(torn)
    yield [], ["all"] * len(torn)
    telling = [names[:count] for count in range(len(names) + 1)]
    telling += [[change for change in names if change is not one] for one in names] + [[one] for one in names]
    rng.shuffle(telling)
    for chosen in telling:
        yield chosen, [rng.choice(TORN) for _ in torn]
    while True:
        share = rng.random()
        yield [one for one in names if rng.random() < share], [rng.choice(TORN) for _ in torn]


def _described(names: list[_Change], kept: set[int], tears: Sequence[str]) -> str:
    lost = [",".join(change.names) for change in names if id(change) not in kept]
    return f"without the names {lost}, of files' bytes {list(tears)}" if lost or tears else "with everything"


def _sync(node: _Node, failed: bool) -> None:
    for change in node.changes:
        if failed:
            change.failed = change.failed or not change.certain
        else:
            change.certain = change.certain or not change.failed
    if all(change.certain for change in node.changes):
        if node.kind == "folder":
            node.entries = _entries(node, node.changes)
        else:
            node.content = _content(node, node.changes)
        node.changes.clear()


def _entries(node: _Node, changes: Sequence[_Change]) -> dict[str, _Node]:
    found: dict[str, _Node | None] = dict(node.entries)
    for change in changes:
        found.update(change.names)
    return {name: below for name, below in found.items() if below is not None}


def _content(node: _Node, changes: Sequence[_Change]) -> bytes:
    content = bytearray(node.content)
    for change in changes:
        end = change.offset + len(change.data or b"")
        content.extend(bytes(max(0, end - len(content))))
        if change.data is None:
            del content[change.offset :]
        else:
            content[change.offset : end] = change.data
    return bytes(content)


def _reachable(root: _Node) -> Iterator[_Node]:
    """All nodes that have a name in some state."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        named = [*node.entries.values(), *(each for change in node.changes for each in change.names.values())]
        for below in named:
            if below is not None and id(below) not in seen:
                seen.add(id(below))
                waiting.append(below)


def _walk(
    node: _Node, path: str, kept: set[int], how: Mapping[int, str], rng: random.Random
) -> Iterator[tuple[str, bytes | str | None]]:
    there = _entries(node, [change for change in node.changes if change.certain or id(change) in kept])
    for name, below in sorted(there.items()):
        full = f"{path}{name}"
        if below.kind == "folder":
            yield full, None
            yield from _walk(below, f"{full}/", kept, how, rng)
        elif below.kind == "link":
            yield full, below.target
        else:
            yield full, _torn(below, how.get(id(below), "all"), rng)


def _torn(node: _Node, how: str, rng: random.Random) -> bytes:
    old = _content(node, [change for change in node.changes if change.certain])
    new = _content(node, node.changes)
    if how in ("none", "all") or old == new:
        return old if how == "none" else new
    if how.startswith("cut"):
        unit = SECTOR if how.endswith("sector") else PAGE
        return new[: len(new) // 2 // unit * unit]
    ours = {
        "zeros": lambda sector: False,
        "odd sectors": lambda sector: sector % 2 == 1,
        "later pages": lambda sector: sector >= PAGE // SECTOR,
        "any sectors": lambda sector: rng.random() < 0.5,
    }[how]
    padded = old[: len(new)].ljust(len(new), b"\0")
    begins = range(0, len(new), SECTOR)
    return b"".join((new if ours(at // SECTOR) else padded)[at : at + SECTOR] for at in begins)


def _made(what: bytes | str | None) -> _Node:
    if what is None:
        return _Node("folder")
    return _Node("file", content=what) if isinstance(what, bytes) else _Node("link", target=what)


def snapshot(root: Path) -> State:
    """What is in a folder, by path relative to it."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = content
    return found


def materialise(state: State, root: Path) -> None:
    """Make the folder *root*, which isn't there yet, and all of the state in it."""
    root.mkdir()
    for path, what in sorted(state.items()):
        if what is None:
            (root / path).mkdir()
        elif isinstance(what, bytes):
            (root / path).write_bytes(what)
        else:
            (root / path).symlink_to(what)

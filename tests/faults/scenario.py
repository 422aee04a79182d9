"""What is done to a folder of checkpoints while something fails, and what must be true of it afterwards.

A scenario tells what it does, in lines such as ``saving a 2``, before, and ``saved a 2``, after. What it has told says
what may be there: a save that was begun may be there or not, one that has returned must be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import same
from tree import Tree

from eventrunner.checkpoint import Store, find_newest, load_checkpoint
from eventrunner.checkpoint.saver import Save, Saver
from eventrunner.checkpoint.store import HINT_NAME
from eventrunner.checkpoint.verify import is_checkpoint
from eventrunner.errors import CheckpointError
from eventrunner.files.lock import LOCK_NAME, FolderLock
from eventrunner.lanes.lanes import Lanes
from eventrunner.session.rundir import RUN_FILE, claim, read_run, write_run

Tell = Callable[[str], None]
Work = Callable[[Path, Tell], None]

NOTHING = 0
"""The value of a checkpoint that isn't there."""
DAMAGED = -1
"""The value of one that is there and can't be loaded, or isn't what was saved."""

FOREIGN = {
    "step-100.backup": b"a backup",
    "notes.txt": b"notes",
    "epoch_1.old/model.safetensors": b"somebody's",
    ".tmp-of-somebody": b"hidden, and somebody else's",
    ".old-a": b"the same",
}
_FOREIGN_MADE = "somebody else's files are there"


@dataclass(frozen=True)
class Scenario:
    """Something that is done to a folder.

    Attributes:
        prepare: Done before, while nothing fails.
        work: Done while something fails.
        keep: How many checkpoints there must be at any time, once there were as many.
    """

    prepare: Work
    work: Work
    keep: int = 0

    def __call__(self, folder: Path, tell: Tell) -> None:
        """All of it."""
        self.prepare(folder, tell)
        self.work(folder, tell)


def a_tree(value: int, size: int = 700) -> dict[str, Any]:
    """Something in each file, all of it following from *value*; *size* numbers are the weights."""
    return {
        "state_dict": {"weight": torch.arange(size, dtype=torch.float32) + 1000 * value, "bias": torch.ones(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.full((300,), float(value))}}, "param_groups": [{"lr": value}]},
        "rng": torch.full((50,), value, dtype=torch.uint8),
        "value": value,
    }


def save(store: Store, name: str, value: int, tell: Tell, size: int = 700, **options: Any) -> None:
    """Save ``a_tree(value)`` as the checkpoint *name*, and tell of it."""
    tell(f"saving {name} {value}")
    store.save(name, a_tree(value, size), step=value, **options)
    tell(f"saved {name} {value}")


def link(store: Store, name: str, source: str, value: int, tell: Tell) -> None:
    """Make *name* the twin of *source*, which has that *value*, and tell of it."""
    tell(f"saving {name} {value}")
    store.link(name, source)
    tell(f"saved {name} {value}")


def delete(store: Store, name: str, tell: Tell) -> None:
    """Delete, and tell of it."""
    tell(f"deleting {name}")
    store.delete(name)
    tell(f"deleted {name}")


def _nothing(folder: Path, tell: Tell) -> None:
    """There is no folder yet."""


def _one(folder: Path, tell: Tell) -> None:
    save(Store(folder), "a", 1, tell)
    make_foreign(folder, tell)


def _two(folder: Path, tell: Tell) -> None:
    _one(folder, tell)
    save(Store(folder), "b", 2, tell)


def _twin(folder: Path, tell: Tell) -> None:
    _two(folder, tell)
    link(Store(folder), "best", "a", 1, tell)


def _left(folder: Path, tell: Tell) -> None:
    """What killed processes leave: a save and a delete that weren't finished, and a checkpoint being replaced."""
    _two(folder, tell)
    save(Store(folder), "c", 3, tell)
    (folder / "b").rename(folder / f".old-b-{os.getpid()}-01234567")
    tell("deleting c")
    (folder / "c").rename(folder / f".trash-c-{os.getpid()}-01234567")
    half = folder / f".tmp-b-{os.getpid()}-01234567"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    tell("deleted c")


def _begin(folder: Path) -> Store:
    """What a Runner does before its first save."""
    write_run(claim(folder), {"argv": []})
    store = Store(folder)
    store.clean()
    return store


def _first(folder: Path, tell: Tell) -> None:
    claim(folder)
    with FolderLock(folder):
        save(_begin(folder), "a", 1, tell)


def _saved_beside(keep: int, count: int) -> Work:
    """*count* saves in a worker, each of which lets the ones before its *keep* newest be deleted once it is told of."""

    def work(folder: Path, tell: Tell) -> None:
        kept: list[str] = []

        def finished(done: Save) -> None:
            if done.error is None:
                tell(f"saved {done.name} {done.step}")
                kept.append(done.name)
                while len(kept) > keep:
                    tell(f"deleting {kept[0]}")
                    saver.delete(kept.pop(0))

        source = Tree({}, finished=finished)
        saver = Saver(_begin(folder), source, mode="eager")
        with Lanes(deadline=60.0) as lanes:
            saver.open(lanes)
            try:
                for value in range(11, 11 + count):
                    tell(f"saving iter_{value} {value}")
                    source.step, source.tree = value, a_tree(value)
                    saver.save(f"iter_{value}")
                    saver.collect()
                    lanes.check()
                saver.wait()
            finally:
                saver.close()

    return work


def _on_store(work: Callable[[Store, Tell], None]) -> Work:
    return lambda folder, tell: work(Store(folder), tell)


def _clean(folder: Path, tell: Tell) -> None:
    Store(folder).clean()
    save(Store(folder), "d", 4, tell)


SCENARIOS: dict[str, Scenario] = {
    "first": Scenario(_nothing, _first),
    "second": Scenario(_one, _on_store(lambda store, tell: save(store, "b", 2, tell))),
    "replace": Scenario(_one, _on_store(lambda store, tell: save(store, "a", 2, tell))),
    "link": Scenario(_one, _on_store(lambda store, tell: link(store, "best", "a", 1, tell))),
    "replaced twin": Scenario(_twin, _on_store(lambda store, tell: link(store, "best", "b", 2, tell))),
    "delete": Scenario(_two, _on_store(lambda store, tell: delete(store, "a", tell))),
    "pth": Scenario(_one, _on_store(lambda store, tell: save(store, "b", 2, tell, format="pth"))),
    "clean": Scenario(_left, _clean),
    "keep 1": Scenario(_nothing, _saved_beside(1, 3), keep=1),
    "keep 3": Scenario(_one, _saved_beside(3, 5), keep=3),
    "past the cache": Scenario(_one, _on_store(lambda store, tell: save(store, "a", 2, tell, size=300_000))),
}
"""By name. ``work`` may end by what the disk raises; it is given a folder in which nobody else works."""


def make_foreign(folder: Path, tell: Tell) -> None:
    """Put things into the folder that aren't the store's."""
    for name, data in FOREIGN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "link").symlink_to("epoch_1.old")
    tell(_FOREIGN_MADE)


def recover(folder: Path) -> Path | None:
    """What a run that is resumed does first: clear away, and look for the newest."""
    Store(folder).clean()
    return find_newest(folder).path


def check(folder: Path, told: Sequence[str], keep: int = 0) -> list[str]:
    """What is wrong in a folder that has been recovered, if *told* is what was told before; nothing, if nothing is.

    Args:
        folder: The folder.
        told: The lines.
        keep: As in :class:`Scenario`.
    """
    expected, found = promised(told), values(folder)
    wrong = [
        f"{name} is {_named(found.get(name, NOTHING))}, not {' or '.join(map(_named, sorted(allowed)))}"
        for name, allowed in expected.items()
        if found.get(name, NOTHING) not in allowed
    ]
    wrong += [f"{name} is there, and was never saved" for name in found.keys() - expected.keys()]
    saved = len({line.split()[1] for line in told if line.startswith("saved ")})
    if (count := sum(value > NOTHING for value in found.values())) < min(keep, saved):
        wrong.append(f"{count} checkpoints are left of {keep} that are to be kept")
    wrong += _check_newest(folder, expected, found) + _check_hint(folder, expected)
    wrong += [f"{RUN_FILE} is torn"] if read_run(folder) == {} else []
    return wrong + (check_foreign(folder) if _FOREIGN_MADE in told else [])


def promised(told: Iterable[str]) -> dict[str, set[int]]:
    """For each checkpoint that was told of, the values that it may have now."""
    may: dict[str, set[int]] = {}
    for line in told:
        word, name, value = [*line.split(), "0"][:3]
        if line == _FOREIGN_MADE:
            continue
        if word in ("saved", "deleted"):
            may[name] = {int(value)}
        else:
            may.setdefault(name, {NOTHING}).add(int(value))
    return may


def values(folder: Path) -> dict[str, int]:
    """The value of each checkpoint in the folder: what a load gives, compared bit by bit with what was saved."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return {each.name: _value(each) for each in there if each.name[0] != "." and is_checkpoint(each) and _own(each)}


def check_foreign(folder: Path) -> list[str]:
    """Which of the things that aren't the store's have changed or gone."""
    wrong = [name for name, data in FOREIGN.items() if not _holds(folder / name, data)]
    if not (folder / "link").is_symlink() or os.readlink(folder / "link") != "epoch_1.old":
        wrong.append("link")
    return [f"somebody else's {name} was touched" for name in wrong]


def leftovers(folder: Path) -> list[str]:
    """Hidden names in the folder that are neither the lock's nor somebody else's, nor of a ``run.json``."""
    there = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    known = (LOCK_NAME, f".{RUN_FILE}.", *FOREIGN)
    return sorted(name for name in there if name.startswith(".") and not name.startswith(known))


def _value(path: Path) -> int:
    try:
        tree = load_checkpoint(path)
    except (CheckpointError, OSError):
        return DAMAGED
    value = int(tree["value"])
    return value if same(tree, a_tree(value, len(tree["state_dict"]["weight"]))) else DAMAGED


def _own(path: Path) -> bool:
    return not path.is_symlink() and path.name != "epoch_1.old"


def _named(value: int) -> str:
    return {NOTHING: "not there", DAMAGED: "damaged"}.get(value, f"the one of step {value}")


def _check_newest(folder: Path, expected: dict[str, set[int]], found: dict[str, int]) -> list[str]:
    newest = find_newest(folder).path
    there = found.get(newest.name, NOTHING) if newest is not None else NOTHING
    least = max((min(allowed) for allowed in expected.values()), default=NOTHING)
    return [f"the newest is {_named(there)}, older than step {least}"] if there < least else []


def _check_hint(folder: Path, expected: dict[str, set[int]]) -> list[str]:
    hint = folder / HINT_NAME
    text = hint.read_text(encoding="utf-8") if hint.is_file() else None
    return [f"{HINT_NAME} says {text!r}"] if text is not None and text not in expected else []


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data

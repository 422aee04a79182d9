"""Hostile files: none of them runs anything, reaches out of its folder, or takes more memory than it has bytes for."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cage import Outcome, caged
from forged import Hostile
from hostile import can_make_devices, corpus
from pickles import CANARY, foreign
from tally import LONG, MakeRow, Row

from eventrunner.checkpoint import Store, find_newest, load_checkpoint, load_weights, read_manifest, verify_checkpoint
from eventrunner.checkpoint.verify import listing

MIB = 1024**2
MEMORY = 96 * MIB
"""What reading any checkpoint may take beside what it has bytes for: buffers, allocators, the message of an error."""

PER_BYTE = 3
PER_BYTE_OF_STRUCTURE = 100
"""Of JSON, and of a pickle: ``[]`` is two bytes of text and, twice, an object of 56."""

OLDER, VICTIM = "older", "victim"


def a_tree() -> dict[str, Any]:
    """What is to be expected of each file."""
    return {"state_dict": {"w": torch.ones(2, 3)}, "optimizer": {"m": torch.ones(3)}, "value": 1.0}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two good checkpoints of each format, and files outside of it that are nobody's business."""
    home = tmp_path_factory.mktemp("good")
    for tree_format in ("safetensors", "pth"):
        store = Store(home / tree_format / "run")
        for step, name in enumerate((OLDER, VICTIM), 1):
            store.save(name, a_tree(), step=step, format=tree_format)
        shutil.copytree(store.folder / VICTIM, store.folder.parent / "outside")
        for read in readers(store.folder):  # what is imported when it is first needed isn't a file's doing
            read()
    return home


def readers(run: Path) -> list[Callable[[], object]]:
    """Every way in which a checkpoint is read."""
    return [*calls(run).values()]


def calls(run: Path) -> dict[str, Callable[[], object]]:
    """The same by name."""
    victim, store = run / VICTIM, Store(run)
    return {
        "load_checkpoint": lambda: load_checkpoint(victim),
        "load_checkpoint, unverified": lambda: load_checkpoint(victim, verify=False),
        "load_weights": lambda: load_weights(victim),
        "verify_checkpoint": lambda: verify_checkpoint(victim),
        "read_manifest": lambda: read_manifest(victim),
        "find_newest": lambda: find_newest(run),
        "listing": lambda: listing(run),
        "names": store.names,
        "path": lambda: store.path(VICTIM),
        "newest_valid": store.newest_valid,
    }


def seen(folder: Path) -> dict[str, object]:
    """Everything in a folder: what it is, how large, and what is in it."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_small_file = path.is_file() and not path.is_symlink() and status.st_size < 2**20
        found[str(path)] = (status.st_mode, status.st_size, path.read_bytes() if is_small_file else b"")
    return found


def allowed(run: Path) -> int:
    """Bytes of memory that reading the checkpoints of a run may take; bytes that a sparse file hasn't don't count."""
    total = MEMORY
    for path in run.glob("*/*"):
        status = path.lstat()
        structure = path.suffix != ".safetensors" or status.st_size > MIB  # or it is mostly header
        total += min(status.st_size, 512 * status.st_blocks) * (PER_BYTE_OF_STRUCTURE if structure else PER_BYTE)
    return total


Rows = tuple[Row, Row, Row, Row]


def rows(row: MakeRow, what: str) -> Rows:
    """One per promise."""
    wrong = ("code executed", "paths escaped", "memory over the bound", "other errors than CheckpointError, or loaded")
    made = [row(what, each) for each in wrong]
    return made[0], made[1], made[2], made[3]


def note_harm(case: str, outcome: Outcome, executed: Row, escaped: Row) -> None:
    """Put what must never happen, whoever reads, in its rows."""
    executed.tried, escaped.tried = executed.tried + 1, escaped.tried + 1
    executed.found += [f"{case}: {what}" for what in outcome.executed]
    escaped.found += [f"{case}: {what}" for what in outcome.escaped]
    if Path(CANARY).exists():
        executed.found.append(f"{case}: it ran")
        Path(CANARY).unlink()


def note(case: str, outcome: Outcome, most: int, rows: Rows) -> None:
    """Put what a case has come to in its rows."""
    executed, escaped, memory, errors = rows
    note_harm(case, outcome, executed, escaped)
    memory.tried, errors.tried = memory.tried + 1, errors.tried + 1
    if outcome.peak > most:
        memory.found.append(f"{case}: {outcome.peak // MIB} MiB, of {most // MIB}")
    if outcome.died:
        errors.found.append(f"{case}: ended by {outcome.died} after {outcome.results}")
    known = ("returned", "CheckpointError", "CheckpointNotFoundError", "CorruptCheckpointError")
    errors.found += [f"{case}: {name}: {result}" for name, result in outcome.results.items() if result not in known]


def loaded(case: Hostile, outcome: Outcome) -> Iterator[str]:
    """What took a file that it had to refuse, or failed where there was something good to be found."""
    if case.refused and outcome.results.get("load_checkpoint") == "returned":
        yield f"{case.name}: loaded"
    for name in ("find_newest", "listing", "names", "newest_valid"):
        if outcome.results.get(name, "returned") != "returned":
            yield f"{case.name}: {name}: {outcome.results[name]}"


def chosen(cases: list[Any], share: float, seed: int) -> list[Any]:
    """Those that are always tried, and as many of the others, always those of the seed."""
    always = [case for case in cases if getattr(case, "always", False)]
    others = [case for case in cases if not getattr(case, "always", False)]
    return [*always, *random.Random(f"{seed} hostile").sample(others, round(share * len(others)))]


def without_devices(cases: list[Hostile], folder: Path) -> list[Hostile]:
    """The cases, but for devices where none can be made."""
    return cases if can_make_devices(folder) else [case for case in cases if "device" not in case.name]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [0.06, pytest.param(1.0, marks=LONG)])
def test_a_hostile_checkpoint_is_refused_and_does_nothing(
    good: Path, tmp_path: Path, share: float, seed: int, row: MakeRow
) -> None:
    """By each way to read one; and the one before it is found."""
    promises = rows(row, "hostile files")
    for case in chosen(without_devices([*corpus()], tmp_path), share, seed):
        home = tmp_path / "home"
        shutil.copytree(good / case.tree_format, home)
        case.change(home / "run" / VICTIM)
        before = seen(home)
        outcome = caged(calls(home / "run"), home / "run")
        note(case.name, outcome, allowed(home / "run"), promises)
        promises[3].found += loaded(case, outcome)
        if seen(home) != before:
            promises[1].found.append(f"{case.name}: files were changed")
        shutil.rmtree(home)
    for each in promises:
        each.check()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=LONG)])
def test_a_hostile_pickle_of_weights_runs_nothing(tmp_path: Path, share: float, seed: int, row: MakeRow) -> None:
    """As somebody gives it to one. What torch makes of it else, and how large, is left to torch.

    So is the empty temporary folder that it makes before it refuses a tar.
    """
    executed, escaped = row("hostile .pth files", "code executed"), row("hostile .pth files", "paths escaped")
    given = [(name, make) for name, make in foreign().items() if name != "a tar"]
    for name, make in chosen(given, share, seed):
        path, outcome = weights_of(make(), tmp_path / "given" / "w.pth")
        note_harm(name, outcome, executed, escaped)
        if [*path.parent.iterdir()] != [path]:
            escaped.found.append(f"{name}: {os.listdir(path.parent)}")
    executed.check()
    escaped.check()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=LONG)])
def test_a_hostile_file_of_weights_does_nothing(tmp_path: Path, share: float, seed: int, row: MakeRow) -> None:
    """One that says of itself that it is of safetensors."""
    promises = rows(row, "hostile .safetensors files")
    for name, make in chosen([*foreign().items()], share, seed):
        path, outcome = weights_of(make(), tmp_path / "given" / "w.safetensors")
        note(name, outcome, MEMORY + PER_BYTE_OF_STRUCTURE * path.stat().st_size, promises)
        if [*path.parent.iterdir()] != [path]:
            promises[1].found.append(f"{name}: {os.listdir(path.parent)}")
    for each in promises:
        each.check()


def weights_of(data: bytes, path: Path) -> tuple[Path, Outcome]:
    """What comes of loading weights from a file with those bytes."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path, caged({"load_weights": lambda: load_weights(path)}, path.parent)

"""Hostile folders of checkpoints: names, links and pipes in it lead no store, lock or run out of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cage import caged
from tally import MakeRow
from test_hostile import seen

from eventrunner.checkpoint import Store, find_newest, load_weights
from eventrunner.checkpoint.manifest import MANIFEST_NAME, PTH_NAME
from eventrunner.files.lock import LOCK_NAME, FolderLock
from eventrunner.session.rundir import choose_folder

KNOWN = ("returned", "CheckpointError", "CheckpointNotFoundError", "CorruptCheckpointError")
ITS_OWN = (*KNOWN, "LockedError", "OSError", "OptionError")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A run with a checkpoint, and another outside of it that is nobody's business."""
    for name in ("run", "outside"):
        Store(tmp_path / "home" / name).save("epoch_1", {"state_dict": {"w": torch.ones(3)}}, step=1)
    return tmp_path / "home"


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftovers(run: Path, pid: int) -> None:
    """Hidden names as of a store's own, that lead elsewhere or stand for what no store hides."""
    outside = "../outside/epoch_1"
    for kind in ("tmp", "old", "trash"):
        (run / f".{kind}-link-{pid}-deadbeef").symlink_to(outside)
        (run / f".{kind}-dangling-{pid}-deadbeef").symlink_to("nothing")
        (run / f".{kind}-..-{pid}-deadbeef").mkdir()
        (run / f".{kind}-folder-{pid}-deadbeef").mkdir()
        (run / f".{kind}-folder-{pid}-deadbeef" / "inner").symlink_to("../../outside", target_is_directory=True)
        os.mkfifo(run / f".{kind}-pipe-{pid}-deadbeef")
        shutil.copytree(run / "epoch_1", run / f".{kind}-last_checkpoint.x-{pid}-deadbeef")
        shutil.copytree(run / "epoch_1", run / f".{kind}-.hidden-{pid}-deadbeef")
        shutil.copytree(run / "epoch_1", run / f".{kind}-last_checkpoint-{pid}-deadbeef")


def strange_names(run: Path) -> None:
    """What a listing comes upon, with all that makes a checkpoint of it or nearly."""
    whole = run / "epoch_1"
    for name in ("-rf", "x" * 250, "a\nb", "\u202eevil", "C:\\x", "~", "$HOME", "epoch_1 ", "%s%n", "\u2028"):
        shutil.copytree(whole, run / name)
    shutil.copytree(whole, run / os.fsdecode(b"\xff\xfe"))
    (run / "to_outside").symlink_to("../outside/epoch_1", target_is_directory=True)
    (run / "to_itself").symlink_to("to_itself")
    for mark in (MANIFEST_NAME, PTH_NAME):
        (run / f"pipe_{mark}").mkdir()
        os.mkfifo(run / f"pipe_{mark}" / mark)
        (run / f"folder_{mark}" / mark).mkdir(parents=True)
        (run / f"loop_{mark}").mkdir()
        (run / f"loop_{mark}" / mark).symlink_to(mark)
    (run / "last_checkpoint").unlink(missing_ok=True)
    (run / "last_checkpoint").symlink_to("../outside/epoch_1/MANIFEST.json")


def inner_links(run: Path) -> None:
    """A checkpoint with links to elsewhere in it."""
    (run / "epoch_1" / "inner").symlink_to("../../outside", target_is_directory=True)
    (run / "epoch_1" / "file").symlink_to("../../outside/epoch_1/state.json")


def actions(run: Path) -> dict[str, Callable[[], object]]:
    """All that a store does to a folder."""
    store = Store(run)
    there = ("to_outside", "pipe_MANIFEST.json", "epoch_1", "\u202eevil", "a\nb")
    names = (*there, "../outside/epoch_1")
    return {
        "clean": store.clean,
        "names": store.names,
        "find_newest": lambda: find_newest(run),
        **{f"path {name!r}": lambda name=name: store.path(name) for name in there},
        **{f"link to {name!r}": lambda name=name: store.link("twin", name) for name in there},
        **{f"link as {name!r}": lambda name=name: store.link(name, "-rf") for name in names},
        **{f"delete {name!r}": lambda name=name: store.delete(name) for name in names},
        "save": lambda: store.save("epoch_1", {"value": 2.0}, step=2),
    }


@pytest.mark.parametrize("make", ["leftovers", "strange names", "inner links", "all"])
def test_what_a_store_does_stays_in_its_folder(home: Path, dead_pid: int, make: str, row: MakeRow) -> None:
    """Nothing is deleted or written through a link, and nobody waits for a pipe."""
    run, calls = home / "run", row("calls on hostile folders", "paths escaped, or other errors")
    made = {
        "leftovers": leftovers,
        "strange names": lambda run, _: strange_names(run),
        "inner links": lambda run, _: inner_links(run),
    }
    for name, change in made.items():
        if make in (name, "all"):
            change(run, dead_pid)
    before = seen(home / "outside")

    outcome = caged(actions(run), run, changes=True)

    calls.tried = len(outcome.results)
    calls.found += [f"{name}: {result}" for name, result in outcome.results.items() if result not in ITS_OWN]
    calls.found += outcome.escaped + outcome.executed + ([outcome.died] if outcome.died else [])
    if seen(home / "outside") != before:
        calls.found.append(f"{make}: something outside was changed")
    if any(name in ("last_checkpoint", "..") for name in Store(run).names()):
        calls.found.append(f"{make}: a checkpoint has a name that no store gives: {Store(run).names()}")
    calls.check()


def test_a_leftover_is_put_back_only_under_a_name_of_a_checkpoint(home: Path, dead_pid: int) -> None:
    """Neither a link, nor in the hint's place, nor hidden."""
    leftovers(home / "run", dead_pid)

    Store(home / "run").clean()

    assert sorted(os.listdir(home / "run")) == ["epoch_1", "last_checkpoint", "last_checkpoint.x"]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.symlink_to("../outside/epoch_1/state.json"), id="a link"),
        pytest.param(lambda path: path.symlink_to("nothing"), id="a dangling link"),
        pytest.param(os.mkfifo, id="a pipe"),
        pytest.param(Path.mkdir, id="a folder"),
        pytest.param(lambda path: path.write_bytes(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR."), id="a pickle"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 5_000_000), id="a large file"),
    ],
)
def test_a_hostile_lock_is_taken_or_refused(home: Path, make: Callable[[Path], object], row: MakeRow) -> None:
    """Nobody waits for it, and what it points at stays as it was."""
    run, locks = home / "run", row("hostile locks", "paths escaped, or other errors")
    make(run / LOCK_NAME)
    before = seen(home / "outside")

    outcome = caged({"lock": FolderLock(run).acquire}, run, changes=True)

    locks.tried = 1
    system = ("IsADirectoryError", "OSError: [Errno 40]")
    locks.found += [
        each for each in outcome.results.values() if each not in ITS_OWN and not any(s in each for s in system)
    ]
    locks.found += outcome.escaped + outcome.executed + ([outcome.died] if outcome.died else [])
    if seen(home / "outside") != before:
        locks.found.append("something outside was changed")
    locks.check()


def test_the_newest_run_is_picked_among_hostile_names(
    home: Path, monkeypatch: pytest.MonkeyPatch, row: MakeRow
) -> None:
    """Numbers in other scripts or of any length are no runs, and ``latest`` names one beside it."""
    picks = row("picked runs", "elsewhere")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    runs = Path("runs/script").absolute()
    runs.mkdir(parents=True)
    for name in ("\u0661\u0662", "-1", "9" * 250, "1e9", "0x10", "..."):
        (runs / name).mkdir()
    (runs / "latest").symlink_to("../../../../etc")
    shutil.copytree(home / "run", runs / "002")
    picks.tried = 1
    if (picked := choose_folder(None, True)) != runs / "002":
        picks.found.append(f"{picked}")
    picks.check()


def test_weights_are_not_waited_for(tmp_path: Path, row: MakeRow) -> None:
    """A pipe, a folder or a socket with a file's suffix is no file of weights."""
    waits = row("things that are no file", "waited for, or other errors")
    for suffix in (".pth", ".safetensors"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"folder{suffix}").mkdir()
        (tmp_path / f"link{suffix}").symlink_to(f"pipe{suffix}")
    paths = sorted(tmp_path.iterdir())
    outcome = caged({path.name: lambda path=path: load_weights(path) for path in paths}, tmp_path)
    waits.tried = len(outcome.results)
    waits.found = [f"{name}: {result}" for name, result in outcome.results.items() if result not in KNOWN[1:]]
    waits.found += [outcome.died] if outcome.died else []
    waits.check()

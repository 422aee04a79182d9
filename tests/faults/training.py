"""A training to be killed: it has all that a run can lose, and leaves notes of what it saved and what it told of."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from tiny import TIMES, MeanSquaredError, batches, options, val_step
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import find_newest, load_checkpoint
from eventrunner.checkpoint.saver import MODES
from eventrunner.runner import Runner

STEPS, INTERVAL = 60, 3
_PARTS = ("state_dict", "optimizer", "param_schedulers", "rng", "gradients", "grad_norms", "loop", "hooks")
"""Of a checkpoint: what has no clock in it."""


@dataclass(frozen=True)
class Kind:
    """How a training saves.

    Attributes:
        keep: How many checkpoints are kept.
        mode: How the state is copied.
        format: In which its files are.
        val_interval: Iterations between validations; a multiple of 3 makes the best a twin.
        tensorboard: Whether there are event files too.
    """

    keep: int = 1
    mode: str = "lazy"
    format: str = "safetensors"
    val_interval: int = 6
    tensorboard: bool = False

    def undisturbed(self) -> Kind:
        """The kind of run to compare with: how the state was copied must make no difference."""
        return Kind(self.keep, "sync", self.format, self.val_interval, self.tensorboard)


def any_kind(chance: random.Random) -> Kind:
    """One of them all; event files are slow to read, so few have them."""
    copied, written = chance.choice(MODES), chance.choice(("safetensors", "pth"))
    return Kind(chance.choice((1, 3)), copied, written, chance.choice((6, 10)), chance.random() < 0.1)


def make(folder: Path, kind: Kind) -> Runner:
    """A run with dropout, shuffling, a schedule and validations, which saves every third iteration and logs each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 300), nn.Dropout(0.2), nn.Linear(300, 1))
    x, y = map(torch.cat, zip(*batches(10), strict=True))
    saving = {"by_epoch": False, "interval": INTERVAL, "max_keep_ckpts": kind.keep, "mode": kind.mode}
    saving |= {"format": kind.format, "save_best": "mse", "rule": "less"}
    # A validation that draws: a resumed run that repeats it must draw the same.
    held_out = DataLoader(TensorDataset(x[:4], y[:4]), 2, shuffle=True)
    evaluation = {"val_dataloader": held_out, "val_evaluator": {"mse": MeanSquaredError()}, "val_step": val_step}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS), "by_epoch": False}
    return Runner(
        **options(
            model=model,
            optimizer=optimizer,
            param_scheduler=schedule,
            train_dataloader=DataLoader(TensorDataset(x, y), 4, shuffle=True),
            train_cfg={"max_iters": STEPS, "val_interval": kind.val_interval},
            default_hooks={"logger": {"interval": 1, "tensorboard": kind.tensorboard}, "checkpoint": saving},
            work_dir=folder,
            resume=True,
            bus=Bus(),
            **evaluation,
        )
    )


def train_and_exit(folder: Path, kind: Kind) -> None:
    """:func:`train`, for a forked process."""
    train(folder, kind)
    os._exit(0)  # a fork doesn't tear down what the tests' own process has


def train(folder: Path, kind: Kind) -> None:
    """Train on, with notes beside *folder* of each save: ``asked`` at its site, ``told`` when it is committed."""
    notes = os.open(notes_of(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*words: object) -> None:
        os.write(notes, (" ".join(map(str, words)) + "\n").encode())

    runner = make(folder, kind)
    # Receivers of the run's own, and after all others: what they note is what is saved.
    runner.on("before_run")(lambda runner: note("began", os.getpid()))
    runner.on("before_save_checkpoint", mutates=(), priority="LOWEST")(
        lambda runner, checkpoint: note("asked", runner.progress.step, digest(checkpoint))
    )
    runner.on("after_commit_checkpoint", mutates=())(lambda step, path: note("told", step, path.name))
    runner.on("after_run", priority="LOWEST")(lambda runner: note("left", os.getpid()))
    runner.train()
    note("ended", digest(runner.model.state_dict(), ()))
    os.close(notes)


def notes_of(folder: Path) -> Path:
    """Where a training in *folder* leaves its notes."""
    return folder.with_name(folder.name + ".notes")


def notes(folder: Path, about: str) -> list[list[str]]:
    """What it noted *about* something, in order."""
    with contextlib.suppress(FileNotFoundError):
        found = [line.split() for line in notes_of(folder).read_text().splitlines()]
        return [words for about_, *words in found if about_ == about]
    return []


def digest(tree: Mapping[str, Any], parts: tuple[str, ...] = _PARTS) -> str:
    """Of these *parts* of a state, or of all of it; equal if and only if the states are, to the bit."""
    hasher = xxhash.xxh3_128()
    for leaf in _leaves({part: tree[part] for part in parts} if parts else tree):
        hasher.update(leaf)
    return hasher.hexdigest()


def _leaves(tree: Any) -> Iterator[bytes | memoryview]:
    if isinstance(tree, Tensor):
        yield f"{tree.dtype}{tuple(tree.shape)}".encode()
        yield tree.detach().contiguous().flatten().view(torch.uint8).numpy().data
    elif isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            yield f"{key}:".encode()
            yield from _leaves(tree[key])
    elif isinstance(tree, list | tuple):
        yield f"{len(tree)}[".encode()
        for each in tree:
            yield from _leaves(each)
    else:
        yield repr(tree).encode()


def lines(folder: Path) -> list[str]:
    """``log.jsonl`` without what the clock says, as text."""
    found = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = ({key: value for key, value in json.loads(line).items() if key not in TIMES} for line in found)
    return [json.dumps(row) for row in kept]


def values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the losses and metrics; nothing where there are no event files."""
    if not (folder / "tensorboard").is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel("ERROR")  # it tells of every resume
    with contextlib.redirect_stderr(None):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in TIMES]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@dataclass(frozen=True)
class Whole:
    """What a run that nobody disturbed has left."""

    states: dict[int, str]
    weights: str
    lines: list[str]
    values: dict[str, list[tuple[int, float]]]
    checkpoints: dict[str, str]


def outcome(folder: Path) -> Whole:
    """What the run in *folder* has left: by step what was saved, and by name what is there."""
    states = {int(step): found for step, found in notes(folder, "asked")}
    (weights,) = notes(folder, "ended")[-1]
    return Whole(states, weights, lines(folder), values(folder), checkpoints(folder))


def checkpoints(folder: Path) -> dict[str, str]:
    """The digests of the checkpoints in *folder* by name, as they are loaded again."""
    names = [path.name for path in folder.iterdir() if (path / "MANIFEST.json").is_file() and is_plain(path)]
    return {name: digest(load_checkpoint(folder / name)) for name in names}


def is_plain(path: Path) -> bool:
    """Whether it is neither hidden nor a link."""
    return path.name[0] != "." and not path.is_symlink()


class Wholes:
    """The undisturbed runs to compare with, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Kind, Whole] = {}

    def __getitem__(self, kind: Kind) -> Whole:
        kind = kind.undisturbed()
        if kind not in self._made:
            folder = self._folder / f"{len(self._made)}" / "run"
            folder.parent.mkdir()
            train(folder, kind)  # in this process: what it imports late, those that are forked needn't
            self._made[kind] = outcome(folder)
        return self._made[kind]


def last_step(folder: Path) -> int:
    """The last step that was logged, -1 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return max((int(json.loads(line)["step"]) for line in lines(folder)), default=-1)
    return -1


def newest_step(folder: Path, found: Callable[[str], None]) -> int:
    """The step of the newest checkpoint, -1 if there is none; what is visible and not whole is *found*."""
    newest = find_newest(folder)
    for path, reason in newest.rejected:
        found(f"{path.name} is visible and not whole: {reason}")
    return -1 if newest.path is None else int(load_checkpoint(newest.path)["meta"]["iter"])


def plant(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Put things into *folder* that are somebody else's, most of them under names much like a checkpoint's."""
    folder.mkdir(parents=True)
    for name in ("epoch_3.backup", "iter_9_old", "iter_100000", "my-iter_6", ".tmp-iter_6", ".trash-mine"):
        (folder / name).mkdir()
        (folder / name / "weights.bin").write_text(name)
    (folder / "notes.txt").write_text("lr 0.01")
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "MANIFEST.json").write_text("{}")
    (folder / "iter_3_link").symlink_to(elsewhere, target_is_directory=True)
    return planted(folder)


def planted(folder: Path) -> dict[str, tuple[Any, ...]]:
    """How these things are: their kind, when they changed, and what is in them."""
    names = ("epoch_3.backup", "iter_9_old", "iter_100000", "my-iter_6", ".tmp-iter_6", ".trash-mine", "notes.txt")
    there = [folder / name for name in (*names, "iter_3_link")]
    inner = [
        path for each in (*there, folder.with_name("elsewhere")) if each.is_dir() for path in sorted(each.iterdir())
    ]
    return {str(path): _facts(path) for path in (*there, *inner)}


def _facts(path: Path) -> tuple[Any, ...]:
    if not os.path.lexists(path):
        return ("gone",)
    facts = path.lstat()
    return facts.st_mode, facts.st_ino, facts.st_mtime_ns, path.read_bytes() if path.is_file() else b""


def forget(folder: Path) -> None:
    """Remove a run that is as it should be."""
    shutil.rmtree(folder.parent)

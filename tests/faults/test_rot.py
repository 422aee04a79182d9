"""Rotten bits: whatever of a checkpoint is no longer as it was committed is found, and the next older one is loaded."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tally import LONG, MakeRow, Row
from tiny import same

from eventrunner.checkpoint import Store, find_newest, load_checkpoint, load_weights, verify_checkpoint
from eventrunner.checkpoint.manifest import MANIFEST_NAME, PTH_NAME
from eventrunner.errors import CheckpointNotFoundError, CorruptCheckpointError
from eventrunner.runner import Runner

FORMATS = ("safetensors", "pth")
OLDER, NEWER, OTHER = "iter_1", "iter_2", "elsewhere"
PAGE = 4096
READ_FOR_WEIGHTS = {MANIFEST_NAME, "state.json", "model.safetensors", PTH_NAME}

Damage = tuple[str, str, Callable[[Path], object]]
"""What is damaged in words, a file that is, and what does it to a checkpoint's folder."""


def a_tree(value: float) -> dict[str, Any]:
    """Some pages in each file, nothing in them like in a tree of another value."""
    draw = torch.Generator().manual_seed(int(value))
    return {
        "state_dict": {"w": torch.randn(64, 96, generator=draw), "b": torch.full((7,), value)},
        "optimizer": {"state": {0: {"m": torch.randn(64, 48, generator=draw)}}, "param_groups": [{"lr": 1e-05}]},
        "rng": torch.randn(2048, generator=draw),
        "history": {"loss": [value, 1e-05, 2.5e300], "who": "é"},
    }


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two checkpoints of one run, with all in their manifests that JSON can write in several ways."""
    store = Store(tmp_path / "run")
    for step, name in enumerate((OLDER, NEWER), 1):
        meta = {"lr": 1e-05, "who": "é\u2028", "big": 1e22, "none": None, "reasons": ["interval"]}
        store.save(name, a_tree(step), step=step, epoch=step, meta=meta, format=request.param)
    return store.folder


def content(path: Path) -> dict[str, bytes]:
    """By name, the bytes of a folder's files."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def put_back(path: Path, whole: dict[str, bytes]) -> None:
    """Make a folder what it was."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in whole.items():
        (path / name).write_bytes(data)


def refused(read: Callable[[Path], Any], path: Path) -> str:
    """What is wrong with how a damaged checkpoint is read: nothing, if it is refused as it should be."""
    try:
        read(path)
    except (CorruptCheckpointError, CheckpointNotFoundError):
        return ""
    except Exception as error:  # noqa: BLE001
        return f"{read.__name__} raised {error!r}"
    return f"{read.__name__} took it"


def passed_over(folder: Path) -> str:
    """What is wrong with how the newest is found where the newer of two is damaged."""
    found = find_newest(folder)
    if found.path != folder / OLDER:
        return f"find_newest gave {found.path}"
    reasons = [reason for path, reason in found.rejected if path == folder / NEWER]
    return "" if any(reasons) else "find_newest gave no reason"


def weights_refused(path: Path, file: str, whole: dict[str, Any]) -> str:
    """What is wrong with the weights of a checkpoint whose *file* is damaged: they may be there if it isn't theirs."""
    problem = refused(load_weights, path)
    if problem != "load_weights took it" or file in READ_FOR_WEIGHTS:
        return problem
    return "" if same(dict(load_weights(path)), whole["state_dict"]) else "load_weights gave others"


def unverified(path: Path) -> dict[str, Any]:
    """What is loaded where digests aren't compared."""
    return load_checkpoint(path, verify=False)


def try_each(folder: Path, damages: Iterator[Damage], row: Row, *more: Callable[[Path], Any]) -> None:
    """Damage the newer checkpoint in each way, one after another, and note in *row* what wasn't found.

    It must be found by all that read one, and by *more*.
    """
    path = folder / NEWER
    whole, tree = content(path), load_checkpoint(path)
    for what, file, change in damages:
        change(path)
        row.tried += 1
        problems = [refused(load_checkpoint, path), refused(verify_checkpoint, path), passed_over(folder)]
        problems += [weights_refused(path, file, tree), *(refused(read, path) for read in more)]
        row.found += [f"{what}: {problem}" for problem in problems if problem]
        put_back(path, whole)
    assert same(load_checkpoint(path), tree)


def writes(name: str, data: bytes) -> Callable[[Path], object]:
    """Other bytes in a file's place."""
    return lambda path: (path / name).write_bytes(data)


def flip(data: bytes, bit: int) -> bytes:
    """The bytes with one bit the other way round."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def random_flips(whole: dict[str, bytes], count: int, draw: random.Random) -> Iterator[Damage]:
    """As many flipped bits, as often in a small file as in a large one, and as often at its head as elsewhere."""
    for index in range(count):
        name = sorted(whole)[index % len(whole)]
        size = len(whole[name])
        bit = draw.randrange(8 * (min(size, 600) if index // len(whole) % 2 else size))
        yield f"bit {bit} of {name}", name, writes(name, flip(whole[name], bit))


@pytest.mark.parametrize("count", [75, pytest.param(500, marks=LONG)])
def test_a_flipped_bit_is_found(folder: Path, count: int, seed: int, row: MakeRow) -> None:
    """In any file, its header or the manifest; for every way to read a checkpoint."""
    draw = random.Random(f"{seed} flips {count}")
    flips = row("flips", "undetected")
    try_each(folder, random_flips(content(folder / NEWER), count, draw), flips)
    flips.check()


@pytest.mark.parametrize("bits", [[5], pytest.param(range(8), marks=LONG)], ids=["of case", "any"])
def test_every_bit_of_a_manifest_counts(folder: Path, bits: Iterable[int], row: MakeRow) -> None:
    """Even where JSON means the same with it flipped, as in 1E-05."""
    flips, path = row("flips in a manifest", "undetected"), folder / NEWER / MANIFEST_NAME
    whole = path.read_bytes()
    for bit in (8 * place + each for place in range(len(whole)) for each in bits):
        path.write_bytes(flip(whole, bit))
        flips.tried += 1
        problems = refused(verify_checkpoint, path.parent), passed_over(folder)
        flips.found += [f"bit {bit} of {path.name}: {problem}" for problem in problems if problem]
    flips.check()


def lengths(size: int) -> Iterator[int]:
    """At each page, and each of the last sixteen bytes."""
    yield from range(0, size, PAGE)
    yield from range(max(0, size - 16), size)


def cuts(whole: dict[str, bytes]) -> Iterator[Damage]:
    """Files that end too early or too late."""
    for name, data in whole.items():
        for size in sorted({*lengths(len(data))}):
            yield f"{name} cut to {size} of {len(data)} bytes", name, writes(name, data[:size])
        for size in (1, 8, PAGE, 100_000):
            yield f"{name} with {size} zeros behind it", name, writes(name, data + bytes(size))


def test_a_file_that_ends_elsewhere_is_found(folder: Path, row: MakeRow) -> None:
    """Cut off at any page or just before its end, or with zeros behind it, as file systems leave them."""
    lengths_tried = row("truncations and extensions", "undetected")
    try_each(folder, cuts(content(folder / NEWER)), lengths_tried, unverified)
    lengths_tried.check()


def changed_blocks(whole: dict[str, bytes], size: int) -> Iterator[Damage]:
    """A block of zeros, and a block twice in the place of the next, wherever that changes anything."""
    for name, data in whole.items():
        for begin in range(0, len(data), size):
            block, end = data[begin : begin + size], begin + size
            for what, other in (("zeroed", bytes(len(block))), ("repeated", block[: len(data) - end])):
                place = begin if what == "zeroed" else end
                new = data[:place] + other + data[place + len(other) :]
                if new != data:
                    yield f"block of {size} at {begin} of {name} {what}", name, writes(name, new)


@pytest.mark.parametrize("size", [512, PAGE])
def test_a_block_with_other_content_is_found(folder: Path, size: int, row: MakeRow) -> None:
    """Zeroed, or that of its neighbour; of a sector or a page."""
    blocks = row("zeroed and repeated blocks", "undetected")
    try_each(folder, changed_blocks(content(folder / NEWER), size), blocks)
    blocks.check()


def swaps(whole: dict[str, bytes], older: dict[str, bytes]) -> Iterator[Damage]:
    """Files of another checkpoint of the run, and files under each other's names."""
    names = list(whole)
    for name in names:
        yield f"{name} of {OLDER}", name, writes(name, older[name])
    rest = {name: data for name, data in older.items() if name != MANIFEST_NAME}
    yield "all but the manifest of another", PTH_NAME, lambda path: put_back(path, {**whole, **rest})
    for one in names:
        for other in names[: names.index(one)]:
            swapped = {**whole, one: whole[other], other: whole[one]}
            file = min(one, other, key=lambda name: name not in READ_FOR_WEIGHTS)
            yield f"{one} and {other} exchanged", file, lambda path, files=swapped: put_back(path, files)


def test_an_exchanged_file_is_found(folder: Path, row: MakeRow) -> None:
    """With that of another checkpoint of the run, of the same size, or with another file of the same."""
    exchanged = row("exchanged files", "undetected")
    try_each(folder, swaps(content(folder / NEWER), content(folder / OLDER)), exchanged)
    exchanged.check()


def absent_and_extra(names: list[str]) -> Iterator[Damage]:
    """One file too few or too many, or a file that is something else."""
    for name in names:
        yield f"no {name}", name, lambda path, name=name: (path / name).unlink()
        yield f"{name} elsewhere", name, lambda path, name=name: (path / name).rename(path / OTHER)
        yield f"folder {name}", name, lambda path, name=name: ((path / name).unlink(), (path / name).mkdir())
    for name in (OTHER, ".hidden", "model.safetensors.1", f"{MANIFEST_NAME}~", "\N{LATIN SMALL LETTER E WITH ACUTE}"):
        yield f"extra {name}", MANIFEST_NAME, lambda path, name=name: (path / name).write_bytes(b"")
        yield f"extra folder {name}", MANIFEST_NAME, lambda path, name=name: (path / name).mkdir()


def test_a_missing_or_an_extra_file_is_found(folder: Path, row: MakeRow) -> None:
    """Whichever it is."""
    entries = row("missing and extra files", "undetected")
    try_each(folder, absent_and_extra([*content(folder / NEWER)]), entries)
    entries.check()


def test_a_run_goes_on_from_the_one_before(
    make_runner: Callable[..., Runner], capsys: pytest.CaptureFixture[str], seed: int, row: MakeRow
) -> None:
    """It says which it has passed over; whichever file of the newest is damaged."""
    resumed, draw = row("resumed runs", "from damaged state, or without a word"), random.Random(f"{seed} resumed")
    make_runner(epochs=2).train()
    path = make_runner(epochs=2, resume=True).work_dir / "epoch_2"
    for name, data in content(path).items():
        bit = draw.randrange(8 * len(data))
        (path / name).write_bytes(flip(data, bit))
        began: list[int] = []
        again = make_runner(epochs=2, resume=True, log_level="WARNING")
        again.on("before_train")(lambda runner, began=began: began.append(runner.epoch))
        again.train()
        told = f'event="checkpoint not used" path=run/epoch_2 reason="{path}/{name} ' in capsys.readouterr().out
        resumed.tried += 1
        if began != [1] or not told:
            resumed.found.append(f"bit {bit} of {name}: began at {began}, told: {told}")
    resumed.check()

"""The manifest's parser: what it takes is written again as it was, and all else is an error of the checkpoint."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as drawn_from
from hypothesis import strategies as st
from tally import LONG, MakeRow, Row

from eventrunner.checkpoint.manifest import (
    MANIFEST_NAME,
    Chunk,
    FileEntry,
    Manifest,
    TensorEntry,
    is_plain_name,
    read_manifest,
    write_manifest,
)
from eventrunner.errors import CheckpointError

naturals = st.integers(0, 2**63 - 1)
sizes = st.lists(st.integers(0, 2**40), max_size=3).map(tuple)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
names = st.text(min_size=1, max_size=8).filter(lambda name: is_plain_name(name) and name != MANIFEST_NAME)
digests = st.binary(min_size=16, max_size=16).map(bytes.hex)
moments = st.datetimes(timezones=st.just(datetime.UTC)).map(datetime.datetime.isoformat)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any that a store could write, and more."""
    files = draw(st.dictionaries(names, st.builds(FileEntry, naturals, digests), max_size=3))
    tensors = draw(st.lists(tensors_in(sorted(files)), max_size=3)) if files else []
    versions = draw(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
    meta = draw(st.dictionaries(st.text(max_size=4), values, max_size=3))
    step, epoch, created = draw(naturals), draw(naturals), draw(moments)
    return Manifest(step, epoch, created, versions, files, tuple(tensors), meta)


@st.composite
def tensors_in(draw: st.DrawFn, files: list[str]) -> TensorEntry:
    """A tensor with pieces in some of the files."""
    shape = draw(sizes)
    pieces = []
    for file in draw(st.lists(st.sampled_from(files), max_size=2)):
        offsets = tuple(draw(st.integers(0, size)) for size in shape)
        pieces.append(Chunk(file, offsets, tuple(size - begin for size, begin in zip(shape, offsets, strict=True))))
    return TensorEntry(draw(st.text(max_size=4)), draw(st.text(max_size=4)), shape, tuple(pieces))


def signed(text: bytes) -> bytes:
    """A manifest's bytes with their digest at the end."""
    return text[:-1] + b',"digest":"%b"}' % xxhash.xxh3_128_hexdigest(text).encode()


def body(manifest: Manifest) -> Any:
    """What its JSON holds, without the digest."""
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder), manifest)
        found = json.loads((Path(folder) / MANIFEST_NAME).read_bytes())
    del found["digest"]
    return found


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, value in below for found in places(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A manifest with some of it replaced or gone, and with the right digest."""
    tree = body(draw(manifests()))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(tree)))
        if not path:
            return signed(json.dumps(draw(values)).encode())
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[path[-1]] = draw(values | st.just(2**64) | st.just(-1) | st.just("../x") | st.just("9" * 5000))
        else:
            del parent[path[-1]]
    return signed(json.dumps(tree).encode())


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """The bytes of a manifest with some others in the place of some, and with the right digest."""
    data = json.dumps(body(draw(manifests()))).encode()
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + 8)))
    return signed(data[:begin] + draw(st.binary(max_size=6)) + data[end:])


def outcome(data: bytes) -> str:
    """What is wrong with how *data* is read: nothing, where it is refused, or written again as what was read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / MANIFEST_NAME).write_bytes(data)
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            return ""
        except Exception as error:  # noqa: BLE001
            return f"{data!r}: {error!r}"
        (path / "again").mkdir()
        write_manifest(path / "again", manifest)
        return "" if read_manifest(path / "again") == manifest else f"{data!r}: another when written again"


def try_many(row: Row, made: st.SearchStrategy[Any], check: Callable[[Any], str], count: int) -> None:
    """Check so many examples, drawn from the row's seed."""

    @drawn_from(row.seed)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(made)
    def one(example: Any) -> None:
        row.tried += 1
        if problem := check(example):
            row.found.append(problem)

    one()
    row.check()


COUNTS = pytest.mark.parametrize("count", [60, pytest.param(2000, marks=LONG)])


@COUNTS
@pytest.mark.parametrize(
    "made",
    [
        pytest.param(values.map(lambda value: signed(json.dumps(value).encode())), id="any JSON"),
        pytest.param(mutated(), id="almost a manifest"),
        pytest.param(spliced(), id="almost JSON"),
        pytest.param(st.binary(max_size=100).map(signed), id="signed noise"),
        pytest.param(st.binary(max_size=100), id="noise"),
    ],
)
def test_whatever_is_there_is_a_manifest_or_an_error(made: st.SearchStrategy[bytes], count: int, row: MakeRow) -> None:
    """Of the checkpoint's own, even if the digest is right."""
    try_many(row("manifests of somebody's", "other errors than CheckpointError"), made, outcome, count)


def same_again(manifest: Manifest) -> str:
    """What is wrong with how a manifest comes back from a file."""
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder), manifest)
        read = read_manifest(Path(folder))
    return "" if read == manifest else f"{manifest} came back as {read}"


@COUNTS
def test_a_manifest_comes_back_as_it_was(count: int, row: MakeRow) -> None:
    """Names in any script, numbers of any size, every float to the bit."""
    try_many(row("manifests", "that came back otherwise"), manifests(), same_again, count)

"""Hostile checkpoints: what somebody could make of a good one who may write to its folder, and knows its format.

Their manifests have the right digests, so that it is not those that they are refused by.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from bad_documents import HEAVY, JSON, NODES
from bad_headers import HEADERS
from bad_manifests import MANIFESTS
from forged import Change, Hostile, manifest, put, state
from pickles import ARCHIVES, HARMLESS, PICKLES, legacy_tar

from eventrunner.checkpoint.manifest import MANIFEST_NAME


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something else in a file's place."""
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def listen(path: Path) -> None:
    """A socket, of a name that is short enough from where it is made."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def away(path: Path) -> None:
    """A link to the right bytes, outside of the folder."""
    path.symlink_to(path.parents[2] / "outside" / path.name)


THINGS: dict[str, Callable[[Path], object]] = {
    "a link to /etc/passwd": lambda path: path.symlink_to("/etc/passwd"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to(".."),
    "a link to a pipe": lambda path: (
        os.mkfifo(path.parents[2] / "outside" / "pipe"),
        path.symlink_to("../../outside/pipe"),
    ),
    "a link to the right bytes": away,
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": listen,
    "a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "a device that isn't there": lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(250, 250)),
}
"""What else can have a file's name."""


ALWAYS = (
    *("lists a file that is there, outside", "deep lists", "a key twice", "1e400", "a file of 16 GiB", "half"),
    *("an archive of os.system", "a deflated storage", "a set of a string, often", "a bytearray of 500 MB"),
    *("an older file before an archive", "a second directory", "a sparse tensor whose index leads out"),
    *("lists that have others twice", "numpy's of lists", "a dict under many tags", "sparse by size [2]"),
    *("dtype '_dynamo'", "numpy's 'V1' of 1073741824", "order [-1, 0]", "tag '__class__'", "bits ''"),
)
"""By name, those that are tried in short runs too."""


def can_make_devices(folder: Path) -> bool:
    """Whether this process may."""
    with contextlib.suppress(OSError):
        os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (folder / "device").unlink()
        return True
    return False


def corpus() -> Iterator[Hostile]:
    """All of them."""
    for name, change in MANIFESTS.items():
        yield Hostile(f"manifest: {name}", change, always=name in ALWAYS)
    for name, text in {**JSON, **HEAVY}.items():
        harmless = name in HEAVY or name == "nearly too deep"
        yield Hostile(f"state.json: {name}", put("state.json", text), refused=not harmless)
    for name, node in NODES.items():
        yield Hostile(f"node: {name}", state(node), always=name in ALWAYS)
    for name, change in HEADERS.items():
        yield Hostile(
            f"safetensors: {name}", change, refused=not name.startswith(("dtype 'F8_E8M0'", "metadata", "a name twice"))
        )
    for file, tree_format in (
        ("state.json", "safetensors"),
        ("model.safetensors", "safetensors"),
        ("checkpoint.pth", "pth"),
    ):
        for name, make in THINGS.items():
            yield Hostile(f"{file}: {name}", instead(file, make), tree_format)
    for name, make in THINGS.items():
        yield Hostile(f"manifest: {name}", instead(MANIFEST_NAME, make), always=True)
    yield from of_pickles()
    yield from of_bytes(40)


def of_pickles() -> Iterator[Hostile]:
    """Pickles in every place, bare and in every wrapping that torch knows."""
    for name, data in PICKLES.items():
        yield Hostile(f"manifest: {name}", manifest(data))
        yield Hostile(
            f"manifest: {name}, unsigned", lambda folder, data=data: (folder / MANIFEST_NAME).write_bytes(data)
        )
        for file in ("state.json", "model.safetensors"):
            yield Hostile(f"{file}: {name}", put(file, data))
        for file in (".lock", "last_checkpoint"):
            yield Hostile(
                f"{file}: {name}",
                lambda folder, file=file, data=data: (folder.parent / file).write_bytes(data),
                refused=False,
            )
        yield Hostile(f"an extra file: {name}", put("extra.pkl", data), refused=False)
        yield Hostile(f"checkpoint.pth: {name}", put("checkpoint.pth", data), "pth")
    for name, data in ARCHIVES().items():
        yield Hostile(
            f"checkpoint.pth: {name}",
            put("checkpoint.pth", data),
            "pth",
            refused=name not in HARMLESS,
            always=name in ALWAYS,
        )
    yield Hostile("checkpoint.pth: a tar", put("checkpoint.pth", legacy_tar()), "pth")
    text = json.dumps({"state_dict": {"$": "bytes", "base64": base64.b64encode(PICKLES["os.system"]).decode()}})
    yield Hostile("state.json: a pickle as bytes", put("state.json", text.encode()), refused=False)


def of_bytes(count: int) -> Iterator[Hostile]:
    """Noise."""
    draw = random.Random(0)
    for index in range(count):
        file = ("state.json", "model.safetensors", "checkpoint.pth")[index % 3]
        tree_format = "pth" if index % 3 == 2 else "safetensors"
        yield Hostile(f"{file}: noise {index}", put(file, draw.randbytes(draw.randrange(2000))), tree_format)

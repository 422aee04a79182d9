"""Coverage-guided fuzzing of all that reads a checkpoint: ``python tests/faults/fuzz.py manifest --seconds 60``.

It begins with the inputs in ``corpus/`` and mutates those that reach new code. An error that is none of a checkpoint
ends it, with the input that led there, which then belongs into ``corpus/``.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).with_name("corpus")
LONGEST = 8192
"""Bytes of an input."""

Target = Callable[[bytes, Path], object]


def target(name: str) -> Target:
    """What is done with an input, in a folder of its own; it raises whatever it finds.

    Imported when it is asked for, so that it can be watched by whoever looks for new ways through it.
    """
    return _MAKERS[name]()


def _module(name: str) -> Any:
    return importlib.import_module(f"eventrunner.{name}")


def _of_checkpoints(call: Callable[[bytes, Path], object]) -> Target:
    """The same, without the errors that it may raise."""
    errors = _module("errors")

    def run(data: bytes, folder: Path) -> None:
        with contextlib.suppress(errors.CheckpointError):
            call(data, folder)

    return run


def _manifest() -> Target:
    """Any text as a manifest, with the digest that it should have."""
    manifest, xxhash = _module("checkpoint.manifest"), importlib.import_module("xxhash")

    def read(data: bytes, folder: Path) -> None:
        tail = b',"digest":"%b"}' % xxhash.xxh3_128_hexdigest(data[:-1] + b"}").encode()
        (folder / manifest.MANIFEST_NAME).write_bytes(data[:-1] + tail)
        manifest.read_manifest(folder)

    return _of_checkpoints(read)


def _document() -> Target:
    """Any text as a document."""
    reader, codec, torch = _module("files.reader"), _module("checkpoint.codec"), importlib.import_module("torch")

    def read(data: bytes, folder: Path) -> None:
        found = reader.parse_json(data, folder)
        if isinstance(found, dict):
            weights = {"w": torch.ones(2, 3), "b": torch.arange(16, dtype=torch.uint8)}
            codec.decode(found, {"model.safetensors": weights})

    return _of_checkpoints(read)


def _safetensors() -> Target:
    """A file of tensors, whose header's length is made right where it is too large."""
    load = _module("checkpoint.load")

    def read(data: bytes, folder: Path) -> None:
        length = int.from_bytes(data[:8], "little")
        fitting = length if length <= len(data) or length % 7 == 0 else max(0, len(data) - 8) & ~7
        (folder / "w.safetensors").write_bytes(fitting.to_bytes(8, "little") + data[8:])
        load.load_weights(folder / "w.safetensors")

    return _of_checkpoints(read)


def _pth() -> Target:
    """A checkpoint of one file of torch.save's."""
    pth, torch = _module("checkpoint.pth"), importlib.import_module("torch")
    tree = _of_checkpoints(lambda _, folder: pth.read_tree(folder / "w.pth", torch.device("cpu")))

    def read(data: bytes, folder: Path) -> None:
        (folder / "w.pth").write_bytes(data)
        tree(data, folder)

    return read


def _pickle() -> Target:
    """The pickle in one; the archive around it is always a good one."""
    pickles, read = importlib.import_module("pickles"), _pth()
    return lambda data, folder: read(pickles.archive(data, pickles.FLOATS), folder)


_MAKERS: dict[str, Callable[[], Target]] = {
    "manifest": _manifest,
    "document": _document,
    "safetensors": _safetensors,
    "pth": _pth,
    "pickle": _pickle,
}
TARGETS = tuple(_MAKERS)


def main() -> None:
    """Fuzz one target; the last lines say how many inputs were tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["eventrunner.checkpoint"]):
        run = target(chosen.target)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("found", "input"):
        (folder / name).mkdir()
    options = {
        "max_total_time": chosen.seconds,
        "seed": chosen.seed,
        "max_len": LONGEST,
        "rss_limit_mb": 3000,
        "timeout": 20,
        "artifact_prefix": f"{Path.cwd()}/",
        "print_final_stats": 1,
    }
    given = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup(
        [sys.argv[0], *given, str(folder / "found"), str(CORPUS / chosen.target)],
        lambda data: run(bytes(data), folder / "input"),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Break eventrunner on purpose, one line at a time, and see whether its tests notice.

``python tests/faults/mutate.py [--only WORD …] [--count N] [--seed S]`` applies each mutant of ``mutants.py`` to a copy
of the repository and runs the tests that should notice, each in a fork of one process that has imported torch. A mutant
that they pass with has survived: a test is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutants import MUTANTS, Mutant

REPOSITORY = Path(__file__).resolve().parents[2]
_COPIED = ("eventrunner", "tests", "pyproject.toml")
_PASSED, _FAILED = 0, 1  # of pytest; its other codes mean that no test has run
_LIMIT = 300  # seconds for one mutant; whatever takes longer is noticed too


def main() -> int:
    """Try the mutants that are asked for, print a line of JSON for each, and return how many weren't caught."""
    chosen = _arguments()
    picked = [each for each in MUTANTS if not chosen.only or any(word in each.name for word in chosen.only)]
    picked = random.Random(chosen.seed).sample(picked, min(chosen.count or len(picked), len(picked)))
    _import_what_is_slow()
    with tempfile.TemporaryDirectory() as folder:
        copy = _copied(Path(folder))
        tests = sorted({test for each in picked for test in each.tests})
        if _run(copy, tests, chosen.seed, _LIMIT * len(picked)) != _PASSED:
            print((copy / "out").read_text(), "The tests fail without a mutant.", sep="\n", file=sys.stderr)
            return len(picked)
        return sum([_try(copy, each, chosen.seed) != "caught" for each in picked])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORD", help="those with one of the words in their names"
    )
    parser.add_argument("--count", type=int, help="so many, drawn from all of them")
    parser.add_argument("--seed", type=int, default=0, help="of that draw, and of what the tests draw")
    return parser.parse_args()


def _import_what_is_slow() -> None:
    """What no mutant touches is imported once, before the forks."""
    for name in ("torch", "pytest", "numpy", "structlog", "rich", "safetensors.torch"):
        __import__(name)


def _copied(folder: Path) -> Path:
    """A copy of the repository in *folder*, which is imported from now on, by other processes too."""
    for name in _COPIED:
        source = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path) != Path(__file__).parent)]
    os.environ["PYTHONPATH"] = str(folder)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # it is by time and size that Python tells sources apart
    sys.dont_write_bytecode = True
    return folder


def _try(copy: Path, mutant: Mutant, seed: int) -> str:
    began = time.perf_counter()
    with _applied(copy, mutant) as applied:
        code = _run(copy, mutant.tests, seed) if applied else None
    fates = {None: "not applied: its text isn't there once", _PASSED: "survived", _FAILED: "caught"}
    fate = fates.get(code, f"not tried: pytest's exit code is {code}")
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"fate": fate, "mutant": mutant.name, "file": mutant.file, "seconds": seconds}), flush=True)
    return fate


@contextlib.contextmanager
def _applied(copy: Path, mutant: Mutant) -> Iterator[bool]:
    """Whether the mutant could be applied, in the body of the with."""
    path = copy / "eventrunner" / mutant.file
    sound = path.read_text()
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        yield sound.count(mutant.old) == 1
    finally:
        path.write_text(sound)


def _run(copy: Path, tests: Sequence[str], seed: int, limit: float = _LIMIT) -> int:
    """Pytest's exit code for *tests*, run in a fork, which has so many seconds."""
    child = os.fork()
    if child == 0:
        _be_pytest(copy, tests, seed)
    deadline = time.monotonic() + limit
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return _FAILED
        time.sleep(0.02)


def _be_pytest(copy: Path, tests: Sequence[str], seed: int) -> None:
    code = -1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this was begun in the background
        os.chdir(copy)
        out = os.open(copy / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(out, descriptor)
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--seed", str(seed), *tests]))
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  # pytest itself may fail; the code says so
        traceback.print_exc()
    finally:
        os._exit(code & 255)


if __name__ == "__main__":
    sys.exit(main())

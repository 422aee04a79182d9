"""What fuzzing has found stays mended, and goes on to be looked for."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import CORPUS, LONGEST, TARGETS, Target, target
from tally import LONG, MakeRow, Row

ROOT = Path(__file__).parents[2]
SECONDS = 40


def problem(run: Target, data: bytes, folder: Path) -> str:
    """What is wrong with how an input is read."""
    try:
        run(data, folder)
    except BaseException as error:  # noqa: BLE001
        return f"{error!r} of {data!r}"[:2000]
    return ""


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """The input with some bytes changed, taken out or put in, or with a part of another."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(4):
            case 0:
                changed[place : place + 1] = draw.randbytes(1)
            case 1:
                del changed[place : place + draw.randint(1, 8)]
            case 2:
                changed[place:place] = draw.choice([b"-1", b"null", b"9" * 30, b"{}", b"[", b'"$":', b"\xff" * 8, b"."])
            case _:
                other = draw.choice(others)
                begin = draw.randrange(len(other) + 1)
                changed[place:place] = other[begin : begin + draw.randint(1, 40)]
    return bytes(changed[:LONGEST])


def try_all(name: str, count: int, folder: Path, row: Row) -> None:
    """Each input of the corpus, and so many made of them."""
    run, inputs = target(name), [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    draw = random.Random(f"{row.seed} fuzz {name}")
    made = [mutated(draw.choice(inputs), inputs, draw) for _ in range(count)]
    for data in (*inputs, *made):
        row.tried += 1
        if found := problem(run, data, folder):
            row.found.append(found)
    row.check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=LONG)])
@pytest.mark.parametrize("name", TARGETS)
def test_inputs_and_some_made_of_them_end_in_no_other_error(
    name: str, count: int, tmp_path: Path, row: MakeRow
) -> None:
    """Those that once did among them."""
    try_all(name, count, tmp_path, row(f"{name} fuzz inputs", "other errors than CheckpointError"))


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_reach_new_code_end_in_no_other_error(name: str, tmp_path: Path, row: MakeRow) -> None:
    """A process of its own looks for them; it ends at the first that does, or dies of it."""
    pytest.importorskip("atheris", reason="needs the extra fuzz")
    inputs = row(f"guided {name} fuzz inputs", "other errors than CheckpointError")
    command = [
        sys.executable,
        Path(__file__).with_name("fuzz.py"),
        name,
        "--seconds",
        SECONDS,
        "--seed",
        row_seed(inputs),
    ]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    inputs.tried = int(counted[1]) if counted else 0
    left = [path.read_bytes()[:500] for path in tmp_path.iterdir()]
    if done.returncode or left:
        inputs.found.append(f"exit {done.returncode} of {left}: {done.stderr[-3000:]}")
    inputs.check()


def row_seed(row: Row) -> int:
    """A seed that libFuzzer takes: 0 is none to it."""
    return row.seed + 1

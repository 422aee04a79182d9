"""Whether the tests notice what they are there to notice: eventrunner, broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS, Mutant
from tally import LONG, MakeRow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_applied(mutant: Mutant) -> None:
    """Its text stands in the file once, and its tests are there."""
    assert (ROOT / "eventrunner" / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert mutant.tests
    for test in mutant.tests:
        path, *names = test.split("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert all(f"def {name}" in text or f"class {name}" in text for name in names), test


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [1, pytest.param(len(MUTANTS), marks=LONG)])
def test_a_mutant_is_caught(count: int, seed: int, row: MakeRow) -> None:
    """By the tests that it names; the others of them pass without it."""
    command = [sys.executable, str(HERE / "mutate.py"), "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    mutants = row("mutants", "survivors")
    fates = [json.loads(line) for line in done.stdout.splitlines()]
    mutants.tried += len(fates)
    left = [fate for fate in fates if fate["fate"] != "caught"]
    mutants.found += [f"{fate['mutant']} ({fate['file']}): {fate['fate']}" for fate in left]
    mutants.check()
    assert len(fates) == count, done.stderr

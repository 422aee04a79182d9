"""Each example runs as a user would run it, and the figure that it prints means something."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.timeout(600)  # some train, twice, which a busy machine takes minutes for
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, folder: Path, *arguments: str) -> str:
    """Standard output of an example, run in *folder* with warnings as errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_timetable_prints_the_day_in_order(tmp_path: Path) -> None:
    """Priority first, then registration, at each site of the day."""
    assert run("timetable.py", tmp_path).splitlines() == [
        "--- the day begins ---",
        "before_breakfast: run for 30 minutes",
        "before_breakfast: read the news for 30 minutes",
        "after_breakfast: work for 3 hours",
        "after_lunch: nap for 60 minutes",
        "after_lunch: work for 3 hours",
        "before_dinner: run for 60 minutes",
        "after_dinner: work for 60 minutes",
        "after_finish_work: wash and go to bed",
        "after_finish_work: run for 10 hours",
        "--- asleep ---",
    ]


def test_module_hooks_watches_the_chosen_layers_and_leaves_nothing(tmp_path: Path) -> None:
    """Inputs, outputs and gradients of the convolutions alone."""
    lines = run("module_hooks.py", tmp_path).splitlines()
    assert lines[0] == "watching conv1, conv2"
    assert "conv1: [2, 1, 8, 8] -> [2, 4, 6, 6]" in lines
    assert "conv2: [2, 4, 6, 6] -> [2, 8, 4, 4]" in lines
    assert not [line for line in lines if line.startswith(("relu", "head"))]
    assert lines[-1] == "hooks left: 0"


def test_check_invalid_loss_works_in_its_three_ways(tmp_path: Path) -> None:
    """By name, with a priority, and as an object that ends a run whose loss is no number."""
    lines = [line for line in run("check_invalid_loss.py", tmp_path).splitlines() if not line.startswith("time=")]
    assert lines == [
        "by name:       trained 128 iterations, checked at priority NORMAL",
        "with priority: trained 128 iterations, checked at priority ABOVE_NORMAL",
        "as an object:  stopped a run that diverged, at iteration 20",
    ]


def test_train_digits_reaches_97_percent_keeps_the_best_and_resumes(tmp_path: Path) -> None:
    """A first run of some epochs, then the same command with --resume to the end: one folder, one history."""
    work = tmp_path / "work"
    run("train_digits.py", tmp_path, "--work-dir", "work", "--epochs", "3")
    run("train_digits.py", tmp_path, "--work-dir", "work", "--epochs", "25", "--resume")
    history = rows(work)
    assert history[-1]["test/accuracy"] > 0.97
    steps = [row["step"] for row in history if "train/loss" in row]
    assert steps == sorted(set(steps))
    best = max(row["val/accuracy"] for row in history if "val/accuracy" in row)
    (folder,) = work.glob("best_accuracy_epoch_*")
    assert json.loads((folder / "MANIFEST.json").read_text())["meta"]["best"]["accuracy"] == pytest.approx(best)


@pytest.mark.long
def test_train_bytes_learns_and_saves_the_averaged_weights(tmp_path: Path) -> None:
    """A few iterations on the standard library's source take the loss well below that of guessing bytes (5.5)."""
    sizes = ("--iters", "24", "--bytes", "300000", "--batch", "8")
    run("train_bytes.py", tmp_path, *sizes, "--work-dir", "work")
    losses = [row["val/loss"] for row in rows(tmp_path / "work") if "val/loss" in row]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 4.5
    assert len(list((tmp_path / "work").glob("best_loss_iter_*"))) == 1


@pytest.mark.long
def test_train_bytes_says_what_the_overlap_hides(tmp_path: Path) -> None:
    """The same saves with it and without; without it all of the writing is in the training's way."""
    sizes = ("--iters", "8", "--bytes", "100000", "--batch", "4")
    for flag, hidden in (("--overlap", False), ("--no-overlap", True)):
        last = run("train_bytes.py", tmp_path, *sizes, "--work-dir", flag.strip("-"), flag).splitlines()[-1]
        assert re.fullmatch(r"with(out)? overlap: \d+ saves, .* of .* writing hidden", last), last
        assert (" 0% of " in last) == hidden


def test_own_loop_goes_on_as_if_it_had_never_ended(tmp_path: Path) -> None:
    """Eight epochs and then eight more print what sixteen do, and learn the digits."""
    first = run("own_loop.py", tmp_path, "--folder", "a", "--epochs", "8").splitlines()
    second = run("own_loop.py", tmp_path, "--folder", "a", "--epochs", "16", "--resume").splitlines()
    whole = run("own_loop.py", tmp_path, "--folder", "b", "--epochs", "16").splitlines()
    # The last save of the first run is of step 180, some steps before its end, which are repeated.
    assert first[:-1] == whole[:8]
    assert second[-9:-1] == whole[8:16]
    accuracy = float(whole[-1].split()[1].rstrip(";"))
    assert accuracy > 0.95
    assert whole[-1].split(";")[0] == second[-1].split(";")[0]


def test_own_loop_adds_three_lines(tmp_path: Path) -> None:
    """Without the marked lines, what is left is a loop as anybody writes it."""
    text = (ROOT / "examples/own_loop.py").read_text()
    assert len(re.findall(r"# \d$", text, re.MULTILINE)) == 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    """Under 60 lines of code (not counting its docstring, blank lines and comments), so that it can be read aloud."""
    text = path.read_text(encoding="utf-8")
    after_docstring = text.split('"""', 2)[2]
    lines = [line.strip() for line in after_docstring.splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) < 60

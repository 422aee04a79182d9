"""Paths stay what they were when they were given, whatever becomes of the working directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import linear, options, same, weights

from eventrunner.bus.bus import Bus
from eventrunner.checkpoint import Store, verify_checkpoint
from eventrunner.checkpointer import Checkpointer
from eventrunner.hooks import CheckpointHook, LoggerHook
from eventrunner.runner import Runner
from eventrunner.units import shown_path

Make = Callable[..., Runner]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder to go to, which must stay empty."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def make(bus: Bus) -> Make:
    """``make(**changes)``: a tiny run in the relative folder ``run``."""
    return lambda **changes: Runner(**{"work_dir": "run", "bus": bus, **options(**changes)})


def files(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def go_to(folder: Path, runner: Runner, site: str | None) -> None:
    """Change the working directory: at once, or at the first time that the run comes to *site*."""
    if site is None:
        os.chdir(folder)
    else:
        runner.on(site, once=True)(lambda: os.chdir(folder))


@pytest.mark.parametrize("site", [None, "before_run", "before_train", "after_train_iter", "after_train_epoch"])
@pytest.mark.parametrize("work_dir", ["run", Path("run"), "./here/../run", None])
def test_a_run_stays_in_its_folder(
    tmp_path: Path, elsewhere: Path, make: Make, work_dir: str | Path | None, site: str | None
) -> None:
    """Every file of it, whenever the directory changes."""
    (tmp_path / "here").mkdir()
    runner = make(work_dir=work_dir, default_hooks={"checkpoint": {"max_keep_ckpts": 1}})
    go_to(elsewhere, runner, site)
    runner.train()
    assert runner.work_dir.is_absolute()
    assert {"log.jsonl", "log.txt", "run.json", "epoch_2/MANIFEST.json"} <= files(runner.work_dir)
    assert not (runner.work_dir / "epoch_1").exists()
    assert json.loads((runner.work_dir / "run.json").read_text())["ended"] == "completed after epoch 2, step 4"
    assert files(elsewhere) == set()


def test_a_run_that_went_elsewhere_is_resumed(tmp_path: Path, elsewhere: Path, make: Make) -> None:
    """The directory changes in both, and the second goes on where the first ended."""
    go_to(elsewhere, first := make(), "before_train")
    first.train()
    os.chdir(tmp_path)
    second = make(epochs=3, resume=True)
    os.chdir(elsewhere)
    seen: list[int] = []
    second.on("before_train_epoch")(lambda runner: seen.append(runner.epoch))
    second.train()
    assert seen == [2]
    assert files(elsewhere) == set()


@pytest.mark.parametrize("hook", [CheckpointHook, LoggerHook])
def test_out_dir_is_understood_where_the_hook_is_made(
    tmp_path: Path, elsewhere: Path, make: Make, hook: type[CheckpointHook] | type[LoggerHook]
) -> None:
    """And not where the run begins."""
    name = {CheckpointHook: "checkpoint", LoggerHook: "logger"}[hook]
    runner = make(default_hooks={name: hook(out_dir="out")})
    os.chdir(elsewhere)
    runner.train()
    assert files(tmp_path / "out/run")
    assert files(elsewhere) == set()


@pytest.mark.parametrize("argument", ["load_from", "resume"])
def test_a_checkpoint_is_read_from_where_it_was_named(elsewhere: Path, make: Make, argument: str) -> None:
    """Nothing is read before the run begins."""
    trained = weights(make().train())
    work_dir = {"load_from": "other", "resume": None}[argument]
    runner = make(**{argument: "run/epoch_2"}, work_dir=work_dir, model=linear(9))
    os.chdir(elsewhere)
    seen: list[dict[str, torch.Tensor]] = []
    runner.on("after_load_checkpoint")(lambda checkpoint: seen.append(checkpoint["state_dict"]))
    runner.train()
    assert len(seen) == 1
    assert same(seen[0], trained)
    assert files(elsewhere) == set()


def test_a_trace_goes_where_it_was_asked_for(tmp_path: Path, elsewhere: Path, make: Make) -> None:
    """It is written when the session ends."""
    runner = make()
    runner.trace("trace.json")
    os.chdir(elsewhere)
    runner.train()
    assert (tmp_path / "trace.json").is_file()
    assert files(elsewhere) == set()


def test_a_checkpointer_and_a_store_keep_their_folder(tmp_path: Path, elsewhere: Path) -> None:
    """Those of a loop written by hand."""
    model = linear()
    store, ckpt = Store("saves"), Checkpointer("saves", model=model, optimizer=torch.optim.SGD(model.parameters()))
    os.chdir(elsewhere)
    with ckpt:
        ckpt.save(1)
    assert [str(store.folder / name) for name in store.names()] == [str(tmp_path / "saves/step_1")]
    verify_checkpoint(tmp_path / "saves/step_1")
    assert files(elsewhere) == set()


def test_lines_show_a_path_as_it_is_typed(tmp_path: Path, elsewhere: Path) -> None:
    """Relative where it lies below the working directory, else whole."""
    assert shown_path(tmp_path / "run/epoch_1") == "run/epoch_1"
    os.chdir(elsewhere)
    assert shown_path(tmp_path / "run/epoch_1") == str(tmp_path / "run/epoch_1")


def test_a_path_is_shown_whole_in_a_directory_that_was_removed(tmp_path: Path) -> None:
    """There is nothing that it could be relative to."""
    script = "import os; from eventrunner.units import shown_path; os.rmdir(os.getcwd()); print(shown_path('/a/b'))"
    (tmp_path / "gone").mkdir()
    package = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout == "/a/b\n"
